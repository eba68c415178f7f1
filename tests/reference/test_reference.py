"""The oracle's own witnesses: identities of the paper and finite differences in extended precision."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import hopfield as ref  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
# A central difference with step h errs by h^2 (truncation) and eps / h (rounding): h = eps^(1/3) balances them.
STEP = EPS ** (1 / 3)
DIFFERENCE_TOL = 1e3 * STEP**2


def problem(seed, n=3, N=5, d=4, batch=()):
    rng = np.random.default_rng(seed)
    return (LONG(rng.standard_normal((*batch, n, d))), LONG(rng.standard_normal((*batch, N, d))), rng)


def difference(function, a):
    """Central differences of a scalar function with respect to every entry of a."""
    a = np.array(a, LONG)
    gradient = np.zeros(a.shape, LONG)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += STEP
        down[i] -= STEP
        gradient[i] = (function(up) - function(down)) / (2 * LONG(STEP))
    return gradient


def agree(a, b, tol=DIFFERENCE_TOL):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b).max(initial=0))))


def masks(rng, n, N):
    ragged = rng.random((n, N)) < 0.6
    ragged[0] = False
    return {"none": None, "shared": np.arange(N) != 1, "per row, first row empty": ragged, "empty": np.zeros(N, bool)}


def constant_M(state, patterns, beta, mask, patterns_of_M):
    """The energy with M taken from other patterns, which is what the gradient of the patterns differentiates."""
    e = ref.energy(state, patterns, beta, mask)
    return e - largest_square(state, patterns, mask) / 2 + largest_square(state, patterns_of_M, mask) / 2


def largest_square(state, patterns, mask):
    keep = ref.weigh(state, patterns, 1.0, mask).keep
    return np.where(keep, (patterns**2).sum(-1)[..., None, :], 0).max(-1)


def test_energy_is_the_formula_term_by_term():
    q, x, _ = problem(0)
    beta = LONG(0.7)
    z = q @ x.T
    lse = np.log(np.exp(beta * z).sum(1)) / beta
    M = np.sqrt((x**2).sum(1)).max()
    expected = -lse + (q**2).sum(1) / 2 + np.log(LONG(5)) / beta + M**2 / 2
    agree(ref.lse(q, x, beta), lse, 16 * EPS)
    agree(ref.energy(q, x, beta), expected, 64 * EPS)


def test_energy_of_one_pattern_is_half_the_squared_distance():
    q, x, _ = problem(1, N=1)
    agree(ref.energy(q, x, 3.0), ((q - x) ** 2).sum(1) / 2, 64 * EPS)


@pytest.mark.parametrize("beta", [0.01, 0.7, 5.0])
def test_energy_is_a_gaussian_mixture(beta):
    q, x, _ = problem(2, N=9, d=6)
    M2 = (x**2).sum(1).max()
    distances = ((q[:, None] - x) ** 2).sum(-1)
    terms = np.exp(-LONG(beta) / 2 * (M2 - (x**2).sum(1))) * np.exp(-LONG(beta) / 2 * distances)
    agree(ref.energy(q, x, beta), -np.log(terms.mean(1)) / LONG(beta), 256 * EPS / min(beta, 1))


def test_energy_bounds_in_the_convex_hull():
    rng = np.random.default_rng(3)
    x = LONG(rng.standard_normal((50, 32)))
    q = LONG(rng.dirichlet(np.full(50, 0.3), 200)) @ x
    e = ref.energy(q, x, 0.7)
    M2 = (x**2).sum(1).max()
    assert (e >= ((q - ref.step(q, x, 0.7)) ** 2).sum(1) / 2 - 64 * EPS * M2).all()
    assert (e >= 0).all() and (e <= 2 * M2).all()


def test_tiny_and_huge_beta_have_their_limits():
    q, x, _ = problem(4, N=6)
    z, M2, q2 = q @ x.T, (x**2).sum(1).max(), (q**2).sum(1)
    agree(ref.energy(q, x, 1e-9), (M2 + q2) / 2 - z.mean(1), 1e-7)
    agree(ref.step(q, x, 1e-9), np.broadcast_to(x.mean(0), q.shape), 1e-7)
    agree(ref.energy(q, x, 1e9), (M2 + q2) / 2 - z.max(1), 1e-7)
    agree(ref.step(q, x, 1e9), x[z.argmax(1)], 1e-7)


@pytest.mark.parametrize("case", ["none", "shared", "per row, first row empty", "empty"])
def test_energy_gradients_are_finite_differences(case):
    q, x, rng = problem(5)
    mask = masks(rng, 3, 5)[case]
    g, beta = LONG(rng.standard_normal(3)), LONG(0.8)
    some = ref.weigh(q, x, beta, mask).count > 0
    d = ref.energy_gradients(q, x, beta, g, mask)

    def total(e):
        return (g * np.where(some, e, 0)).sum()

    agree(d.state, difference(lambda a: total(ref.energy(a, x, beta, mask)), q))
    agree(d.patterns, difference(lambda a: total(constant_M(q, a, beta, mask, x)), x))
    agree(d.beta, difference(lambda a: total(ref.energy(q, x, a, mask)), beta))


def test_energy_gradient_is_state_minus_update():
    q, x, _ = problem(6)
    agree(ref.energy_gradients(q, x, 0.8, np.ones(3)).state, q - ref.step(q, x, 0.8), 8 * EPS)


@pytest.mark.parametrize("case", ["none", "shared", "per row, first row empty", "empty"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("width", [None, 2])
def test_retrieve_gradients_are_finite_differences(case, steps, width):
    q, x, rng = problem(7)
    mask = masks(rng, 3, 5)[case]
    v = None if width is None else LONG(rng.standard_normal((5, width)))
    g, beta = LONG(rng.standard_normal((3, width or 4))), LONG(0.8)
    d = ref.retrieve_gradients(q, x, beta, g, v, steps, mask)

    def total(q=q, x=x, beta=beta, v=v):
        return (g * ref.retrieve(q, x, beta, v, steps, mask=mask).state).sum()

    agree(d.state, difference(lambda a: total(q=a), q))
    agree(d.patterns, difference(lambda a: total(x=a), x))
    agree(d.beta, difference(lambda a: total(beta=a), beta))
    if v is None:
        assert d.values is None
    else:
        agree(d.values, difference(lambda a: total(v=a), v))


def test_gradients_of_broadcast_operands_are_sums():
    q, x, rng = problem(8, batch=(2, 3))
    x, beta = x[:1, :], LONG([0.5, 1.0, 2.0])
    v = LONG(rng.standard_normal((5, 2)))
    g = LONG(rng.standard_normal((2, 3, 3, 2)))
    d = ref.retrieve_gradients(q, x, beta, g, v, 2)
    agree(d.patterns, difference(lambda a: (g * ref.retrieve(q, a, beta, v, 2).state).sum(), x))
    agree(d.beta, difference(lambda a: (g * ref.retrieve(q, x, a, v, 2).state).sum(), beta))
    agree(d.values, difference(lambda a: (g * ref.retrieve(q, x, beta, a, 2).state).sum(), v))


def test_magnitudes_bound_the_gradients():
    q, x, rng = problem(9)
    g = LONG(rng.standard_normal((3, 4)))
    plain, size = (ref.retrieve_gradients(q, x, 0.8, g, steps=3, absolute=a) for a in (False, True))
    for a, b in zip(plain[:3], size[:3], strict=True):
        assert (np.abs(a) <= b).all()


def test_jacobian_is_symmetric_and_a_covariance():
    q, x, _ = problem(10)
    beta = LONG(1.3)
    J = ref.jacobian(q, x, beta)
    agree(J, ref.transpose(J), 8 * EPS)
    p = ref.weigh(q, x, beta).p
    for k in range(3):
        covariance = x.T @ (np.diag(p[k]) - np.outer(p[k], p[k])) @ x
        agree(J[k], beta * covariance, 64 * EPS)
        columns = [difference(lambda a, i=i, k=k: ref.step(a, x, beta)[k, i], q)[k] for i in range(4)]
        agree(J[k], np.array(columns))


def test_rows_stop_alone():
    q, x, _ = problem(11, n=6, N=8)
    together = ref.retrieve(q, x, 4.0, steps=None, tol=1e-6)
    assert len(set(together.steps)) > 1 and together.converged.all()
    for k in range(6):
        alone = ref.retrieve(q[k : k + 1], x, 4.0, steps=None, tol=1e-6)
        assert alone.steps[0] == together.steps[k]
        agree(alone.state[0], together.state[k], 8 * EPS)


def test_step_counts():
    q, x, rng = problem(12, n=2)
    v = LONG(rng.standard_normal((5, 2)))
    assert (ref.retrieve(q, x, 1.0, steps=3).steps == 3).all()
    one = ref.retrieve(q, x, 1.0, v, steps=1)
    assert (one.steps == 1).all() and not one.converged.any()
    assert (ref.retrieve(q, x, 1.0, steps=50, tol=1e30).steps == 1).all()
    assert (ref.retrieve(q, x, 1.0, v, steps=50, tol=1e30).steps == 2).all()
    assert (ref.retrieve(q, x, 4.0, steps=None, tol=-1.0).steps == ref.STEP_LIMIT).all()
