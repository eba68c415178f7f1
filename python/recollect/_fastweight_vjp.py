# SPDX-License-Identifier: BSD-3-Clause
"""Pullbacks of the fast weight ops."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array, _feature_map, fastweight
from . import _fastweight as core
from ._core import core as compiled
from ._vjp import pullback_of

Array = NDArray[Any]
Result = tuple[Any, Callable[[Any], Any]]


def refuse_out(op: str, out: Any) -> None:
    if out is not None:
        raise ValueError(f"{op}: out is given; expected None in vjp, which keeps what it computes")


def named(title: str, gradients: dict[str, Array], order: dict[str, Any]) -> Any:
    """Those of `order` that were given, in its order."""
    chosen = {name: gradients[name] for name, value in order.items() if value is not None}
    return namedtuple(f"{title}Gradients", chosen)(**chosen)  # type: ignore[misc]


def rule_of(title: str, p: core.Problem, return_state: bool, order: dict[str, Any]) -> Result:
    out, pullback = core.pull(p, return_state)
    return out, lambda d: named(title, pullback(d), order)


@pullback_of(fastweight.delta_rule)
def delta_rule(
    query: Any,
    key: Any,
    value: Any,
    beta: Any,
    *,
    feature_map: Any = None,
    normalize: Any = "none",
    decay: Any = None,
    log_decay: Any = None,
    scale: Any = None,
    state: Any = None,
    chunk: Any = None,
    return_state: bool = False,
    out: Any = None,
) -> Result:
    op = "fastweight.delta_rule"
    refuse_out(op, out)
    rule, norm = fastweight.delta_parts(op, normalize)
    given = {"query": query, "key": key, "value": value, "beta": beta}
    p = core.problem(
        rule, {**given, "state": state}, feature_map=feature_map, decay=decay, log_decay=log_decay, scale=scale, chunk=chunk, row_norm=norm
    )
    order = {**given, "decay": decay, "log_decay": log_decay, "scale": scale, "state": state}
    return rule_of("DeltaRule", p, return_state, order)


@pullback_of(fastweight.fast_weight)
def fast_weight(
    query: Any,
    key: Any,
    value: Any,
    a: Any,
    b: Any,
    *,
    decay: Any = None,
    log_decay: Any = None,
    scale: Any = None,
    state: Any = None,
    chunk: Any = None,
    return_state: bool = False,
    out: Any = None,
) -> Result:
    op = "fastweight.fast_weight"
    refuse_out(op, out)
    given = {"query": query, "key": key, "value": value, "a": a, "b": b}
    p = core.problem(
        core.Rule(op, "general"), {**given, "state": state}, decay=decay, log_decay=log_decay, scale=scale, chunk=chunk
    )
    order = {**given, "decay": decay, "log_decay": log_decay, "scale": scale, "state": state}
    return rule_of("FastWeight", p, return_state, order)


@pullback_of(fastweight.linear_attention)
def linear_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    feature_map: Any = "elu1",
    causal: bool = True,
    normalize: bool = True,
    decay: Any = None,
    log_decay: Any = None,
    scale: Any = None,
    state: Any = None,
    chunk: Any = None,
    return_state: bool = False,
    out: Any = None,
) -> Result:
    op = "fastweight.linear_attention"
    refuse_out(op, out)
    rule = core.Rule(op, "sum", "outputs" if normalize else "none")
    given = {"query": query, "key": key, "value": value}
    order = {**given, "decay": decay, "log_decay": log_decay, "scale": scale, "state": state}
    if causal:
        p = core.problem(
            rule, {**given, "state": state}, feature_map=feature_map, decay=decay, log_decay=log_decay, scale=scale, chunk=chunk
        )
        return rule_of("LinearAttention", p, return_state, order)
    writing, reading = fastweight.sides(rule, query, key, value, feature_map, scale, decay, log_decay, state, chunk)
    written = core.Tape(writing, out=False)
    assert written.state is not None
    read = core.Tape(reading(written.state), state=False)

    def pullback(d: Any) -> Any:
        d_out, d_state = d if return_state else (d, None)
        back = read.back(_array.cotangent(op, d_out, read.problem.out_shape(), read.problem.dtype), None)
        of_state = back.pop("state")
        if d_state is not None:
            of_state = of_state + _array.floating(op, "d_state", d_state).astype(of_state.dtype, copy=False)
        back.update((name, array) for name, array in written.back(None, of_state).items() if name in ("key", "value"))
        return named("LinearAttention", back, order)

    return (core.FastWeights(read.out, written.state) if return_state else read.out), pullback


@pullback_of(_feature_map.feature_map)
def feature_map(x: Any, feature_map: Any, *, normalize: Any = None) -> Result:
    op = "fastweight.feature_map"
    array, phi = _feature_map.rows(op, x, feature_map, normalize)
    out = _feature_map.feature_map(array, phi)

    def pullback(d_out: Any) -> Any:
        gradient = np.empty(array.shape, array.dtype)
        compiled.feature_map_backward(op, array, phi.choice(), _array.cotangent(op, d_out, out.shape, array.dtype), gradient)
        return named("FeatureMap", {"x": gradient}, {"x": x})

    return out, pullback
