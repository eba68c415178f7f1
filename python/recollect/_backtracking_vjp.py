# SPDX-License-Identifier: BSD-3-Clause
"""The pullback of `backtracking.sparse_read`."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from . import _device, backtracking
from ._device_read import DeviceReading
from ._sparse_read import Reading, SparseRead
from ._vjp import pullback_of


@pullback_of(backtracking.sparse_read, "backtracking")
def sparse_read(
    query: Any,
    memory: Any,
    *,
    k_top: Any,
    score: Any = "additive",
    w1: Any = None,
    w2: Any = None,
    w3: Any = None,
    weight: Any = None,
    keys: Any = None,
    lengths: Any = None,
    stream: Any = None,
) -> tuple[SparseRead, Callable[[Any], Any]]:
    if keys is not None and w1 is not None:
        raise ValueError("backtracking.sparse_read: w1 is given beside keys; expected one of them in vjp")
    parameters = {"w1": w1, "w2": w2, "w3": w3, "weight": weight, "keys": keys}
    names = ["query", "memory", *(name for name, value in parameters.items() if value is not None)]

    def pullback(d_value: Any) -> Any:
        gradients = read.pullback(d_value)
        return namedtuple("SparseReadGradients", names)(*(gradients[name] for name in names))

    read: Reading | DeviceReading
    if _device.found(query, memory):
        read = DeviceReading(query, memory, k_top, score, parameters, lengths, stream)
        read.check_differentiable()
        return SparseRead(*read.run()), pullback
    _device.refuse_stream("backtracking.sparse_read", stream)
    read = Reading(query, memory, k_top, score, parameters, lengths)
    return SparseRead(read.value.copy(), read.indices.copy(), read.weights.copy()), pullback
