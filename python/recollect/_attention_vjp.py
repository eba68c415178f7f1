# SPDX-License-Identifier: BSD-3-Clause
"""The pullback of `attention.attend`."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array, attention
from ._core import core
from ._vjp import pullback_of


@pullback_of(attention.attend)
def attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    scale: Any = None,
    causal: Any = False,
    mask: Any = None,
    bias: Any = None,
    sink: Any = None,
    separation: Any = "softmax",
    top_k: Any = None,
    return_lse: bool = False,
    out: Any = None,
) -> tuple[NDArray[Any], Callable[[Any], Any]]:
    op = "attention.attend"
    if return_lse:
        raise ValueError(f"{op}: return_lse is True; expected False in vjp, where only out has a gradient")
    if out is not None:
        raise ValueError(f"{op}: out is given; expected None in vjp, which keeps what it computes")
    given = attention.operands(op, query, key, value, scale, causal, mask, bias, sink)
    ops, heads = attention.grouped(op, given)
    shape = attention.rows_shape(op, ops)
    result = np.empty((*shape, ops.value.shape[-1] if ops.value.ndim >= 2 else 0), ops.dtype)
    name, parameter = attention.separated(op, separation, top_k, ops)
    # What the gradient of a softmax needs again; other separations keep nothing.
    kept = [np.empty(shape, ops.dtype) if name == "softmax" else None for _ in range(2)]
    core.attention_attend(*ops[:7], ops.causal, name, parameter, result, largest=kept[0], log_sum=kept[1])
    outside = attention.ungrouped(result.shape, heads, 2)
    # Which gradients there are, and the shapes that the caller knows their operands by.
    shapes = {"query": given.query.shape, "key": given.key.shape, "value": given.value.shape}
    if scale is not None:
        shapes["scale"] = given.scale.shape
    if given.bias is not None:
        shapes["bias"] = given.bias.shape
    if given.sink is not None:
        shapes["sink"] = given.sink.shape

    def pullback(d_out: Any) -> Any:
        cotangent = _array.cotangent(op, d_out, outside, ops.dtype)
        room = {
            name: np.empty(getattr(ops, name).shape, np.float64 if name in ("scale", "sink") else ops.dtype)
            for name in shapes
        }
        core.attention_attend_backward(
            *ops[:7],
            ops.causal,
            name,
            parameter,
            kept[0],
            kept[1],
            result,
            cotangent.reshape(result.shape),
            **{f"d_{name}": gradient for name, gradient in room.items()},
        )
        gradients = {name: room[name].reshape(own).astype(ops.dtype, copy=False) for name, own in shapes.items()}
        return namedtuple("AttendGradients", gradients)(**gradients)

    return result.reshape(outside).copy(), pullback
