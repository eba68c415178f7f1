# SPDX-License-Identifier: BSD-3-Clause
"""The public ops for arrays of a CUDA device: what they do there, and one sentence for what they do not do there yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _array
from ._attention_operands import Operands, grouped, rows_shape, ungrouped, width_of
from ._device import Call, holds, type_name

__all__ = ["attend", "fast_weight", "fast_weight_backward", "retrieve"]


def unsupported(op: str, **wanted: tuple[Any, Any]) -> None:
    """Every argument has the only value that a device can do: name=(value, the one possible)."""
    for name, (value, only) in wanted.items():
        if value is not only and value != only:
            raise ValueError(f"{op}: {name} is {value!r}; expected {only!r}, the only one on a CUDA device so far")


def attend(
    op: str,
    query: Any,
    key: Any,
    value: Any,
    *,
    scale: Any,
    causal: Any,
    mask: Any,
    bias: Any,
    stream: Any,
    return_lse: bool,
    out: Any,
    **others: tuple[Any, Any],
) -> Any:
    """`attention.attend`; returns out and lse (or None)."""
    unsupported(op, **others)
    call = Call(op, stream, {"query": query, "key": key, "value": value, "mask": mask, "bias": bias})
    if causal not in (False, True, "top-left"):
        raise ValueError(f"{op}: causal is {causal!r}; expected False, True or 'top-left'")
    rule = "none" if causal is False else "top-left" if causal == "top-left" else "bottom-right"
    factor = scale if holds(scale) else np.array(1.0)  # for its leading axes alone
    ops, heads = grouped(op, Operands(query, key, value, factor, mask, bias, None, rule, np.dtype(np.float32)))
    shape = rows_shape(op, ops)
    full = (*shape, width_of(ops.value))
    width = query.shape[-1] if query.ndim else 0
    default = 1 / float(np.sqrt(width)) if width else 1.0
    number, own = call.scale("scale", scale, default)
    if own is not None:
        own = call.capsule(ops.scale)
    result = call.output(out, ungrouped(full, heads, 2), type_name(query))
    lse = call.empty(shape, "float32") if return_lse else None
    call.module.attention_attend(
        call.place,
        *map(call.capsule, (ops.query, ops.key, ops.value)),
        (number, own),
        call.capsule(ops.mask),
        call.capsule(ops.bias),
        rule,
        "softmax",
        call.capsule(result.reshape(full)),
        call.capsule(lse),
    )
    return result, None if lse is None else lse.reshape(ungrouped(shape, heads, 1))


def retrieve(
    op: str,
    state: Any,
    patterns: Any,
    *,
    beta: Any,
    values: Any,
    steps: Any,
    mask: Any,
    stream: Any,
    out: Any,
    **others: tuple[Any, Any],
) -> Any:
    """`hopfield.retrieve`."""
    unsupported(op, **others)
    call = Call(op, stream, {"state": state, "patterns": patterns, "values": values, "mask": mask})
    count = _array.whole(op, "steps", steps, 1, expected="at least 1", kind="a whole number on a CUDA device")
    if beta is None:
        raise TypeError(f"{op}: beta is None; expected a number, or an array on cuda:{call.card}")
    leading = _array.leading_axes(
        op,
        ("state", state, 2),
        ("patterns", patterns, 2),
        ("values", values, 2),
        ("beta", beta if holds(beta) else None, 0),
        ("mask", mask, 2),
    )
    rows = state.shape[-2] if state.ndim >= 2 else 0
    result = call.output(out, (*leading, rows, width_of(patterns if values is None else values)), type_name(state))
    call.module.hopfield_retrieve(
        call.place,
        *map(call.capsule, (state, patterns, values)),
        call.scale("beta", beta, 1.0),
        call.capsule(mask),
        "softmax",
        count,
        call.capsule(result),
    )
    return result


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
