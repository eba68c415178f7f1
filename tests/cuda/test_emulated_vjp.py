"""`recollect.vjp` and energies of arrays on a card, from the public function to the kernel, on the emulator: every gradient by name against
the float64 oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recollect as rc

from tests.cuda.test_emulated_module import OnCard, card, draw, module  # noqa: F401 (fixtures)
from tests.reference import attention, hopfield, separated

pytestmark = pytest.mark.slow

BOUNDS = {"float32": 2e-5, "float16": 4e-3}


def wide(*arrays: Any) -> list[Any]:
    return [np.asarray(a).astype(np.float64) for a in arrays]


def close(got: Any, wanted: Any, names: str, bound: float = 2e-5) -> None:
    """The gradients are those that are named, in this order, and each is its oracle's."""
    assert got._fields == tuple(names.split())
    for name in got._fields:
        here, there = getattr(got, name), getattr(wanted, name)
        assert isinstance(here, OnCard) and here.shape == there.shape, name
        size = max(1.0, float(np.abs(there).max(initial=0)))
        np.testing.assert_allclose(here.array.astype(np.float64), there, atol=bound * size, err_msg=name)


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_attend(dtype: str) -> None:
    """Grouped heads, a scale by head, a mask with a row of nothing, a bias of all batches."""
    q, k, v = (draw(*s).astype(dtype) for s in ((2, 6, 9, 20), (2, 2, 40, 20), (2, 2, 40, 12)))
    scale, bias = np.linspace(0.1, 0.5, 6, dtype=np.float32), draw(6, 9, 40).astype(dtype)
    mask = draw(2, 1, 9, 40) > 0
    mask[0, 0, 3] = False
    d_out = draw(2, 6, 9, 12).astype(dtype)
    out, pullback = rc.vjp(
        rc.attention.attend,
        *map(OnCard, (q, k, v)),
        causal=True,
        scale=OnCard(scale),
        bias=OnCard(bias),
        mask=OnCard(mask),
        stream=7,
    )
    given = {"causal": True, "mask": mask, "scale": scale.astype(np.float64), "bias": bias.astype(np.float64)}
    np.testing.assert_allclose(out.array, attention.attend(*wide(q, k, v), **given).out, atol=BOUNDS[dtype])
    wanted = attention.gradients(*wide(q, k, v, d_out), **given)
    for _ in range(2):  # a pullback may be called more than once
        got = pullback(OnCard(d_out))
        close(got, wanted, "query key value scale bias", BOUNDS[dtype])
    assert got.key.array.dtype == np.dtype(dtype) and got.scale.array.dtype == np.float32


def test_attend_to_the_largest_scores() -> None:
    """Grouped heads that share keys, a scale by head, a mask with a row of nothing; and a number as scale."""
    q, k, v, d_out = draw(2, 6, 9, 20), draw(2, 2, 40, 20), draw(2, 2, 40, 12), draw(2, 6, 9, 12)
    scale, mask = np.linspace(0.1, 0.5, 6, dtype=np.float32), draw(2, 1, 9, 40) > 0
    mask[0, 0, 3] = False
    given = {"causal": True, "mask": mask, "separation": ("top_k_softmax", 5)}
    for own in (scale, 0.3):
        on_card = OnCard(own) if isinstance(own, np.ndarray) else own
        operands = map(OnCard, (q, k, v))
        _, pullback = rc.vjp(rc.attention.attend, *operands, causal=True, scale=on_card, mask=OnCard(mask), top_k=5)
        wanted = separated.attend_gradients(*wide(q, k, v, d_out), scale=np.asarray(own, np.float64), **given)
        close(pullback(OnCard(d_out)), wanted, "query key value scale")


def test_attend_with_a_number_and_a_shared_query() -> None:
    q, k, v, d_out = draw(5, 8), draw(3, 20, 8), draw(3, 20, 4), draw(3, 5, 4)
    _, pullback = rc.vjp(rc.attention.attend, *map(OnCard, (q, k, v)), scale=0.3)
    close(pullback(OnCard(d_out)), attention.gradients(*wide(q, k, v, d_out), scale=0.3), "query key value scale")
    _, pullback = rc.vjp(rc.attention.attend, *map(OnCard, (q, k, v)))
    close(pullback(OnCard(d_out)), attention.gradients(*wide(q, k, v, d_out)), "query key value")


