# SPDX-License-Identifier: BSD-3-Clause
"""Scores: how a query is compared with a key. All but the additive one are scalar products of other operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array

Array = NDArray[Any]
NAMES = ("dot", "cosine", "gaussian")


@dataclass(frozen=True, eq=False)
class Bilinear:
    """The score q^T W k of queries and keys that may differ in width.

    Parameters
    ----------
    weight : array (..., d_query, d_key)
        W. Leading axes broadcast with those of the queries: one matrix for each head, say.

    Notes
    -----
    Luong et al. 2015, https://arxiv.org/abs/1508.04025, eq. 8 ("general"). In `recollect.vjp` the gradient of W is ``score.weight``.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> score = rc.attention.Bilinear(np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> rc.attention.attend(np.eye(2), np.eye(3), np.arange(3.0)[:, None], score=score, separation="hard")
    array([[0.],
           [1.]])
    """

    weight: ArrayLike


@dataclass(frozen=True, eq=False)
class Additive:
    """The score v . tanh(W k + U q): a network with one hidden layer of A units.

    Parameters
    ----------
    key_weight : array (..., A, d_key)
        W.
    query_weight : array (..., A, d_query)
        U.
    vector : array (..., A)
        v.

    Notes
    -----
    Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, appendix A.1.2. O(n m A) time, a tanh each; scores are made for some
    queries at a time, so that memory holds no n x m array. It has no scale. In `recollect.vjp` the gradients are ``score.key_weight``,
    ``score.query_weight`` and ``score.vector``.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> score = rc.attention.Additive(np.eye(2), np.eye(2), [5.0, 0.0])
    >>> keys = np.array([[2.0, 0.0], [-2.0, 0.0]])
    >>> rc.attention.attend(np.zeros((1, 2)), keys, [[1.0], [0.0]], score=score).round(3)
    array([[1.]])
    """

    key_weight: ArrayLike
    query_weight: ArrayLike
    vector: ArrayLike


Score = str | Bilinear | Additive


def checked(op: str, score: Any) -> Any:
    """A score whose parameters are arrays."""
    if isinstance(score, str):
        if score not in NAMES:
            raise ValueError(
                f"{op}: score is {score!r}; expected {', '.join(map(repr, NAMES))}, a Bilinear or an Additive"
            )
        return score
    if not isinstance(score, Bilinear | Additive):
        raise TypeError(f"{op}: score is {score!r}; expected a name, a Bilinear or an Additive")
    arrays = {f.name: _array.floating(op, f"score.{f.name}", getattr(score, f.name)) for f in fields(score)}
    made: Any = type(score)
    return made(**arrays)


def parameters(score: Any) -> tuple[Array, ...]:
    return () if isinstance(score, str) else tuple(getattr(score, f.name) for f in fields(score))


def typed(score: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(score, str):
        return score
    return replace(score, **{f.name: _array.typed(getattr(score, f.name), dtype) for f in fields(score)})


def default_scale(score: Any, width: int) -> float:
    """1/sqrt(d) where products of d numbers are added up; 1 where a score is normalised or has weights of its own."""
    return 1 / sqrt(width) if width and isinstance(score, str) and score != "cosine" else 1.0


# Takes gradients of what was compared, by name, and returns those of query, key and, if it has parameters, score.
Back = Callable[[dict[str, Array]], dict[str, Any]]


def compare(op: str, score: Any, query: Array, key: Array) -> tuple[Array, Array, Array | None, Back]:
    """Query and key as they meet: their scalar product is the score or, with a vector v, v . tanh(k + q) is."""
    if query.ndim < 2 or key.ndim < 2:  # for the core to refuse
        return query, key, None, dict
    if isinstance(score, Bilinear):
        return _bilinear(op, score, query, key)
    if isinstance(score, Additive):
        return _additive(op, score, query, key)
    if score == "dot":
        return query, key, None, dict
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"{op}: key has shape {key.shape}; expected (..., m, d={query.shape[-1]})")
    through = _unit if score == "cosine" else _lifted
    (q, back_q), (k, back_k) = through(query, True), through(key, False)
    return q, k, None, lambda g: {"query": back_q(g["query"]), "key": back_k(g["key"])}


def _unit(x: Array, _: bool) -> tuple[Array, Callable[[Array], Array]]:
    """x / |x|; zeros, with zero gradients, of a zero vector."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        most = np.abs(x).max(axis=-1, keepdims=True, initial=0)
        length = most * np.sqrt(np.square(x / np.where(most > 0, most, 1)).sum(axis=-1, keepdims=True))
        unit = x / np.where(length == 0, 1, length)

    def back(g: Array) -> Array:
        # What nothing attends to may hold NaN, and has the cotangent zero.
        u = finite(unit)
        with np.errstate(divide="ignore"):
            inverse = np.where(length > 0, 1 / length, x.dtype.type(0))
        d_x: Array = (g - u * (g * u).sum(axis=-1, keepdims=True)) * inverse
        return d_x

    return unit, back


