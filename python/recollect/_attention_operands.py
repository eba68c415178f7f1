# SPDX-License-Identifier: BSD-3-Clause
"""The operands of attention: types, scores, leading axes and heads; whatever reads through attention weights begins here."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _array, _score
from ._score import Additive
from ._separation import split

Causal = bool | Literal["top-left"]


class Operands(NamedTuple):
    """The operands as the core takes them."""

    query: NDArray[Any]
    key: NDArray[Any]
    value: Any  # an array, or None for those that read none
    scale: NDArray[Any]
    mask: NDArray[np.bool_] | None
    bias: NDArray[Any] | None
    sink: NDArray[Any] | None
    causal: str
    dtype: np.dtype[Any]
    score: Any = "dot"
    vector: NDArray[Any] | None = None  # of the additive score, whose query and key are hidden units

    def for_core(self) -> dict[str, Any]:
        """Those of a fused read, by name."""
        return dict(zip(self._fields[:7], self[:7], strict=True)) | {"causal": self.causal}


def separated(op: str, separation: Any, top_k: Any, ops: Operands) -> tuple[str, float]:
    """The separation by name and parameter; top_k is another name for one."""
    if top_k is None:
        return split(op, separation)
    if separation != "softmax":
        raise ValueError(f"{op}: separation is {separation!r}; expected 'softmax' beside top_k")
    keys = ops.key.shape[-2] if ops.key.ndim >= 2 else 0
    k = _array.whole(
        op, "top_k", top_k, 1, keys, expected=f"a number from 1 to m={keys}", kind="a whole number or None"
    )
    return "top_k_softmax", float(k)


def operands(
    op: str, query: Any, key: Any, value: Any, scale: Any, causal: Any, mask: Any, bias: Any, sink: Any, score: Any
) -> Operands:
    """Types; shapes are checked by the core."""
    score = _score.checked(op, score)
    q = _array.floating(op, "query", query)
    k = _array.floating(op, "key", key, halves=True)
    v = None if value is None else _array.floating(op, "value", value, halves=True)
    b = None if bias is None else _array.floating(op, "bias", bias)
    dtype = _array.arithmetic(q, k, v, b, *_score.parameters(score))
    if isinstance(causal, np.bool_):
        causal = bool(causal)
    if not isinstance(causal, bool) and not (isinstance(causal, str) and causal == "top-left"):
        raise ValueError(f"{op}: causal is {causal!r}; expected False, True or 'top-left'")
    if scale is not None and isinstance(score, Additive):
        raise ValueError(f"{op}: scale is given beside an additive score; expected None, as its vector is the scale")
    if scale is None:
        scale = _score.default_scale(score, q.shape[-1] if q.ndim else 0)
    # Keys that are compared as they are may stay in half width.
    in_place = (isinstance(score, str) and score == "dot") or isinstance(score, _score.Bilinear)
    return Operands(
        _array.typed(q, dtype),
        _array.stored(k, dtype) if in_place else _array.typed(k, dtype),
        None if v is None else _array.stored(v, dtype),
        _array.scalars(op, "scale", scale),
        _array.keep_mask(op, mask),
        None if b is None else _array.typed(b, dtype),
        None if sink is None else _array.scalars(op, "sink", sink),
        "none" if causal is False else "top-left" if causal == "top-left" else "bottom-right",
        dtype,
        _score.typed(score, dtype),
    )


def compare(op: str, ops: Operands) -> tuple[Operands, _score.Back]:
    """The operands with query and key as they meet, and the way back for gradients."""
    query, key, vector, back = _score.compare(op, ops.score, ops.query, ops.key)
    return ops._replace(query=query, key=key, vector=vector), back


def width_of(value: NDArray[Any] | None) -> int:
    return value.shape[-1] if value is not None and value.ndim >= 2 else 0


def rows_shape(op: str, ops: Operands) -> tuple[int, ...]:
    """The shape of what has one entry per query."""
    leading = _array.leading_axes(
        op,
        ("query", ops.query, 2),
        ("key", ops.key, 2),
        ("value", ops.value, 2),
        ("scale", ops.scale, 0),
        ("mask", ops.mask, 2),
        ("bias", ops.bias, 2),
        ("sink", ops.sink, 0),
        ("score.vector", ops.vector, 1),
    )
    return (*leading, ops.query.shape[-2] if ops.query.ndim >= 2 else 0)


def grouped(op: str, ops: Operands) -> tuple[Operands, int]:
    """Fewer key heads than query heads: the query heads become (key heads, group), by reshaping views only. Returns the number of
    query heads, or 0 where there is nothing to group."""
    if ops.query.ndim < 3 or ops.key.ndim < 3 or (ops.value is not None and ops.value.ndim < 3):
        return ops, 0
    heads, served = ops.query.shape[-3], ops.key.shape[-3]
    if heads == served or 1 in (heads, served) or (ops.value is not None and ops.value.shape[-3] != served):
        return ops, 0
    if heads % served:
        raise ValueError(
            f"{op}: key has shape {ops.key.shape}; expected a number of heads (axis -3) that divides the {heads} of query"
        )
    split = (served, heads // served)

    def by_group(array: NDArray[Any], own: int) -> NDArray[Any]:
        axis = array.ndim - own - 1
        if axis < 0:
            return array
        middle = split if array.shape[axis] == heads else (1, 1)
        if array.shape[axis] not in (1, heads):
            return array
        return array.reshape(*array.shape[:axis], *middle, *array.shape[axis + 1 :])

    return ops._replace(
        query=by_group(ops.query, 2),
        key=ops.key[..., None, :, :],
        value=None if ops.value is None else ops.value[..., None, :, :],
        scale=by_group(ops.scale, 0),
        mask=None if ops.mask is None else by_group(ops.mask, 2),
        bias=None if ops.bias is None else by_group(ops.bias, 2),
        sink=None if ops.sink is None else by_group(ops.sink, 0),
        vector=None if ops.vector is None else by_group(ops.vector, 1),
    ), heads


def ungrouped(shape: tuple[int, ...], heads: int, own: int) -> tuple[int, ...]:
    """The shape of an output of grouped operands, heads in one axis again."""
    if not heads:
        return shape
    return (*shape[: -own - 2], heads, *shape[len(shape) - own :])
