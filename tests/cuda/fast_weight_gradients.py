"""Gradients of fast weights on a card, real or emulated, each by name against the float64 oracle that walks back through kept states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import recollect as rc

from tests import fastweight_checks as fw

Case = tuple[str, dict[str, Any]]


def cases(T: int, K: int, V: int) -> dict[str, Case]:
    """Every rule, with the decays, normalisations and shared operands that change how its gradient goes."""
    rng, f32, batch = np.random.default_rng(T + K), np.float32, (2, 3)
    size = {"T": T, "K": K, "V": V, "batch": batch}
    token, channel = fw.decays(rng, f32, 3, T), fw.decays(rng, f32, 2, 1, T, K)
    state, summed = fw.draw(rng, f32, K, V), np.abs(fw.draw(rng, f32, 2, 3, K, V + 1))
    scale = {"scale": np.array([0.5, 0.7, 0.9], f32)}
    linear, delta, general = (
        lambda **more: ("linear_attention", fw.linear(rng, f32, **size, **more)),
        lambda **more: ("delta_rule", fw.delta(rng, f32, **size, **more)),
        lambda **more: ("fast_weight", fw.general(rng, f32, **size, **more)),
    )
    return {
        "sum": linear(normalize=False, feature_map="identity", log_decay=np.log(channel), state=state, **scale),
        "sum, normalised": linear(decay=token, state=summed, scale=0.7, chunk=3),
        "delta": delta(decay=token, state=state, chunk=4),
        "delta, sum": delta(feature_map="elu1", normalize="sum", decay=channel, **scale),
        "delta, l2": delta(feature_map="squared_relu", normalize="l2", log_decay=np.log(token)),
        "delta, attention": delta(feature_map="elu1", normalize="attention", decay=channel, state=summed, chunk=4),
        "general": general(state=state, scale=0.3, chunk=5),
        "general without a": general(a=None, b=fw.unit(fw.draw(rng, f32, T, K)) / 4),
    }


Witness = tuple[str, np.ndarray, np.ndarray, float]


def witnesses(case: Case, card: Callable[[Any], Any], numbers: Callable[[Any], Any], **more: Any) -> Iterator[Witness]:
    """(operand, its gradient on the card, the exact one, the size of the terms that it is a sum of) for every operand of a case."""
    op, given = case
    function = getattr(rc.fastweight, op)
    moved = {name: card(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    result, pullback = rc.vjp(function, **moved, return_state=True, **more)
    rng = np.random.default_rng(1)
    d = [fw.draw(rng, np.float32, *array.shape) for array in result]
    got = pullback(tuple(card(array) for array in d))
    assert list(got._fields) == fw.fields(op, given)
    plain = {name: value for name, value in given.items() if name != "chunk"}
    exact, sizes = fw.expected_gradients(op, plain, *d, kind=np.float64)
    for name in got._fields:
        gradient = numbers(getattr(got, name))
        if name == "state":
            S, z = exact["state"]
            wanted = S if z is None or gradient.shape[-1] == S.shape[-1] else np.concatenate([S, z[..., None]], -1)
            yield name, gradient, wanted, 0.0
        else:
            yield name, gradient, exact[name], sizes[name]
