# SPDX-License-Identifier: BSD-3-Clause
"""The public ops for arrays of a CUDA device: what they do there, and one sentence for what they do not do there yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _array
from ._attention_operands import Operands, grouped, rows_shape, separated, ungrouped, width_of
from ._device import Call, holds, type_name
from ._separation import split

__all__ = ["attend", "fast_weight", "retrieve"]


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
    separation: Any,
    top_k: Any,
    stream: Any,
    return_lse: bool,
    out: Any,
    **others: tuple[Any, Any],
) -> Any:
    """`attention.attend`; returns out and lse (or None)."""
    unsupported(op, **others)
    if split(op, separation)[0] not in ("softmax", "top_k_softmax"):
        only = "'softmax' or ('top_k_softmax', k), the only ones on a CUDA device so far"
        raise ValueError(f"{op}: separation is {separation!r}; expected {only}")
    call = Call(op, stream, {"query": query, "key": key, "value": value, "mask": mask, "bias": bias})
    if causal not in (False, True, "top-left"):
        raise ValueError(f"{op}: causal is {causal!r}; expected False, True or 'top-left'")
    rule = "none" if causal is False else "top-left" if causal == "top-left" else "bottom-right"
    factor = scale if holds(scale) else np.array(1.0)  # for its leading axes alone
    ops, heads = grouped(op, Operands(query, key, value, factor, mask, bias, None, rule, np.dtype(np.float32)))
    name, parameter = separated(op, separation, top_k, ops)
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
        name if name == "softmax" else (name, parameter),
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
    name, norm, _, _ = p.feature_map
    result = call.output(out, p.out_shape(), type_name(next(iter(arrays.values()))))
    state = (
        call.output(out_state, p.state_shape(), "float32", "out_state")
        if return_state or out_state is not None
        else None
    )
    call.module.fast_weight(
        call.place,
        **{
            n: call.capsule(arrays.get(n))
            for n in ("query", "key", "value", "beta", "a", "b", "decay", "channel_decay")
        },
        scale=call.scale("scale", p.arrays["scale"], 1.0),
        state=call.capsule(arrays.get("state")),
        feature_map=name,
        norm=norm,
        options=p.options(),
        out=call.capsule(result),
        out_state=call.capsule(state),
    )
    return result, state
