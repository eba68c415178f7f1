"""Attention to the largest scores and sparse reads of arrays on a card, from the public function to the kernel, on the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recollect as rc

from tests.cuda.test_emulated_module import OnCard, card, draw, module  # noqa: F401 (fixtures)
from tests.reference import backtracking
from tests.reference import separated as oracle

pytestmark = pytest.mark.slow


def wide(*arrays: Any) -> list[Any]:
    return [np.asarray(a).astype(np.float64) for a in arrays]


def reads(query: Any, memory: Any, k: int, lengths: Any = None, **given: Any) -> tuple[Any, Any, Any]:
    """The oracle's value, indices and weights of every row of (batch, n, e) queries."""
    value, indices, weights = [], [], []
    for b in range(query.shape[0]):
        length = None if lengths is None else int(lengths[b])
        for q in query[b]:
            read = backtracking.read(q, memory[b], k_top=k, length=length, **given)
            rest = k - len(read.choice.kept)
            value.append(read.value)
            indices.append(np.append(read.choice.kept, [-1] * rest))
            weights.append(np.append(read.choice.weights, [0.0] * rest))
    lead = query.shape[:2]
    return tuple(np.array(rows).reshape(*lead, -1) for rows in (value, indices, weights))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attend_to_the_largest_scores(dtype: str) -> None:
    q, k, v = (draw(*s).astype(dtype) for s in ((2, 6, 5, 20), (2, 2, 40, 20), (2, 2, 40, 12)))
    scale, mask = np.linspace(0.1, 0.5, 6, dtype=np.float32), draw(2, 1, 5, 40) > 0
    mask[0, 0, 3] = False
    given = {"causal": True, "mask": mask, "scale": scale.astype(np.float64)}
    wanted = oracle.attend(*wide(q, k, v), separation=("top_k_softmax", 7), **given)
    out = OnCard(np.full((2, 6, 5, 12), np.nan, dtype))
    options = {"causal": True, "mask": OnCard(mask), "scale": OnCard(scale), "return_lse": True}
    got = rc.attention.attend(*map(OnCard, (q, k, v)), top_k=7, out=out, **options)
    assert got.out is out
    np.testing.assert_allclose(out.array, wanted.out, atol=1e-5 if dtype == "float32" else 4e-3)
    np.testing.assert_allclose(got.lse.array, wanted.lse, atol=2e-5)
    again = rc.attention.attend(*map(OnCard, (q, k, v)), separation=("top_k_softmax", 7), **options)
    assert np.array_equal(again.out.array, out.array)


def test_gradients_through_the_selection(module: Any) -> None:  # noqa: F811
    q, k, v, d_out = draw(2, 9, 20), draw(2, 40, 20), draw(2, 40, 12), draw(2, 9, 12)
    to = [np.full_like(a, np.nan) for a in (q, k, v)]
    kept = [np.zeros(s, np.float32) for s in ((2, 9), (2, 9), (2, 9, 12))]
    how = ((0.2, None), None, None, "bottom-right", ("top_k_softmax", 5.0))
    module.attention_attend_backward((0, 0), *map(OnCard, (q, k, v)), *how, *map(OnCard, (*kept, d_out, *to)))
    given = {"scale": 0.2, "causal": True, "separation": ("top_k_softmax", 5)}
    wanted = oracle.attend_gradients(*wide(q, k, v, d_out), **given)
    for name, gradient in zip(("query", "key", "value"), to, strict=True):
        np.testing.assert_allclose(gradient, getattr(wanted, name), atol=1e-5)


def test_sparse_reads_by_every_score() -> None:
    q, m, a = draw(2, 3, 6), draw(2, 30, 6), 5
    parameters = {"w1": draw(a, 6), "w2": draw(a, 6, seed=1), "w3": draw(a)}
    lengths = np.array([30, 3])
    for score, given in (("dot", {}), ("bilinear", {"weight": draw(6, 6)}), ("additive", parameters)):
        wanted = reads(*wide(q, m), 4, lengths, score=score, **dict(zip(given, wide(*given.values()), strict=True)))
        on_card = {name: OnCard(array) for name, array in given.items()}
        how = {"k_top": 4, "score": score, "lengths": OnCard(lengths), **on_card}
        value, indices, weights = rc.backtracking.sparse_read(OnCard(q), OnCard(m), **how)
        assert np.array_equal(indices.array, wanted[1]) and indices.array.dtype == np.int64
        np.testing.assert_allclose(weights.array, wanted[2], atol=1e-4)
        np.testing.assert_allclose(value.array, wanted[0], atol=1e-4)
    keys = OnCard(m @ parameters["w1"].T)
    again = rc.backtracking.sparse_read(
        OnCard(q), OnCard(m), k_top=None, keys=keys, w2=OnCard(parameters["w2"]), w3=OnCard(parameters["w3"])
    )
    here = rc.backtracking.sparse_read(q, m, k_top=None, **parameters)
    assert np.array_equal(again.indices.array, here.indices)
    np.testing.assert_allclose(again.value.array, here.value, atol=1e-5)


def test_gradients_of_sparse_reads() -> None:
    q, m, weight, d_value = draw(2, 3, 6), draw(2, 30, 6), draw(6, 6), draw(2, 3, 6, seed=1)
    for given in ({}, {"weight": weight}):
        how = {"k_top": 4, "score": "bilinear" if given else "dot", "lengths": np.array([30, 3])}
        on_card = how | {"lengths": OnCard(how["lengths"]), **{name: OnCard(a) for name, a in given.items()}}
        read, pullback = rc.vjp(rc.backtracking.sparse_read, OnCard(q), OnCard(m), **on_card)
        got = pullback(OnCard(d_value))
        here, pull = rc.vjp(
            rc.backtracking.sparse_read, *wide(q, m), **how, **{n: wide(a)[0] for n, a in given.items()}
        )
        wanted = pull(d_value)
        assert got._fields == wanted._fields
        np.testing.assert_allclose(read.value.array, here.value, atol=1e-4)
        for name in got._fields:
            there = getattr(wanted, name)
            size = max(1.0, float(np.abs(there).max()))
            np.testing.assert_allclose(getattr(got, name).array, there, atol=1e-4 * size, err_msg=name)
    with pytest.raises(ValueError, match="score is 'additive'; expected 'dot' or 'bilinear' in vjp on a CUDA device"):
        w = {name: OnCard(draw(6, 6)) for name in ("w1", "w2")} | {"w3": OnCard(draw(6))}
        rc.vjp(rc.backtracking.sparse_read, OnCard(q), OnCard(m), k_top=4, **w)


def test_what_does_not_fit_is_told() -> None:
    q, m = draw(3, 4), draw(200, 4)
    with pytest.raises(ValueError, match="attention.attend: top_k is 150; expected at most 128 on a device"):
        rc.attention.attend(OnCard(q), OnCard(m), OnCard(m), top_k=150)
    with pytest.raises(ValueError, match="k_top is 200, or None beside as many memories; expected at most 127"):
        rc.backtracking.sparse_read(OnCard(q), OnCard(m), k_top=None, score="dot")
    with pytest.raises(ValueError, match="bias is given beside top_k; expected None in vjp on a CUDA device so far"):
        rc.vjp(rc.attention.attend, OnCard(q), OnCard(m), OnCard(m), top_k=2, bias=OnCard(draw(200)))
    sentences = []
    for kind in (np.asarray, OnCard):
        with pytest.raises(ValueError) as caught:
            rc.backtracking.sparse_read(kind(q), kind(m[:, :3]), k_top=2, score="dot")
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
