# SPDX-License-Identifier: BSD-3-Clause
"""The pullback of `attention.attend`."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array, _attention, _device
from . import _attention_operands as attention
from ._core import core
from ._device_vjp import attend as attend_on_device
from ._score_blocks import Scores, attend_blocks_backward
from ._vjp import pullback_of


@pullback_of(_attention.attend)
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
    score: Any = "dot",
    top_k: Any = None,
    return_lse: bool = False,
    out: Any = None,
    stream: Any = None,
) -> tuple[NDArray[Any], Callable[[Any], Any]]:
    op = "attention.attend"
    if return_lse:
        raise ValueError(f"{op}: return_lse is True; expected False in vjp, where only out has a gradient")
    if out is not None:
        raise ValueError(f"{op}: out is given; expected None in vjp, which keeps what it computes")
    if _device.found(query, key, value):
        options: dict[str, Any] = {"scale": scale, "causal": causal, "mask": mask, "bias": bias, "stream": stream}
        options |= {"sink": sink, "separation": separation, "top_k": top_k, "score": (score, "dot")}
        return attend_on_device(op, query, key, value, **options)
    _device.refuse_stream(op, stream)
    given = attention.operands(op, query, key, value, scale, causal, mask, bias, sink, score)
    compared, back = attention.compare(op, given)
    ops, heads = attention.grouped(op, compared)
    shape = attention.rows_shape(op, ops)
    result = np.empty((*shape, attention.width_of(ops.value)), ops.dtype)
    name, parameter = attention.separated(op, separation, top_k, ops)
    # What the gradient of a softmax needs again; other separations keep nothing.
    kept: list[Any] = [np.empty(shape, ops.dtype) if name == "softmax" else None for _ in range(2)]
    told = {"largest": kept[0], "log_sum": kept[1]} if name == "softmax" else {}
    _attention.read(op, ops, name, parameter, result, **told)
    outside = attention.ungrouped(result.shape, heads, 2)

    def pullback(d_out: Any) -> Any:
        cotangent = _array.cotangent(op, d_out, outside, ops.dtype).reshape(result.shape)
        if ops.vector is None:
            room = {
                n: np.empty(getattr(ops, n).shape, np.float64 if n in ("scale", "sink") else ops.dtype)
                for n in ("query", "key", "value", "scale", "bias", "sink")
                if getattr(given, n) is not None and (n != "scale" or scale is not None)
            }
            to: dict[str, Any] = {f"d_{n}": gradient for n, gradient in room.items()}
            to |= ops.for_core() | {"separation": name, "parameter": parameter, "largest": kept[0], "log_sum": kept[1]}
            core.attention_attend_backward(out=result, d_out=cotangent, **to)
        else:
            scores = Scores(op, ops)
            room = attend_blocks_backward(scores, ops.value, ops.sink, (name, parameter), kept, result, cotangent)
            room |= scores.gradients()
        return collected("AttendGradients", given, compared, back, room, scale is not None)

    return result.reshape(outside).copy(), pullback


def collected(
    kind: str,
    given: attention.Operands,
    compared: attention.Operands,
    back: Callable[[dict[str, Any]], dict[str, Any]],
    room: dict[str, NDArray[Any]],
    wants_scale: bool,
    **more: NDArray[Any],
) -> Any:
    """A named tuple of gradients in the shapes that the caller knows their operands by, from those of grouped operands."""
    met: dict[str, Any] = {
        n: room[n].reshape(getattr(compared, n).shape) for n in ("query", "key", "vector") if n in room
    }
    found: dict[str, Any] = back(met)
    gradients = {"query": found["query"], "key": found["key"]}
    for name in ("value", "scale", "bias", "sink"):
        if name in room and (name != "scale" or wants_scale):
            gradients[name] = room[name].reshape(getattr(given, name).shape).astype(given.dtype, copy=False)
    if "score" in found:
        gradients["score"] = found["score"]
    gradients |= more
    return namedtuple(kind, gradients)(**gradients)
