"""Attention to the largest scores and sparse reads on a card against the float64 oracles. Not run, and saying so, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recollect as rc
from recollect import _backend

from tests.cuda.device import Errors, arrays, numbers, poisoned
from tests.reference import backtracking
from tests.reference import separated as oracle

# n, m, d, e, k
SIZES = [(1, 1, 1, 1, 1), (1, 5000, 64, 64, 32), (65, 63, 5, 3, 4), (300, 700, 128, 100, 128), (70, 90, 256, 200, 33)]

UNIT = "selection"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attend_to_the_largest_scores(torch: Any, errors: Errors, size: tuple[int, ...]) -> None:
    n, m, d, e, k = size
    q, x, v = arrays(torch, n + m, (2, n, d), (2, m, d), (2, m, e))
    wanted = oracle.attend(*map(numbers, (q, x, v)), separation=("top_k_softmax", k))
    out = poisoned(torch, 2, n, e)
    got, lse = rc.attention.attend(q, x, v, top_k=k, out=out, return_lse=True)
    assert got is out
    errors.check("attend", out, wanted.out, 1e-5)
    errors.check("lse", lse, wanted.lse, 1e-5)
    for _ in range(5):  # a race shows as a difference
        assert torch.equal(rc.attention.attend(q, x, v, top_k=k), out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_masks_and_ties(torch: Any, errors: Errors, dtype: str) -> None:
    """Whole numbers, so that scores are exact and many of them equal: the lowest index comes first."""
    q, x, v = (a.round() for a in arrays(torch, 3, (2, 6, 70, 24), (2, 2, 300, 24), (2, 2, 300, 16), dtype=dtype))
    mask = torch.rand((2, 1, 70, 300), device="cuda") < 0.5
    mask[0, 0, 5] = False
    given = {"causal": True, "mask": mask.cpu().numpy(), "scale": 0.25}
    wanted = oracle.attend(*map(numbers, (q, x, v)), separation=("top_k_softmax", 9), **given)
    got, lse = rc.attention.attend(q, x, v, top_k=9, causal=True, mask=mask, scale=0.25, return_lse=True)
    errors.check(f"attend {dtype}", got, wanted.out, 3e-3 if dtype == "float16" else 2e-2)
    errors.check("lse of halves", lse, wanted.lse, 1e-5)


@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_gradients(torch: Any, errors: Errors, size: tuple[int, ...]) -> None:
    _cuda = _backend.load()

    n, m, d, e, k = size
    q, x, v, d_out = arrays(torch, 7, (2, n, d), (2, m, d), (2, m, e), (2, n, e))
    kept = [torch.zeros(2, n, device="cuda") for _ in range(2)] + [torch.zeros(2, n, e, device="cuda")]
    how = ((0.2, None), None, None, "none", ("top_k_softmax", float(k)))
    wanted = oracle.attend_gradients(*map(numbers, (q, x, v, d_out)), scale=0.2, separation=("top_k_softmax", k))
    first = None
    for _ in range(3):
        to = [poisoned(torch, *a.shape) for a in (q, x, v)]
        torch.cuda.synchronize()
        _cuda.attention_attend_backward((0, 0), q, x, v, *how, *kept, d_out, *to)
        torch.cuda.synchronize()
        for name, gradient in zip(("query", "key", "value"), to, strict=True):
            errors.check(f"d_{name}", gradient, getattr(wanted, name), 2e-5)
        first = first or to
        assert all(torch.equal(a, b) for a, b in zip(first, to, strict=True))


@pytest.mark.parametrize("score", ["dot", "additive"])
@pytest.mark.parametrize(("count", "k"), [(1000, 5), (1000, 127), (60, 60)])
def test_sparse_read(torch: Any, errors: Errors, score: str, count: int, k: int) -> None:
    q, m, w1, w2, w3 = arrays(torch, count + k, (9, 12), (count, 12), (20, 12), (20, 12), (20,))
    given = {} if score == "dot" else {"w1": w1, "w2": w2, "w3": w3}
    value, indices, weights = rc.backtracking.sparse_read(q, m, k_top=k, score=score, **given)
    there = {name: numbers(a) for name, a in given.items()}
    for i, row in enumerate(numbers(q)):
        read = backtracking.read(row, numbers(m), k_top=k, score=score, **there)
        errors.check(f"weights {score}", weights[i], read.choice.weights, 1e-4)
        errors.check(f"value {score}", value[i], read.value, 1e-4)
        if count > k:  # where neighbours are closer than rounding their order may differ
            assert np.mean(numbers(indices[i]) == read.choice.kept) > 0.9
