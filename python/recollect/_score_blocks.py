# SPDX-License-Identifier: BSD-3-Clause
"""Scores as numbers, for reads that are not one softmax of scalar products: some rows at a time, so that memory never holds n x m."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array
from ._attention_operands import Operands, rows_shape
from ._core import core
from ._score import finite

Array = NDArray[Any]
Rows = slice

NUMBERS_AT_ONCE = 1 << 20


def blocks(shape: tuple[int, ...]) -> Iterator[Rows]:
    """The rows of scores (..., n, m), some at a time; how many depends on the shape alone."""
    n, others = shape[-2], prod(shape[:-2]) * shape[-1]
    step = max(NUMBERS_AT_ONCE // max(others, 1), 1)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))


def rows_of(array: Array | None, rows: Rows) -> Array | None:
    """The rows of an operand that has them, or is broadcast over them."""
    if array is None or array.ndim < 2 or array.shape[-2] == 1:
        return array
    return array[..., rows, :]


class Scores:
    """The scores (..., n, m) of compared and grouped operands, -inf where a query may not attend, and the gradients of those operands.

    A block of rows is scored, then given its cotangents, zero where the score is -inf.
    """

    def __init__(self, op: str, ops: Operands) -> None:
        if ops.key.dtype == np.uint16:  # the bits of bfloat16
            raise TypeError(f"{op}: key has dtype bfloat16; expected float32 or float64 here")
        self.op = op
        self.ops = ops._replace(key=ops.key.astype(ops.dtype, copy=False))
        shape = rows_shape(op, self.ops)
        self.shape = (*shape, ops.key.shape[-2] if ops.key.ndim >= 2 else 0)
        self._shift = {"none": None, "top-left": 0, "bottom-right": self.shape[-1] - self.shape[-2]}[ops.causal]
        self._into: dict[str, Array] = {}

    def of(self, rows: Rows) -> Array:
        ops = self.ops
        z: Array = np.empty((*self.shape[:-2], rows.stop - rows.start, self.shape[-1]), ops.dtype)
        shift = None if self._shift is None else self._shift + rows.start
        seen = rows_of(ops.mask, rows), rows_of(ops.bias, rows), shift, z
        # Leading axes that only other operands have: a view of the query that has them all.
        query = rows_of(ops.query, rows)
        assert query is not None
        query = np.broadcast_to(query, (*self.shape[:-2], *query.shape[-2:])) if ops.query.ndim >= 2 else query
        if ops.vector is None:
            core.score_dot(self.op, query, ops.key, ops.scale, *seen)
        else:
            core.score_additive(self.op, query, ops.key, ops.vector, *seen)
        return z

    def pull(self, rows: Rows, d_z: Array) -> None:
        """Adds what a block of rows gives to the gradients."""
        ops = self.ops
        query = ops.query[..., rows, :]
        if ops.vector is None:
            towards, scale = d_z @ self._finite_key(), ops.scale[..., None, None].astype(ops.dtype)
            self._add("query", scale * towards, rows)
            self._add("key", (scale * d_z).swapaxes(-1, -2) @ finite(query))
            self._add("scale", (finite(query) * towards).sum(axis=(-1, -2), dtype=np.float64))
        else:
            lead, units = self.shape[:-2], query.shape[-1]
            room = [np.empty((*lead, *own, units), ops.dtype) for own in (query.shape[-2:-1], self.shape[-1:], ())]
            query = np.broadcast_to(query, (*lead, *query.shape[-2:]))
            core.score_additive_backward(self.op, query, ops.key, ops.vector, d_z, *room)
            self._add("query", room[0], rows)
            self._add("key", room[1])
            self._add("vector", room[2])
        if ops.bias is not None:
            by_row = ops.bias.ndim >= 2 and ops.bias.shape[-2] != 1
            self._add("bias", d_z, rows if by_row else None)

    def _finite_key(self) -> Array:
        if "finite" not in self.__dict__:
            self.finite = finite(self.ops.key)
        return self.finite

    def _add(self, name: str, gradient: Array, rows: Rows | None = None) -> None:
        """To the gradient of an operand or, with `rows`, to those rows of it."""
        operand = getattr(self.ops, name)
        if name not in self._into:
            self._into[name] = np.zeros(operand.shape, gradient.dtype)
        into = self._into[name] if rows is None else self._into[name][..., rows, :]
        into += _array.sum_to_shape(gradient, into.shape)

    def gradients(self) -> dict[str, Array]:
        """Of query, key, scale, bias and vector, zero where no row was."""
        names = [name for name in ("query", "key", "scale", "bias", "vector") if getattr(self.ops, name) is not None]
        return {name: self._into.get(name, np.zeros(getattr(self.ops, name).shape, self.ops.dtype)) for name in names}


def _scored(z: Array, value: Array, sink: Array | None, separation: tuple[str, float]) -> dict[str, Any]:
    """The operands of a read whose scores are known: they are the bias of scalar products of zeros."""
    query, key = np.zeros((z.shape[-2], 1), z.dtype), np.zeros((z.shape[-1], 1), z.dtype)
    known = {"query": query, "key": key, "value": value, "scale": np.array(1.0), "mask": None, "bias": z, "sink": sink}
    return known | {"causal": "none", "separation": separation[0], "parameter": separation[1]}


def attend_blocks(
    scores: Any, value: Array, sink: Array | None, separation: tuple[str, float], out: Array, **told: Any
) -> None:
    """Reads values with scores that are made block by block."""
    for rows in blocks(scores.shape):
        z = scores.of(rows)
        some = {name: array[..., rows] for name, array in told.items()}
        core.attention_attend(out=out[..., rows, :], **_scored(z, value, sink, separation), **some)


def attend_blocks_backward(
    scores: Any, value: Array, sink: Array | None, separation: tuple[str, float], kept: Any, out: Array, d_out: Array
) -> dict[str, Array]:
    """Gradients of value and sink; those of the scores' operands go to `scores`."""
    total: dict[str, Array] = {"value": np.zeros(value.shape, out.dtype)}
    if sink is not None:
        total["sink"] = np.zeros(sink.shape)
    for rows in blocks(scores.shape):
        z = scores.of(rows)
        room: dict[str, Any] = {f"d_{name}": np.empty_like(array) for name, array in total.items()}
        room["d_bias"] = np.empty_like(z)
        room |= {n: None if a is None else a[..., rows] for n, a in zip(("largest", "log_sum"), kept, strict=True)}
        room |= _scored(z, value, sink, separation)
        core.attention_attend_backward(out=out[..., rows, :], d_out=d_out[..., rows, :], **room)
        scores.pull(rows, room["d_bias"])
        for name in total:
            total[name] += room[f"d_{name}"]
    return total


def in_full(op: str, name: str, value: Any) -> Array:
    """An operand whose numbers are used here: halves in float32."""
    array = _array.floating(op, name, value, halves=True)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
