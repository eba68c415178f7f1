# SPDX-License-Identifier: BSD-3-Clause
"""The public ops for arrays of a CUDA device: what they do there, and one sentence for what they do not do there yet."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from . import _array
from ._attention_operands import Operands, grouped, rows_shape, separated, ungrouped, width_of
from ._device import Call, holds, type_name
from ._separation import split

__all__ = [
    "Look",
    "Reading",
    "Retrieval",
    "attend",
    "energy",
    "fast_weight",
    "fast_weight_backward",
    "retrieve",
]


def unsupported(op: str, **wanted: tuple[Any, Any]) -> None:
    """Every argument has the only value that a device can do: name=(value, the one possible)."""
    for name, (value, only) in wanted.items():
        if value is not only and value != only:
            raise ValueError(f"{op}: {name} is {value!r}; expected {only!r}, the only one on a CUDA device so far")


class Reading:
    """One read of `attention.attend`: its operands with heads grouped, and the shapes of what it writes."""

    def __init__(
        self,
        op: str,
        query: Any,
        key: Any,
        value: Any,
        *,
        scale: Any,
        causal: Any,
        mask: Any,
        bias: Any,
        sink: Any,
        separation: Any,
        top_k: Any,
        stream: Any,
        **others: tuple[Any, Any],
    ) -> None:
        unsupported(op, **others)
        if split(op, separation)[0] not in ("softmax", "top_k_softmax"):
            only = "'softmax' or ('top_k_softmax', k), the only ones on a CUDA device so far"
            raise ValueError(f"{op}: separation is {separation!r}; expected {only}")
        self.call = Call(op, stream, {"query": query, "key": key, "value": value, "mask": mask, "bias": bias})
        if causal not in (False, True, "top-left"):
            raise ValueError(f"{op}: causal is {causal!r}; expected False, True or 'top-left'")
        rule = "none" if causal is False else "top-left" if causal == "top-left" else "bottom-right"
        factor = scale if holds(scale) else np.array(1.0)  # for its leading axes alone
        drain = sink if holds(sink) else None
        operands = Operands(query, key, value, factor, mask, bias, drain, rule, np.dtype(np.float32))
        self.scale, self.sink = scale, sink
        self.ops, self.heads = grouped(op, operands)
        name, parameter = separated(op, separation, top_k, self.ops)
        self.separation = name if name == "softmax" else (name, parameter)
        self.shape = rows_shape(op, self.ops)
        self.full = (*self.shape, width_of(self.ops.value))
        self.outside = ungrouped(self.full, self.heads, 2)

    def arguments(self) -> tuple[Any, ...]:
        """What the module takes first, forward and backward; capsules can be taken once."""
        ops, call = self.ops, self.call
        width = ops.query.shape[-1] if ops.query.ndim else 0
        number, own = call.scale("scale", self.scale, 1 / float(np.sqrt(width)) if width else 1.0)
        if own is not None:
            own = call.capsule(ops.scale)
        arrays = map(call.capsule, (ops.query, ops.key, ops.value))
        masks = map(call.capsule, (ops.mask, ops.bias))
        return (call.place, *arrays, (number, own), *masks, ops.causal, self.separation)

    def sinks(self) -> dict[str, Any]:
        """The sink, if there is one, as the module takes it: by name."""
        if self.sink is None:
            return {}
        number, own = self.call.scale("sink", self.sink, 0.0)
        return {"sink": (number, None if own is None else self.call.capsule(self.ops.sink))}

    def run(self, out: Any, lse: Any = None, **kept: Any) -> None:
        told = map(self.call.capsule, (out.reshape(self.full), lse))
        saved = {name: self.call.capsule(array) for name, array in kept.items()} | self.sinks()
        self.call.module.attention_attend(*self.arguments(), *told, **saved)


def attend(op: str, query: Any, key: Any, value: Any, *, return_lse: bool, out: Any, **given: Any) -> tuple[Any, Any]:
    """`attention.attend`; returns out and lse (or None)."""
    read = Reading(op, query, key, value, **given)
    result = read.call.output(out, read.outside, type_name(query))
    lse = read.call.empty(read.shape, "float32") if return_lse else None
    read.run(result, lse)
    return result, None if lse is None else lse.reshape(ungrouped(read.shape, read.heads, 1))


class Look:
    """State patterns compared with stored ones: what `hopfield.energy` and `hopfield.retrieve` begin with."""

    def __init__(
        self,
        op: str,
        state: Any,
        patterns: Any,
        *,
        beta: Any,
        mask: Any,
        stream: Any,
        values: Any = None,
        **others: tuple[Any, Any],
    ) -> None:
        unsupported(op, **others)
        self.call = Call(op, stream, {"state": state, "patterns": patterns, "values": values, "mask": mask})
        if beta is None:
            raise TypeError(f"{op}: beta is None; expected a number, or an array on cuda:{self.call.card}")
        self.state, self.patterns, self.values, self.beta, self.mask = state, patterns, values, beta, mask
        leading = _array.leading_axes(
            op,
            ("state", state, 2),
            ("patterns", patterns, 2),
            ("values", values, 2),
            ("beta", beta if holds(beta) else None, 0),
            ("mask", mask, 2),
        )
        self.shape = (*leading, state.shape[-2] if state.ndim >= 2 else 0)

    def arguments(self, *more: Any) -> tuple[Any, ...]:
        """What the module takes first; `more` are arrays beside state and patterns."""
        arrays = map(self.call.capsule, (self.state, self.patterns, *more))
        beta = self.call.scale("beta", self.beta, 1.0)
        return (self.call.place, *arrays, beta, self.call.capsule(self.mask), "softmax")

    def at(self, state: Any) -> Look:
        """The same at another state, of the same rows."""
        other = copy(self)
        other.state = state
        return other

    def run(self, *told: Any) -> None:
        """Into energy, lse, largest and log_sum."""
        self.call.module.hopfield_energy(*self.arguments(), *map(self.call.capsule, told))


def energy(op: str, state: Any, patterns: Any, **given: Any) -> Any:
    """`hopfield.energy`."""
    look = Look(op, state, patterns, **given)
    out = look.call.empty(look.shape, "float32")
    look.run(out)
    return out


class Retrieval:
    """`hopfield.retrieve` of `steps` steps at most; `tol`, if it is not negative, ends a row."""

    def __init__(
        self, op: str, state: Any, patterns: Any, *, values: Any, steps: int, tol: float, **given: Any
    ) -> None:
        self.steps, self.tol = steps, tol
        self.look = Look(op, state, patterns, values=values, **given)
        self.call, self.shape, self.values = self.look.call, self.look.shape, values
        self.outside = (*self.shape, width_of(patterns if values is None else values))

    def arguments(self) -> tuple[Any, ...]:
        return self.look.arguments(self.values)

    def run(self, out: Any, kept: Any = (), **told: Any) -> None:
        told = {name: self.call.capsule(array) for name, array in told.items()}
        rule = (self.steps, self.tol)
        self.call.module.hopfield_retrieve(*self.arguments(), *rule, self.call.capsule(out), list(kept), **told)


def retrieve(op: str, state: Any, patterns: Any, *, out: Any, return_info: bool, **given: Any) -> tuple[Any, ...]:
    """`hopfield.retrieve`; returns the state and, if asked for, what is told of every row."""
    read = Retrieval(op, state, patterns, **given)
    call = read.call
    result = call.output(out, read.outside, type_name(state))
    if not return_info:
        read.run(result)
        return (result,)
    energies = {"energy": call.empty(read.shape, "float32"), "lse": call.empty(read.shape, "float32")}
    counts = {"taken": call.empty(read.shape, "int64"), "converged": call.empty(read.shape, "bool")}
    read.run(result, **counts | (energies if read.values is not None else {}))
    if read.values is None:  # as on the CPU, the state that came out needs one more look
        read.look.at(result).run(*energies.values())
    return (result, *energies.values(), *counts.values())


def fast_weight(p: Any, out: Any, return_state: bool, out_state: Any, stream: Any) -> tuple[Any, Any]:
    """A problem of `_fastweight` whose arrays are on a device; returns out and the state (or None)."""
    op = p.rule.op
    arrays = {name: array for name, array in p.arrays.items() if name != "scale"}
    call = Call(op, stream, arrays)
    result = call.output(out, p.out_shape(), type_name(next(iter(arrays.values()))))
    state = (
        call.output(out_state, p.state_shape(), "float32", "out_state")
        if return_state or out_state is not None
        else None
    )
    call.module.fast_weight(call.place, **_operands(call, p), out=call.capsule(result), out_state=call.capsule(state))
    return result, state


def fast_weight_backward(p: Any, d_out: Any, d_state: Any, stream: Any) -> dict[str, Any]:
    """Gradients by the names of the operands, each of its operand's type; that of a scale that is a number is one."""
    arrays = {name: array for name, array in p.arrays.items() if name != "scale"}
    call = Call(p.rule.op, stream, {**arrays, "d_out": d_out, "d_state": d_state})
    scale = p.arrays["scale"]
    room = {name: call.empty(tuple(array.shape), type_name(array)) for name, array in arrays.items()}
    room["scale"] = call.empty(tuple(scale.shape) if holds(scale) else (), "float32")
    call.module.fast_weight_backward(
        call.place,
        **_operands(call, p),
        d_out=call.capsule(d_out),
        d_out_state=call.capsule(d_state),
        **{f"d_{name}": call.capsule(gradient) for name, gradient in room.items()},
    )
    return room


def _operands(call: Call, p: Any) -> dict[str, Any]:
    """The arguments that every call of the module for fast weights has."""
    names = ("query", "key", "value", "beta", "a", "b", "decay", "channel_decay", "state")
    feature_map, norm, _, _ = p.feature_map
    return {
        **{name: call.capsule(p.arrays.get(name)) for name in names},
        "scale": call.scale("scale", p.arrays["scale"], 1.0),
        "feature_map": feature_map,
        "norm": norm,
        "options": p.options(),
    }