def _lifted(x: Array, is_query: bool) -> tuple[Array, Callable[[Array], Array]]:
    """-|q - k|^2 / 2 = [q, 1, -|q|^2 / 2] . [k, -|k|^2 / 2, 1]"""
    with np.errstate(over="ignore", invalid="ignore"):
        half = np.square(x).sum(axis=-1, keepdims=True) / -2
    one = np.ones_like(half)
    lifted = np.concatenate([x, one, half] if is_query else [x, half, one], axis=-1)
    place = -1 if is_query else -2

    def back(g: Array) -> Array:
        d_x: Array = g[..., :-2] - g[..., place, None] * finite(x)
        return d_x

    return lifted, back


def _weight(op: str, name: str, weight: Array, rows: int | None, columns: int, form: str) -> None:
    if weight.ndim < 2 or weight.shape[-1] != columns or rows not in (None, weight.shape[-2]):
        raise ValueError(f"{op}: score.{name} has shape {weight.shape}; expected {form}")


def _bilinear(op: str, score: Any, query: Array, key: Array) -> tuple[Array, Array, None, Back]:
    weight, rows, columns = score.weight, query.shape[-1], key.shape[-1]
    _weight(op, "weight", weight, rows, columns, f"(..., d_query={rows}, d_key={columns})")
    _array.leading_axes(op, ("query", query, 2), ("score.weight", weight, 2))

    def back(g: dict[str, Array]) -> dict[str, Any]:
        d_query, d_weight = product_back(query, weight, g["query"])
        return {"query": d_query, "key": g["key"], "score": Bilinear(d_weight)}

    return product(query, weight), key, None, back


def _additive(op: str, score: Any, query: Array, key: Array) -> tuple[Array, Array, Array, Back]:
    w, u, v = score.key_weight, score.query_weight, score.vector
    _weight(op, "key_weight", w, None, key.shape[-1], f"(..., A, d_key={key.shape[-1]})")
    units = w.shape[-2]
    _weight(op, "query_weight", u, units, query.shape[-1], f"(..., A={units}, d_query={query.shape[-1]})")
    if v.ndim < 1 or v.shape[-1] != units:
        raise ValueError(f"{op}: score.vector has shape {v.shape}; expected (..., A={units})")
    _array.leading_axes(op, ("key", key, 2), ("score.key_weight", w, 2))
    _array.leading_axes(op, ("query", query, 2), ("score.query_weight", u, 2))
    w_t, u_t = w.swapaxes(-1, -2), u.swapaxes(-1, -2)

    def back(g: dict[str, Array]) -> dict[str, Any]:
        (d_key, d_w), (d_query, d_u) = product_back(key, w_t, g["key"]), product_back(query, u_t, g["query"])
        d_v = _array.sum_to_shape(g["vector"], v.shape)
        return {"query": d_query, "key": d_key, "score": Additive(d_w.swapaxes(-1, -2), d_u.swapaxes(-1, -2), d_v)}

    return product(query, u_t), product(key, w_t), v, back


def product(x: Array, weight: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # of what nothing attends to, and may hold anything
        result: Array = x @ weight
    return result


def product_back(x: Array, weight: Array, g: Array) -> tuple[Array, Array]:
    """d_x = g W^T and d_W = x^T g of x W, each of its operand's shape."""
    d_x = _array.sum_to_shape(g @ weight.swapaxes(-1, -2), x.shape)
    return d_x, _array.sum_to_shape(finite(x).swapaxes(-1, -2) @ g, weight.shape)


def finite(x: Array) -> Array:
    """Zero for what is not finite: such a number either meets the cotangent zero, or one that is NaN already."""
    keep = np.isfinite(x)
    return x if keep.all() else np.where(keep, x, x.dtype.type(0))
