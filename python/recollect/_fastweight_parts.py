# SPDX-License-Identifier: BSD-3-Clause
"""Every fast weight op as a problem of the core and what its gradients are once the core has given its own.

`parts(arguments) -> (problem, back)`: `arguments` are those of the public function by name, and `back` turns gradients by the core's
names into gradients by the op's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array
from . import _fastweight as core
from ._fastweight import Problem, Rule

Array = NDArray[Any]
Arguments = dict[str, Any]
Gradients = dict[str, Array]
Back = Callable[[Gradients], Gradients]
Parts = tuple[Problem, Back]


def unchanged(gradients: Gradients) -> Gradients:
    return gradients


def run(parts: Callable[[Arguments], Parts], given: Arguments) -> Array | core.FastWeights:
    """The public result of an op."""
    result: Array | core.FastWeights = core.apply(
        parts(given)[0], given["out"], given["return_state"], given.get("out_state"), given.get("stream")
    )
    return result


def problem(rule: Rule, given: Arguments, operands: Arguments, row_norm: str | None = None) -> Problem:
    """`operands` and the state, with the options that all ops share."""
    return core.problem(
        rule,
        {**operands, "state": given["state"]},
        feature_map=given.get("feature_map"),
        decay=given.get("decay"),
        log_decay=given.get("log_decay"),
        scale=given["scale"],
        chunk=given["chunk"],
        row_norm=row_norm,
    )


def pick(given: Arguments, *names: str) -> Arguments:
    return {name: given[name] for name in names}


def require(op: str, given: Arguments, *names: str) -> None:
    """None is no array, though the core takes it for an operand that is left out."""
    for name in names:
        if given[name] is None:
            raise TypeError(f"{op}: {name} is missing; expected an array, got None")


def linear_attention_parts(given: Arguments) -> Parts:
    require("fastweight.linear_attention", given, "query", "key", "value")
    rule = Rule("fastweight.linear_attention", "sum", "outputs" if given["normalize"] else "none")
    return problem(rule, given, pick(given, "query", "key", "value")), unchanged


def linear_attention_sides(given: Arguments) -> tuple[Problem, Callable[[Array], Problem]]:
    """Linear attention that is not causal, as two problems: all keys are written, then all queries read."""
    op = "fastweight.linear_attention"
    rule = Rule(op, "sum", "outputs" if given["normalize"] else "none")
    for name in ("decay", "log_decay", "state"):
        if given[name] is not None:
            raise ValueError(f"{op}: {name} is given; expected None with causal=False, where tokens have no order")
    require(op, given, "query", "key", "value")
    floats = {name: _array.floating(op, name, given[name]) for name in ("query", "key", "value")}
    dtype = _array.arithmetic(*floats.values())
    query, key, value = (_array.typed(array, dtype) for array in floats.values())
    if query.ndim and key.ndim and query.shape[-1] != key.shape[-1]:
        raise ValueError(f"{op}: key has shape {key.shape}; expected (..., m, d={query.shape[-1]})")
    _array.leading_axes(op, ("query", query, 2), ("key", key, 2), ("value", value, 2))
    options: Arguments = pick(given, "feature_map", "chunk")
    writing = core.problem(rule, {"key": key, "value": value}, **options)

    def reading(state: Array) -> Problem:
        return core.problem(rule, {"query": query, "state": state}, scale=given["scale"], **options)

    return writing, reading


def delta(op: str, given: Arguments, operands: Arguments) -> Problem:
    """A delta rule with the normalisation that the user asked for."""
    require(op, given, "query", "key", "value", *(name for name in ("beta", "removal") if name in given))
    normalize = given.get("normalize", "none")
    if normalize not in ("none", "sum", "l2", "attention"):
        raise ValueError(f"{op}: normalize is {normalize!r}; expected 'none', 'sum', 'l2' or 'attention'")
    rule = Rule(op, "delta", "outputs_and_removals" if normalize == "attention" else "none")
    return problem(rule, given, operands, normalize if normalize in ("sum", "l2") else None)


def delta_rule_parts(given: Arguments) -> Parts:
    return delta("fastweight.delta_rule", given, pick(given, "query", "key", "value", "beta")), unchanged


def fast_weight_parts(given: Arguments) -> Parts:
    require("fastweight.fast_weight", given, "query", "key", "value", "b")
    rule = Rule("fastweight.fast_weight", "general")
    return problem(rule, given, pick(given, "query", "key", "value", "a", "b")), unchanged


# Named rules


def gated_delta_rule_parts(given: Arguments) -> Parts:
    return delta("fastweight.gated_delta_rule", given, pick(given, "query", "key", "value", "beta")), unchanged


def kimi_delta_attention_parts(given: Arguments) -> Parts:
    return delta("fastweight.kimi_delta_attention", given, pick(given, "query", "key", "value", "beta")), unchanged


def comba_parts(given: Arguments) -> Parts:
    op = "fastweight.comba"
    require(op, given, "query", "key", "value", "beta", "removal")
    query, removal = (_array.floating(op, name, given[name]) for name in ("query", "removal"))
    if query.ndim >= 2 and removal.shape[-2:] != query.shape[-2:]:
        T, K = query.shape[-2:]
        raise ValueError(f"{op}: removal has shape {removal.shape}; expected (..., T={T}, K={K})")
    operands = pick(given, "query", "key", "value", "beta")
    operands["b"] = given["removal"]

    def back(gradients: Gradients) -> Gradients:
        return {**gradients, "removal": gradients["b"]}

    return delta(op, given, operands), back


def arrays(op: str, given: Arguments, *names: str) -> list[Array]:
    """Operands that are multiplied before the core sees them, in the type that everything is computed in."""
    everything = [n for n, v in given.items() if n not in _OPTIONS and v is not None]
    dtype = _array.arithmetic(*(_array.floating(op, name, given[name]) for name in everything))
    return [_array.typed(_array.floating(op, name, given[name]), dtype) for name in names]


_OPTIONS = (
    "feature_map",
    "normalize",
    "scale",
    "chunk",
    "return_state",
    "out",
    "out_state",
    "forget",
    "ridge",
    "micro_steps",
    "stream",
)


def times(op: str, left: tuple[str, Array], right: tuple[str, Array]) -> Array:
    try:
        product: Array = left[1] * right[1]
    except ValueError:
        raise ValueError(
            f"{op}: {left[0]} has shape {left[1].shape}; expected one that broadcasts with {right[0]} {right[1].shape}"
        ) from None
    return product


def reduced(gradient: Array, like: Array) -> Array:
    return _array.sum_to_shape(gradient, like.shape).astype(like.dtype, copy=False)


def gated_delta_rule_2_parts(given: Arguments) -> Parts:
    op = "fastweight.gated_delta_rule_2"
    require(op, given, "query", "key", "value", "erase", "write")
    key, value, erase, write = arrays(op, given, "key", "value", "erase", "write")
    operands = {
        "query": given["query"],
        "key": key,
        "value": times(op, ("write", write), ("value", value)),
        "b": times(op, ("erase", erase), ("key", key)),
    }

    def back(gradients: Gradients) -> Gradients:
        d_value, d_removal = gradients["value"], gradients["b"]
        return {
            **gradients,
            "key": gradients["key"] + reduced(d_removal * erase, key),
            "value": reduced(d_value * write, value),
            "erase": reduced(d_removal * key, erase),
            "write": reduced(d_value * value, write),
        }

    return delta(op, given, operands), back


def rwkv7_parts(given: Arguments) -> Parts:
    op = "fastweight.rwkv7"
    require(op, given, "query", "key", "value", "removal", "rate")
    removal, rate = arrays(op, given, "removal", "rate")
    operands = pick(given, "query", "key", "value")
    operands["a"], operands["b"] = times(op, ("removal", removal), ("rate", rate)), -removal

    def back(gradients: Gradients) -> Gradients:
        d_a, d_b = gradients["a"], gradients["b"]
        return {**gradients, "removal": reduced(d_a * rate, removal) - d_b, "rate": reduced(d_a * removal, rate)}

    return problem(Rule(op, "general"), given, operands), back


def spread(op: str, given: Arguments) -> tuple[Arguments, int]:
    """The operands of `delta_product` with n tokens for each token: all of them write, the last one reads, the first one fades."""
    require(op, given, "query", "key", "value", "beta")
    query, key, value, beta = arrays(op, given, "query", "key", "value", "beta")
    if key.ndim < 3 or query.ndim < 2:
        raise ValueError(f"{op}: key has shape {key.shape}; expected (..., T, n, K)")
    T, n, K = key.shape[-3:]
    for name, array, shape in (("value", value, value.shape[-3:-1]), ("beta", beta, beta.shape[-2:])):
        if shape != (T, n):
            raise ValueError(
                f"{op}: {name} has shape {array.shape}; expected (..., T={T}, n={n}{', V' if name == 'value' else ''})"
            )
    if n < 1 or query.shape[-2] != T:
        raise ValueError(f"{op}: query has shape {query.shape}; expected (..., T={T}, K={K}), and n of 1 or more")
    reading = np.zeros((*query.shape[:-2], T, n, query.shape[-1]), query.dtype)
    reading[..., -1, :] = query
    operands = {
        "query": reading.reshape(*query.shape[:-2], T * n, -1),
        "key": key.reshape(*key.shape[:-3], T * n, K),
        "value": value.reshape(*value.shape[:-3], T * n, -1),
        "beta": beta.reshape(*beta.shape[:-2], T * n),
    }
    for name, neutral in (("decay", 1.0), ("log_decay", 0.0)):
        if given[name] is None:
            continue
        (fading,) = arrays(op, given, name)
        channels = fading.shape[-2:] == (T, K) and (fading.ndim >= query.ndim or fading.shape[-1] != T)
        axis = fading.ndim - int(channels)
        wide = np.full((*fading.shape[:axis], n, *fading.shape[axis:]), neutral, fading.dtype)
        wide[(..., 0, slice(None)) if channels else (..., 0)] = fading
        operands[name] = wide.reshape(*fading.shape[: axis - 1], -1, *fading.shape[axis:])
    return operands, n


def strided(op: str, result: Any, n: int, out: Any) -> Array | core.FastWeights:
    """Of what every micro step reads, what the last of each token has read."""
    steps = result.out if isinstance(result, core.FastWeights) else result
    read = _array.output(op, out, (*steps.shape[:-2], steps.shape[-2] // n, steps.shape[-1]), steps.dtype)
    read[...] = steps[..., n - 1 :: n, :]
    return core.FastWeights(read, result.state) if isinstance(result, core.FastWeights) else read


def delta_product_parts(given: Arguments) -> Parts:
    op = "fastweight.delta_product"
    operands, n = spread(op, given)
    faded = {**given, "decay": operands.pop("decay", None), "log_decay": operands.pop("log_decay", None)}

    def back(gradients: Gradients) -> Gradients:
        own = {
            name: np.shape(given[name])
            for name in ("query", "key", "value", "beta", "decay", "log_decay")
            if name in gradients
        }
        result = dict(gradients)
        for name in ("key", "value", "beta"):
            result[name] = gradients[name].reshape(own[name])
        query = own["query"]
        result["query"] = gradients["query"].reshape(*query[:-1], n, query[-1])[..., -1, :]
        for name in own.keys() & {"decay", "log_decay"}:
            shape, wide = own[name], gradients[name].shape
            axis = next(i for i in range(len(shape) - 1, -1, -1) if wide[i] != shape[i] or n == 1)
            result[name] = np.take(gradients[name].reshape(*shape[: axis + 1], n, *shape[axis + 1 :]), 0, axis + 1)
        return result

    return delta(op, faded, operands), back
