# SPDX-License-Identifier: BSD-3-Clause
"""Values with their pullbacks for arrays of a CUDA device. What a gradient needs again is kept in arrays of the caller's kind."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from . import _device_ops as device
from ._device import Call, holds, type_name

__all__ = ["attend", "energy", "retrieve"]


class Gradients:
    """Room for the gradients of what was given, by name: of each operand's shape and type. `numbers` are those that may be numbers,
    with gradients in float32."""

    def __init__(self, call: Call, wanted: dict[str, Any], *numbers: str) -> None:
        self.arrays: dict[str, Any] = {}
        for name, array in wanted.items():
            if name in numbers and array is not None:
                self.arrays[name] = call.empty(tuple(array.shape) if holds(array) else (), "float32")
            elif array is not None:
                self.arrays[name] = call.empty(tuple(array.shape), type_name(array))

    def capsules(self, call: Call, **shapes: tuple[int, ...]) -> dict[str, Any]:
        """As the module takes them; `shapes` are of those that it knows by another shape."""
        views = {n: a.reshape(shapes[n]) if n in shapes else a for n, a in self.arrays.items()}
        return {f"d_{name}": call.capsule(view) for name, view in views.items()}

    def named(self, kind: str) -> Any:
        return namedtuple(kind, self.arrays)(**self.arrays)


def cotangent(call: Call, value: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """d_out, which lies where the output does and is of its type."""
    if value is None:
        raise TypeError(f"{call.op}: d_out is None; expected an array on cuda:{call.card}")
    return call.output(value, shape, dtype, "d_out")


def attend(
    op: str, query: Any, key: Any, value: Any, *, scale: Any, bias: Any, sink: Any, **given: Any
) -> tuple[Any, Callable[[Any], Any]]:
    """The pullback of `attention.attend`."""
    read = device.Reading(op, query, key, value, scale=scale, bias=bias, sink=sink, **given)
    for name, array in (("bias", bias), ("sink", sink)):
        if array is not None and read.separation != "softmax":
            raise ValueError(f"{op}: {name} is given beside top_k; expected None in vjp on a CUDA device so far")
    call, ops = read.call, read.ops
    out = call.empty(read.outside, type_name(query))
    kept = {name: call.empty(read.shape, "float32") for name in ("largest", "log_sum")}
    read.run(out, **kept)

    def pullback(d_out: Any) -> Any:
        d = cotangent(call, d_out, read.outside, type_name(query))
        wanted = {"query": query, "key": key, "value": value, "scale": scale, "bias": bias, "sink": sink}
        to = Gradients(call, wanted, "scale", "sink")
        inside = {name: tuple(getattr(ops, name).shape) for name in to.arrays if holds(wanted[name])}
        call.module.attention_attend_backward(
            *read.arguments(),
            *map(call.capsule, kept.values()),
            call.capsule(out.reshape(read.full)),
            call.capsule(d.reshape(read.full)),
            **to.capsules(call, **inside),
            **read.sinks(),
        )
        return to.named("AttendGradients")

    return out, pullback


def retrieve(op: str, state: Any, patterns: Any, *, beta: Any, **given: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The pullback of `hopfield.retrieve`: every step is kept, O(steps n d) memory."""
    read = device.Retrieval(op, state, patterns, beta=beta, **given)
    call, dtype = read.call, type_name(state)
    between = (*read.shape, state.shape[-1] if state.ndim else 0)
    out = call.empty(read.outside, dtype)
    steps = [
        (
            None if step + 1 == read.steps else call.empty(between, dtype),
            call.empty(read.shape, "float32"),
            call.empty(read.shape, "float32"),
        )
        for step in range(read.steps)
    ]

    def kept() -> list[Any]:
        return [tuple(map(call.capsule, step)) for step in steps]

    read.run(out, kept())

    def pullback(d_out: Any) -> Any:
        d = cotangent(call, d_out, read.outside, dtype)
        wanted = {"state": state, "patterns": patterns, "beta": beta, "values": read.values}
        to = Gradients(call, wanted, "beta")
        call.module.hopfield_retrieve_backward(
            *read.arguments(), read.steps, read.tol, kept(), call.capsule(out), call.capsule(d), **to.capsules(call)
        )
        return to.named("RetrieveGradients")

    return out, pullback


def energy(op: str, state: Any, patterns: Any, *, beta: Any, **given: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The pullback of `hopfield.energy`."""
    look = device.Look(op, state, patterns, beta=beta, **given)
    call = look.call
    kept = [call.empty(look.shape, "float32") for _ in range(2)]
    out = call.empty(look.shape, "float32")
    look.run(out, None, *kept)

    def pullback(d_out: Any) -> Any:
        d = cotangent(call, d_out, look.shape, "float32")
        to = Gradients(call, {"state": state, "patterns": patterns, "beta": beta}, "beta")
        call.module.hopfield_energy_backward(
            *look.arguments(), *map(call.capsule, kept), call.capsule(d), **to.capsules(call)
        )
        return to.named("EnergyGradients")

    return out, pullback
