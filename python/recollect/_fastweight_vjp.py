# SPDX-License-Identifier: BSD-3-Clause
"""Pullbacks of the fast weight ops: the same problem as the op itself, on a tape."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array, _feature_map, fastweight
from . import _fastweight as core
from . import _fastweight_parts as parts
from ._core import core as compiled
from ._vjp import pullback_of

Array = NDArray[Any]
Result = tuple[Any, Callable[[Any], Any]]


def bound(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with defaults."""
    arguments = inspect.signature(op).bind(*args, **kwargs)
    arguments.apply_defaults()
    given = dict(arguments.arguments)
    for name in ("out", "out_state"):
        if given.get(name) is not None:
            raise ValueError(
                f"fastweight.{op.__name__}: {name} is given; expected None in vjp, which keeps what it computes"
            )
    return given


def named(op: Callable[..., Any], gradients: dict[str, Array], given: dict[str, Any]) -> Any:
    """Gradients of what was given, in the signature's order."""
    chosen = {name: gradients[name] for name, value in given.items() if name in gradients and value is not None}
    title = "".join(word.title() for word in op.__name__.split("_"))
    return namedtuple(f"{title}Gradients", chosen)(**chosen)


def differentiable(op: Callable[..., Any], parts_of: Callable[[dict[str, Any]], parts.Parts]) -> None:
    """The rule of an op that is one problem of the core."""

    @pullback_of(op)
    def rule(*args: Any, **kwargs: Any) -> Result:
        given = bound(op, args, kwargs)
        problem, back = parts_of(given)
        tape = core.Tape(problem, True, given["return_state"], given.get("stream"))

        def pullback(d: Any) -> Any:
            return named(
                op, back(tape.back(*core.cotangents(problem.rule.op, d, problem, given["return_state"]))), given
            )

        return tape.result(), pullback


differentiable(fastweight.delta_rule, parts.delta_rule_parts)
differentiable(fastweight.fast_weight, parts.fast_weight_parts)
differentiable(fastweight.gated_delta_rule, parts.gated_delta_rule_parts)
differentiable(fastweight.kimi_delta_attention, parts.kimi_delta_attention_parts)
differentiable(fastweight.comba, parts.comba_parts)
differentiable(fastweight.gated_delta_rule_2, parts.gated_delta_rule_2_parts)
differentiable(fastweight.rwkv7, parts.rwkv7_parts)


@pullback_of(fastweight.delta_product)
def delta_product(*args: Any, **kwargs: Any) -> Result:
    given = bound(fastweight.delta_product, args, kwargs)
    op, with_state = "fastweight.delta_product", given["return_state"]
    problem, back = parts.delta_product_parts(given)
    tape = core.Tape(problem, True, with_state)
    n = np.shape(given["key"])[-2]
    out = parts.strided(op, tape.result(), n, None)
    shape = (out.out if isinstance(out, core.FastWeights) else out).shape

    def pullback(d: Any) -> Any:
        d_out, d_state = d if with_state else (d, None)
        steps = np.zeros(problem.out_shape(), problem.dtype)
        steps[..., n - 1 :: n, :] = _array.cotangent(op, d_out, shape, problem.dtype)
        spread = (steps, d_state) if with_state else steps
        return named(
            fastweight.delta_product, back(tape.back(*core.cotangents(op, spread, problem, with_state))), given
        )

    return out, pullback


@pullback_of(fastweight.linear_attention)
def linear_attention(*args: Any, **kwargs: Any) -> Result:
    given = bound(fastweight.linear_attention, args, kwargs)
    op, with_state = "fastweight.linear_attention", given["return_state"]
    if given["causal"]:
        tape = core.Tape(parts.linear_attention_parts(given)[0], True, with_state, given["stream"])

        def causal(d: Any) -> Any:
            back = tape.back(*core.cotangents(op, d, tape.problem, with_state))
            return named(fastweight.linear_attention, back, given)

        return tape.result(), causal
    writing, reading = parts.linear_attention_sides(given)
    written = core.Tape(writing, False, True, given["stream"])
    read = core.Tape(reading(written.last_state()), True, False)

    def pullback(d: Any) -> Any:
        d_out, d_state = d if with_state else (d, None)
        back = read.back(_array.cotangent(op, d_out, read.problem.out_shape(), read.problem.dtype), None)
        of_state = back.pop("state")
        if d_state is not None:
            of_state = of_state + _array.floating(op, "d_state", d_state).astype(of_state.dtype, copy=False)
        back.update((name, array) for name, array in written.back(None, of_state).items() if name in ("key", "value"))
        return named(fastweight.linear_attention, back, given)

    return (core.FastWeights(read.result(), written.last_state()) if with_state else read.result()), pullback


@pullback_of(_feature_map.feature_map, "fastweight")
def feature_map(x: Any, feature_map: Any, *, normalize: Any = None) -> Result:
    op = "fastweight.feature_map"
    array, phi = _feature_map.rows(op, x, feature_map, normalize)
    out = _feature_map.feature_map(array, phi)

    def pullback(d_out: Any) -> Any:
        gradient = np.empty(array.shape, array.dtype)
        compiled.feature_map_backward(
            op, array, phi.choice(), _array.cotangent(op, d_out, out.shape, array.dtype), gradient
        )
        return named(_feature_map.feature_map, {"x": gradient}, {"x": x})

    return out, pullback