def test_halves_of_the_tensor_cores() -> None:
    """The forward pass is the kernel for compute capability 9.0, the gradient those for 8.0 and newer."""
    q, k, v, d_out = (draw(*s).astype(np.float16) for s in ((5, 64), (200, 64), (200, 64), (5, 64)))
    out, pullback = rc.vjp(rc.attention.attend, *map(OnCard, (q, k, v)), scale=0.1)
    plain = rc.attention.attend(*map(OnCard, (q, k, v)), scale=0.1)
    np.testing.assert_array_equal(out.array, plain.array)
    wanted = attention.gradients(*wide(q, k, v, d_out), scale=0.1)
    close(pullback(OnCard(d_out)), wanted, "query key value scale", 4e-3)
    out, pullback = rc.vjp(rc.hopfield.retrieve, *map(OnCard, (q, k)), beta=0.1, steps=2)
    plain = rc.hopfield.retrieve(OnCard(q), OnCard(k), beta=0.1, steps=2)
    np.testing.assert_array_equal(out.array, plain.array)
    wanted = hopfield.retrieve_gradients(*wide(q, k), 0.1, wide(d_out)[0], steps=2)
    close(pullback(OnCard(d_out)), wanted, "state patterns beta", 4e-3)


def test_attend_with_sinks() -> None:
    """By head, with grouped heads and a row of nothing; and a number."""
    q, k, v, d_out = draw(2, 6, 9, 20), draw(2, 2, 40, 20), draw(2, 2, 40, 12), draw(2, 6, 9, 12)
    mask, sinks = draw(2, 1, 9, 40) > 0, np.linspace(-1, 3, 6, dtype=np.float32)
    mask[0, 0, 3] = False
    for own in (sinks, 0.3):
        on_card = OnCard(own) if isinstance(own, np.ndarray) else own
        given = {"causal": True, "mask": mask, "sink": np.asarray(own, np.float64)}
        how: dict[str, Any] = {"causal": True, "mask": OnCard(mask), "sink": on_card}
        out, pullback = rc.vjp(rc.attention.attend, *map(OnCard, (q, k, v)), **how)
        wanted = attention.attend(*wide(q, k, v), **given)
        got = rc.attention.attend(*map(OnCard, (q, k, v)), return_lse=True, **how)
        np.testing.assert_array_equal(out.array, got.out.array)
        np.testing.assert_allclose(out.array, wanted.out, atol=2e-6)
        np.testing.assert_allclose(got.lse.array, wanted.lse, atol=2e-5)
        close(pullback(OnCard(d_out)), attention.gradients(*wide(q, k, v, d_out), **given), "query key value sink")


