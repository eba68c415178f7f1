# SPDX-License-Identifier: BSD-3-Clause
"""Projections, normalisation and heads as functions of arrays, each with its pullback."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ._base import Array, Back, Gradients


def add(into: Gradients, name: str, gradient: Array) -> None:
    """Adds to a parameter's gradient."""
    into[name] = into[name] + gradient if name in into else gradient


def linear(x: Array, parameters: Mapping[str, Array], name: str) -> tuple[Array, Back]:
    """``x W^T + b`` for the parameters ``name.weight`` (out, in) and, if there is one, ``name.bias`` (out,).

    ::

        d_x = g W,    d_W = sum g x^T,    d_b = sum g
    """
    weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
    rows = x.reshape(-1, x.shape[-1])  # one product, whatever the leading axes
    out = rows @ weight.T
    if bias is not None:
        out += bias

    def back(d_out: Array, into: Gradients) -> Array:
        d_rows = d_out.reshape(-1, d_out.shape[-1])
        add(into, f"{name}.weight", d_rows.T @ rows)
        if bias is not None:
            add(into, f"{name}.bias", d_rows.sum(axis=0))
        return (d_rows @ weight).reshape(x.shape)

    return out.reshape(*x.shape[:-1], weight.shape[0]), back


def layer_norm(x: Array, parameters: Mapping[str, Array], name: str, eps: float) -> tuple[Array, Back]:
    """``weight * (x - mean) / sqrt(var + eps) + bias`` over the last axis; without parameters of that name, no weight and bias.

    ::

        h = (x - mean) / s,  s = sqrt(var + eps):    d_weight = sum g h,    d_bias = sum g,
        d_x = (g weight - mean(g weight) - h mean(g weight h)) / s
    """
    weight, bias = parameters.get(f"{name}weight"), parameters.get(f"{name}bias")
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    normal = centred * inverse
    out = normal if weight is None else normal * weight
    if bias is not None:
        out = out + bias

    def back(d_out: Array, into: Gradients) -> Array:
        if weight is not None:
            add(into, f"{name}weight", (d_out * normal).reshape(-1, x.shape[-1]).sum(axis=0))
        if bias is not None:
            add(into, f"{name}bias", d_out.reshape(-1, x.shape[-1]).sum(axis=0))
        g = d_out if weight is None else d_out * weight
        d_x: Array = inverse * (g - g.mean(axis=-1, keepdims=True) - normal * (g * normal).mean(axis=-1, keepdims=True))
        return d_x

    return out, back


def split_heads(x: Array, heads: int) -> Array:
    """(..., n, H d) -> (..., H, n, d), a view."""
    divided: Array = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-3, -2)
    return divided


def merge_heads(x: Array) -> Array:
    """(..., H, n, d) -> (..., n, H d)."""
    joined: Array = x.swapaxes(-3, -2)
    return joined.reshape(*joined.shape[:-2], joined.shape[-2] * joined.shape[-1])


def projected(x: Array, parameters: Mapping[str, Array], name: str, heads: int) -> tuple[Array, Back]:
    """A linear projection whose output is divided among heads: (..., n, in) -> (..., H, n, d)."""
    out, back = linear(x, parameters, name)
    return split_heads(out, heads), lambda d_out, into: back(merge_heads(d_out), into)
