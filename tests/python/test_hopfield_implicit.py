"""Gradients of retrieval until rest: the adjoint at the fixed point against the unrolled steps, the oracle and finite differences."""

import tracemalloc

import numpy as np
import pytest
import recollect as rc

from tests.reference import separated

retrieve = rc.hopfield.retrieve
SEPARATIONS = [
    *("softmax", "sparsemax", "entmax15", ("entmax", 1.3), ("normmax", 2.0), ("top_k_softmax", 3), "hard"),
]
MANY = 2000


def problem(rng, batch=(), n=5, N=20, d=6, dtype=np.float64):
    x = rng.standard_normal((*batch, N, d)).astype(dtype)
    return (x[..., :n, :] + 0.3 * rng.standard_normal((*batch, n, d))).astype(dtype), x


def implicit(q, x, d_out=None, rng=None, **more):
    out, pullback = rc.vjp(retrieve, q, x, steps=None, **more)
    return pullback(rng.standard_normal(out.shape).astype(out.dtype) if d_out is None else d_out)


def near(a, b, tol, names=None):
    for name in names or [n for n in a._fields if n != "state"]:
        x, y = getattr(a, name), getattr(b, name)
        assert x.shape == y.shape and x.dtype == y.dtype, name
        np.testing.assert_allclose(x, y, rtol=0, atol=tol * max(1, np.abs(y).max()), err_msg=name)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("separation", SEPARATIONS, ids=str)
def test_equal_to_the_unrolled_gradient(rng, separation, reads):
    """To 1e-8 in float64, for contractions of every strength, masks and values."""
    q, x = problem(rng, batch=(2, 3))
    more = {"beta": np.array([0.2, 0.6, 2.0]), "separation": separation, "mask": rng.random(20) < 0.9}
    if reads:
        more["values"] = rng.standard_normal((20, 3))
    out, pullback = rc.vjp(retrieve, q, x, steps=None, **more)
    np.testing.assert_array_equal(out, retrieve(q, x, steps=None, **more))
    g = rng.standard_normal(out.shape)
    got = pullback(g)
    near(got, rc.vjp(retrieve, q, x, steps=MANY, **more)[1](g), 1e-8)
    assert got.state.shape == q.shape and (got.state == 0).all()


def test_in_float32(rng):
    q, x = problem(rng, n=8, dtype=np.float32)
    for beta in (0.2, 0.6, 2.0):
        g = rng.standard_normal(q.shape).astype(np.float32)
        got = implicit(q, x, g, beta=beta)
        wide = implicit(*(a.astype(np.float64) for a in (q, x)), g.astype(np.float64), beta=beta)
        assert got.patterns.dtype == np.float32
        np.testing.assert_allclose(got.patterns, wide.patterns, atol=2e-4 * np.abs(wide.patterns).max())
        np.testing.assert_allclose(got.beta, wide.beta, atol=2e-4 * max(1, abs(wide.beta)))


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("separation", ["softmax", "entmax15"])
def test_against_the_oracle(rng, separation, reads):
    q, x = problem(rng)
    values = rng.standard_normal((20, 4)) if reads else None
    fixed = retrieve(q, x, beta=0.8, separation=separation, steps=MANY)
    g = rng.standard_normal((5, 4 if reads else 6))
    expected = separated.implicit_gradients(fixed, x, np.array(0.8), g, values, separation=separation)
    more = {"values": values} if reads else {}
    near(implicit(q, x, g, beta=0.8, separation=separation, **more), expected, 1e-9)


def test_finite_differences(rng):
    q, x = problem(rng)
    g, beta = rng.standard_normal(q.shape), np.array(0.7)
    got, h = implicit(q, x, g, beta=beta), 1e-6

    def value(x, beta):
        return (retrieve(q, x, beta=beta, steps=MANY) * g).sum()

    towards = rng.standard_normal(x.shape)
    moved = (value(x + h * towards, beta) - value(x - h * towards, beta)) / (2 * h)
    np.testing.assert_allclose((got.patterns * towards).sum(), moved, rtol=1e-6)
    np.testing.assert_allclose(got.beta, (value(x, beta + h) - value(x, beta - h)) / (2 * h), rtol=1e-6)


def test_a_loose_tol_stops_early_but_its_gradient_is_that_of_the_fixed_point(rng):
    q, x = problem(rng)
    g = rng.standard_normal(q.shape)
    near(implicit(q, x, g, beta=0.8, tol=0.3), implicit(q, x, g, beta=0.8), 1e-10)


def test_a_state_that_may_see_nothing_has_no_gradient(rng):
    q, x = problem(rng)
    mask = np.ones((5, 20), bool)
    mask[2] = False
    got = implicit(q, x, np.ones(q.shape), beta=1.0, mask=mask)
    rest = implicit(q[[0, 1, 3, 4]], x, np.ones((4, 6)), beta=1.0)
    near(got, rest, 1e-13)


def test_a_row_depends_on_no_other(rng, dtype, same_bits):
    q, x = problem(rng, n=6, dtype=dtype)
    g = np.zeros_like(q)
    g[3] = rng.standard_normal(6)
    values = rng.standard_normal((20, 6)).astype(dtype)
    together = implicit(q, x, g, beta=0.5, values=values)
    alone = implicit(q[3:4], x, g[3:4], beta=0.5, values=values)
    near(together, alone, 1e-13 if dtype == np.float64 else 1e-5)


def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits):
    q, x = problem(rng, n=70, N=200, d=12, dtype=dtype)
    found = []
    for count in (1, 2, 5):
        rc.set_num_threads(count)
        found.append(implicit(q, x, q, beta=0.4))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


def test_a_state_between_two_patterns_is_refused(rng):
    """A saddle: the state rests there and nowhere near it."""
    x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    q = np.array([[0.9, 0.0], [0.0, 0.5], [-0.8, 0.1]])
    out, pullback = rc.vjp(retrieve, q, x, beta=3.0, steps=None)
    np.testing.assert_allclose(out[1], 0)
    with pytest.raises(ValueError, match=r"hopfield.retrieve: 1 of the states rest where .* the first are \(1,\)"):
        pullback(np.ones_like(out))
    asked = np.ones_like(out)
    asked[1] = 0  # of which no gradient is wanted
    near(pullback(asked), rc.vjp(retrieve, q[[0, 2]], x, beta=3.0, steps=MANY)[1](np.ones((2, 2))), 1e-10)


def test_a_state_that_does_not_come_to_rest_is_refused():
    """The classical linear memory grows without end."""
    out, pullback = rc.vjp(retrieve, np.ones((2, 3)), 1.001 * np.eye(3), beta=1.0, separation="linear", steps=None)
    with pytest.raises(
        ValueError, match=r"2 of the states have not come to rest in 1000 steps, the first are \(0,\), \(1,\)"
    ):
        pullback(np.ones_like(out))


def test_memory_does_not_grow_with_the_steps(rng):
    x = 0.3 * rng.standard_normal((8, 16))
    q = x[rng.integers(0, 8, 2000)] + 0.1 * rng.standard_normal((2000, 16))
    steps = int(retrieve(q, x, beta=1.0, steps=None, return_info=True).steps.max())
    assert steps > 12

    def peak(call):
        tracemalloc.start()
        call()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / q.nbytes

    implied = peak(lambda: implicit(q, x, q, beta=1.0))
    unrolled = peak(lambda: rc.vjp(retrieve, q, x, beta=1.0, steps=4 * steps)[1](q))
    assert implied < 24 and unrolled > 4 * steps
