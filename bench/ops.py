"""What a benchmark does with each op: make inputs, call the library, know the truth on a few rows.

An op is an entry of registry.OPS that names three functions of this page:

    inputs(case)        -> a namespace of NumPy arrays, made once and never inside a timed region
    ours(rc, case, x)   -> a function without arguments that runs the library once
    truth(case, x)      -> an oracle.Truth
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from . import oracle


def _leading(case) -> tuple[int, ...]:
    """The batch axes that the case has: none, or one axis of heads."""
    return (case.shape["H"],) if "H" in case.shape else ()


def hopfield_inputs(case):
    """Cues are stored patterns with noise: what a memory is for, and scores of the size that beta asks for."""
    rng = np.random.default_rng(0)
    n, N, d = (case.shape[letter] for letter in "nNd")
    patterns = rng.standard_normal((*_leading(case), N, d), dtype=case.dtype)
    noise = rng.standard_normal((*_leading(case), n, d), dtype=case.dtype)
    state = patterns[..., rng.integers(0, N, n), :] + np.asarray(0.5, case.dtype) * noise
    values = rng.standard_normal((*_leading(case), N, case.shape["e"]), dtype=case.dtype) if "e" in case.shape else None
    d_out = rng.standard_normal(state.shape, dtype=case.dtype) if case.op == "retrieve_backward" else None
    return SimpleNamespace(state=state, patterns=patterns, values=values, d_out=d_out, beta=case.beta_scale / d**0.5)


# Ours


def retrieve_ours(rc, case, x):
    retrieve, options = rc.hopfield.retrieve, {"values": x.values} if x.values is not None else {}
    return lambda: retrieve(x.state, x.patterns, beta=x.beta, steps=case.steps, **options)


def energy_ours(rc, case, x):
    energy = rc.hopfield.energy
    return lambda: energy(x.state, x.patterns, beta=x.beta)


def retrieve_backward_ours(rc, case, x):
    """The pullback alone: the forward pass is over when the clock starts, for us and for the peers."""
    _, pullback = rc.vjp(rc.hopfield.retrieve, x.state, x.patterns, beta=x.beta)

    def run():
        gradients = pullback(x.d_out)
        return gradients.state, gradients.patterns

    return run


# Truth


def _over_heads(case, one_head):
    """one_head(pick) on the first and the last head, stacked -> (results..., largest score), index of those heads."""
    if "H" not in case.shape:
        return one_head(lambda array: array), lambda rows: (rows,)
    heads = sorted({0, case.shape["H"] - 1})
    parts = [one_head(lambda array, h=h: array[h]) for h in heads]
    stacked = tuple(np.stack(column) for column in zip(*[p[:-1] for p in parts], strict=True))
    return (*stacked, max(p[-1] for p in parts)), lambda rows: np.ix_(heads, rows)


def retrieve_truth(case, x):
    rows, dtype = oracle.some(case.shape["n"]), oracle.above(case.dtype)
    values = x.patterns if x.values is None else x.values

    def one_head(pick):
        return oracle.retrieve(pick(x.state)[rows], pick(x.patterns), pick(values), x.beta, case.steps, dtype)

    (out, largest), at = _over_heads(case, one_head)
    return oracle.Truth(((at(rows), out),), largest)


def energy_truth(case, x):
    rows, dtype = oracle.some(case.shape["n"]), oracle.above(case.dtype)

    def one_head(pick):
        return oracle.energy(pick(x.state)[rows], pick(x.patterns), x.beta, dtype)

    (out, largest), at = _over_heads(case, one_head)
    return oracle.Truth(((at(rows), out),), largest)


def retrieve_backward_truth(case, x):
    rows, columns = oracle.some(case.shape["n"]), oracle.some(case.shape["N"])
    dtype = oracle.above(case.dtype)

    def one_head(pick):
        return oracle.retrieve_backward(pick(x.state), pick(x.patterns), x.beta, pick(x.d_out), rows, columns, dtype)

    (d_state, d_patterns, largest), at = _over_heads(case, one_head)
    return oracle.Truth(((at(rows), d_state), (at(columns), d_patterns)), largest)
