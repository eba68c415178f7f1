# SPDX-License-Identifier: BSD-3-Clause
"""`backtracking.sparse_read` for arrays of a CUDA device. What is multiplied before the scores is multiplied by the caller's framework."""

from __future__ import annotations

from typing import Any

from . import _array
from ._device import Call, type_name
from ._sparse_read_checks import check_axes, check_parameters

__all__ = ["sparse_read"]


def sparse_read(
    query: Any, memory: Any, k_top: Any, score: str, parameters: dict[str, Any], lengths: Any, stream: Any
) -> tuple[Any, Any, Any]:
    """Value, indices and weights."""
    op = "backtracking.sparse_read"
    given = {name: array for name, array in parameters.items() if array is not None}
    call = Call(op, stream, {"query": query, "memory": memory, **given, "lengths": lengths})
    check_axes(op, query=query, memory=memory, keys=given.get("keys"))
    shapes = {name: tuple(array.shape) for name, array in given.items()}
    check_parameters(op, score, tuple(query.shape), tuple(memory.shape), shapes)
    count = memory.shape[-2]
    k = count if k_top is None else min(_array.whole(op, "k_top", k_top, 1, expected="1 or more"), count)
    asked, keys = query, memory
    if score == "bilinear":
        asked = query @ given["weight"]
    if score == "additive":
        asked = query @ given["w2"].T
        keys = given["keys"] if "keys" in given else memory @ given["w1"].T
    own = (("query", asked, 2), ("keys", keys, 2), ("memory", memory, 2), ("lengths", lengths, 0))
    lead = (*_array.leading_axes(op, *own), query.shape[-2])
    value = call.empty((*lead, memory.shape[-1]), type_name(query))
    indices, weights = call.empty((*lead, k), "int64"), call.empty((*lead, k), "float32")
    operands = (asked, keys, memory, given.get("w3"), lengths)
    call.module.backtracking_sparse_read(call.place, *map(call.capsule, (*operands, value, indices, weights)))
    return value, indices, weights