def test_retrieve_until_rest() -> None:
    """As here, but for rounding: states, and what is told of them; and the gradient of a number of steps."""
    q, x, y, d_out = draw(2, 5, 12), draw(30, 12), draw(2, 30, 7), draw(2, 5, 7, seed=1)
    for given in ({"steps": 8, "tol": 0.1}, {"steps": 20, "tol": 1.5}, {"steps": 4, "tol": 0.8, "values": y}):
        on_card = {name: OnCard(a) if isinstance(a, np.ndarray) else a for name, a in given.items()}
        got = rc.hopfield.retrieve(OnCard(q), OnCard(x), beta=0.7, return_info=True, **on_card)
        here = rc.hopfield.retrieve(q, x, beta=0.7, return_info=True, **given)
        for name in ("state", "energy", "lse"):
            np.testing.assert_allclose(getattr(got, name).array, getattr(here, name), atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(got.steps.array, here.steps)
        np.testing.assert_array_equal(got.converged.array, here.converged)
        assert len(np.unique(here.steps)) > 1
    _, pullback = rc.vjp(rc.hopfield.retrieve, OnCard(q), OnCard(x), beta=0.7, **on_card)
    wanted = rc.vjp(rc.hopfield.retrieve, *wide(q, x), beta=0.7, **given)[1](d_out)
    close(pullback(OnCard(d_out)), wanted, "state patterns beta values")


@pytest.mark.parametrize("steps", [1, 3])
def test_retrieve(steps: int) -> None:
    q, x, y = draw(2, 5, 12), draw(30, 12), draw(2, 30, 7)
    out, pullback = rc.vjp(rc.hopfield.retrieve, OnCard(q), OnCard(x), beta=0.7, steps=steps)
    plain = rc.hopfield.retrieve(OnCard(q), OnCard(x), beta=0.7, steps=steps)
    np.testing.assert_array_equal(out.array, plain.array)
    d_out = draw(2, 5, 12, seed=1)
    wanted = hopfield.retrieve_gradients(*wide(q, x), 0.7, wide(d_out)[0], steps=steps)
    close(pullback(OnCard(d_out)), wanted, "state patterns beta")
    mask, beta = draw(5, 30) > 0, np.array([0.4, 0.8], np.float32)
    mask[2] = False
    given = {"values": OnCard(y), "mask": OnCard(mask), "steps": steps}
    out, pullback = rc.vjp(rc.hopfield.retrieve, OnCard(q), OnCard(x), beta=OnCard(beta), **given)
    d_out = draw(2, 5, 7, seed=1)
    wanted = hopfield.retrieve_gradients(*wide(q, x, beta, d_out), values=wide(y)[0], steps=steps, mask=mask)
    close(pullback(OnCard(d_out)), wanted, "state patterns beta values")


def test_energy() -> None:
    q, x = draw(2, 5, 12), draw(30, 12)
    mask, beta = draw(5, 30) > 0, np.array([0.4, 0.8], np.float32)
    mask[2] = False
    energies = rc.hopfield.energy(OnCard(q), OnCard(x), beta=0.7)
    np.testing.assert_allclose(energies.array, hopfield.energy(*wide(q, x), 0.7), atol=2e-5)
    out, pullback = rc.vjp(rc.hopfield.energy, OnCard(q), OnCard(x), beta=OnCard(beta), mask=OnCard(mask))
    np.testing.assert_allclose(out.array, hopfield.energy(*wide(q, x, beta), mask=mask), atol=2e-5)
    d_out = draw(2, 5, seed=1)
    wanted = hopfield.energy_gradients(*wide(q, x, beta, d_out), mask=mask)
    close(pullback(OnCard(d_out)), wanted, "state patterns beta")
    half = rc.hopfield.energy(OnCard(q.astype(np.float16)), OnCard(x.astype(np.float16)), beta=0.7)
    assert half.array.dtype == np.float32
    np.testing.assert_allclose(half.array, hopfield.energy(*wide(q, x), 0.7), atol=2e-2)


@pytest.mark.parametrize("valued", [False, True])
def test_what_is_told_of_a_retrieval(valued: bool) -> None:
    q, x, y = draw(2, 5, 12), 3 * draw(30, 12), draw(2, 30, 7)
    more = {"values": y} if valued else {}
    for steps in (1, 4):
        there = {name: OnCard(a) for name, a in more.items()}
        got = rc.hopfield.retrieve(OnCard(q), OnCard(x), beta=0.7, steps=steps, return_info=True, **there)
        wanted = rc.hopfield.retrieve(q, x, beta=0.7, steps=steps, return_info=True, **more)
        for name in ("state", "energy", "lse"):
            np.testing.assert_allclose(getattr(got, name).array, getattr(wanted, name), rtol=1e-5, atol=2e-5)
        np.testing.assert_array_equal(got.steps.array, wanted.steps)
        np.testing.assert_array_equal(got.converged.array, wanted.converged)
        assert got.steps.array.dtype == np.int64 and got.converged.array.dtype == np.bool_


def test_wrong_cotangents_get_one_sentence() -> None:
    q, k = OnCard(draw(5, 8)), OnCard(draw(20, 8))
    _, pullback = rc.vjp(rc.attention.attend, q, k, k)
    for d_out, kind, sentence in (
        (OnCard(draw(5, 7)), ValueError, r"d_out has shape \(5, 7\); expected \(5, 8\)"),
        (OnCard(draw(5, 8).astype(np.float16)), TypeError, "d_out has dtype float16; expected float32"),
        (draw(5, 8), TypeError, r"d_out \(ndarray\) is not on a CUDA device; expected cuda:0"),
        (None, TypeError, "d_out is None; expected an array on cuda:0"),
    ):
        with pytest.raises(kind, match=f"attention.attend: {sentence}"):
            pullback(d_out)
