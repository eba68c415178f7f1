# SPDX-License-Identifier: BSD-3-Clause
"""`backtracking.sparse_read` for arrays of a CUDA device. What is multiplied before the scores is multiplied by the caller's framework."""

from __future__ import annotations

from typing import Any

from . import _array
from ._device import Call, type_name
from ._sparse_read_checks import check_axes, check_parameters

__all__ = ["DeviceReading"]


class DeviceReading:
    """One sparse read: its operands as the module takes them, its results, and its pullback."""

    op = "backtracking.sparse_read"

    def __init__(
        self, query: Any, memory: Any, k_top: Any, score: str, parameters: dict[str, Any], lengths: Any, stream: Any
    ) -> None:
        op, given = self.op, {name: array for name, array in parameters.items() if array is not None}
        self.call = Call(op, stream, {"query": query, "memory": memory, **given, "lengths": lengths})
        check_axes(op, query=query, memory=memory, keys=given.get("keys"))
        shapes = {name: tuple(array.shape) for name, array in given.items()}
        check_parameters(op, score, tuple(query.shape), tuple(memory.shape), shapes)
        count = memory.shape[-2]
        self.k = count if k_top is None else min(_array.whole(op, "k_top", k_top, 1, expected="1 or more"), count)
        self.query, self.memory, self.score, self.given, self.lengths = query, memory, score, given, lengths
        self.asked, self.keys = query, memory
        if score == "bilinear":
            self.asked = query @ given["weight"]
        if score == "additive":
            self.asked = query @ given["w2"].T
            self.keys = given["keys"] if "keys" in given else memory @ given["w1"].T
        own = (("query", self.asked, 2), ("keys", self.keys, 2), ("memory", memory, 2), ("lengths", lengths, 0))
        self.lead = (*_array.leading_axes(op, *own), query.shape[-2])

    def _operands(self) -> tuple[Any, ...]:
        operands = (self.asked, self.keys, self.memory, self.given.get("w3"), self.lengths)
        return (self.call.place, *map(self.call.capsule, operands))

    def run(self) -> tuple[Any, Any, Any]:
        """Value, indices and weights."""
        value = self.call.empty((*self.lead, self.memory.shape[-1]), type_name(self.query))
        indices, weights = (self.call.empty((*self.lead, self.k), dtype) for dtype in ("int64", "float32"))
        self.call.module.backtracking_sparse_read(*self._operands(), *map(self.call.capsule, (value, indices, weights)))
        return value, indices, weights

    def check_differentiable(self) -> None:
        if self.score == "additive":
            raise ValueError(
                f"{self.op}: score is 'additive'; expected 'dot' or 'bilinear' in vjp on a CUDA device so far"
            )

    def pullback(self, d_value: Any) -> dict[str, Any]:
        """Gradients by name; what was read is chosen again."""
        call = self.call
        if d_value is None:
            raise TypeError(f"{self.op}: d_value is None; expected an array on cuda:{call.card}")
        shape = (*self.lead, self.memory.shape[-1])
        cotangent = call.output(d_value, shape, type_name(self.query), "d_value")
        d_asked, d_memory = (call.empty(tuple(a.shape), type_name(a)) for a in (self.asked, self.memory))
        call.module.backtracking_sparse_read_backward(
            *self._operands(), self.k, *map(call.capsule, (cotangent, d_asked, None, d_memory))
        )
        to = {"query": d_asked, "memory": d_memory}
        if self.score == "bilinear":
            rows = self.query.reshape(-1, self.query.shape[-1])
            to["weight"] = rows.T @ d_asked.reshape(-1, d_asked.shape[-1])
            to["query"] = d_asked @ self.given["weight"].T
        return to
