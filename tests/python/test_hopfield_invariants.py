"""What must hold for every correct implementation: descent, bounds, fixed points, theorems, symmetries.

Paper: Ramsauer et al., "Hopfield Networks is All You Need": Lemma A1 (bounds), Theorems 1 and 2 (descent), 4 and 5
(one-step retrieval and its error), Lemma A4.
"""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import accuracy as acc
from tests.reference import hopfield as ref

EPS = acc.eps(np.float64)


def norm(a):
    return np.linalg.norm(a, axis=-1)


def slack(dtype, q, x, beta):
    """How far two energies of the same rows may be off by rounding."""
    q, x, beta = acc.widen(dtype, q, x, beta)
    return 2 * acc.C_ENERGY * acc.energy_unit(dtype, q, x, beta)


# --------------------------------------------------------------------------------------------- energy: descent


@pytest.mark.parametrize("beta", [0.05, 0.7, 5.0, 80.0])
def test_every_update_lowers_the_energy_by_half_the_squared_move(rng, dtype, beta):
    """Theorem 1 with its margin: lse is convex, so E(q) - E(q') >= |q - q'|^2 / 2."""
    q, x = (3 * rng.standard_normal((60, 9))).astype(dtype), rng.standard_normal((25, 9)).astype(dtype)
    for _ in range(8):
        new = rc.hopfield.retrieve(q, x, beta=beta)
        before, after = rc.hopfield.energy(q, x, beta=beta), rc.hopfield.energy(new, x, beta=beta)
        error = slack(dtype, q, x, beta) + slack(dtype, new, x, beta)
        error += 3 * norm(q - new) * acc.C_READ * acc.read_unit(dtype, *acc.widen(dtype, q, x, beta))
        assert (before - after >= norm(q - new) ** 2 / 2 - error).all()
        q = new


def test_info_energy_never_rises_with_more_steps(rng):
    q, x = rng.standard_normal((30, 16)), rng.standard_normal((40, 16))
    energies = [rc.hopfield.energy(q, x, beta=0.9)]
    for steps in (1, 2, 3, 5, 8, 13, 40):
        energies.append(rc.hopfield.retrieve(q, x, beta=0.9, steps=steps, return_info=True).energy)
    assert (np.diff(energies, axis=0) <= slack(np.float64, q, x, 0.9)).all()
    info = rc.hopfield.retrieve(q, x, beta=0.9, steps=None, return_info=True)
    assert (info.energy <= energies[-1] + slack(np.float64, q, x, 0.9)).all()


@pytest.mark.parametrize("beta", [0.05, 0.7, 20.0])
def test_bounds_in_the_convex_hull(rng, dtype, beta):
    """Lemma A1: 0 <= E <= 2 M^2 there; and E >= |q - X p|^2 / 2 everywhere."""
    x = rng.standard_normal((50, 32)).astype(dtype)
    inside = (rng.dirichlet(np.full(50, 0.3), 200) @ x).astype(dtype)
    e, M2 = rc.hopfield.energy(inside, x, beta=beta), (x.astype(np.float64) ** 2).sum(1).max()
    error = slack(dtype, inside, x, beta)
    assert (e >= -error).all() and (e <= 2 * M2 + error).all()
    anywhere = (5 * rng.standard_normal((200, 32))).astype(dtype)
    for q in (inside, anywhere):
        gap = norm(q - rc.hopfield.retrieve(q, x, beta=beta).astype(np.float64)) ** 2 / 2
        rounding = 4 * slack(dtype, q, x, beta) * (1 + beta)
        assert (rc.hopfield.energy(q, x, beta=beta) >= gap - rounding).all()


def test_energy_is_a_gaussian_mixture(rng):
    x, q = rng.standard_normal((30, 8)), rng.standard_normal((20, 8))
    x /= norm(x)[:, None]  # equal norms: the negative log-likelihood itself
    for beta in (0.1, 1.0, 6.0):
        likelihood = np.exp(-beta / 2 * norm(q[:, None] - x) ** 2).mean(1)
        error = slack(np.float64, q, x, beta) + 64 * EPS * (1 + 1 / beta)
        assert (np.abs(rc.hopfield.energy(q, x, beta=beta) + np.log(likelihood) / beta) <= error).all()


def test_energy_at_a_separated_pattern(rng):
    """E(x_i) = (M^2 - |x_i|^2) / 2 + log(N) / beta + exponentially little."""
    x = 6 * np.linalg.qr(rng.standard_normal((20, 20)))[0] * np.linspace(1, 2, 20)[:, None]
    e = rc.hopfield.energy(x, x, beta=3.0)
    squares = norm(x) ** 2
    assert (np.abs(e - (squares.max() - squares) / 2 - np.log(20) / 3.0) <= slack(np.float64, x, x, 3.0)).all()


# -------------------------------------------------------------------------------------- fixed points, theorems


def sphere(rng, N, d, radius):
    x = rng.standard_normal((N, d))
    return radius * x / norm(x)[:, None]


def separation(x):
    gram = x @ x.T
    squares = np.diag(gram).copy()
    np.fill_diagonal(gram, -np.inf)
    return squares - gram.max(1)


@pytest.mark.parametrize("beta, N, d", [(0.45, 20, 64), (0.6, 50, 64), (1.0, 100, 64), (2.0, 400, 32)])
def test_retrieval_error_of_well_separated_patterns(rng, beta, N, d):
    """Theorem 5: |x_i - x_i*| <= 2 e (N - 1) M exp(-beta Delta_i), and one step comes that close."""
    M = np.sqrt(d - 1)
    x = sphere(rng, N, d, M)
    delta = separation(x)
    separated = delta >= 2 / (beta * N) + np.log(2 * (N - 1) * N * beta * M**2) / beta
    assert separated.sum() >= 2, "the setting tests nothing"
    x_i, delta = x[separated], delta[separated]
    fixed = rc.hopfield.retrieve(x_i, x, beta=beta, steps=None, return_info=True)
    rounding = acc.C_READ * np.sqrt(d) * EPS * M * (1 + beta * M**2)
    assert fixed.converged.all()
    away = norm(x_i - fixed.state)
    assert (away <= 2 * np.e * (N - 1) * M * np.exp(-beta * delta) + rounding).all()

    for radius in (1 / (2 * beta * M), 1 / (beta * N * M)):
        xi = x_i + sphere(rng, len(x_i), d, radius)
        one = rc.hopfield.retrieve(xi, x, beta=beta)
        worst = 2 * (N - 1) * M * np.exp(-beta * (delta - 2 * np.maximum(radius, away) * M))
        assert (norm(one - x_i) <= worst + rounding).all()
    # the sphere of radius 1 / (beta N M) maps into itself and contracts to the one fixed point
    assert (norm(one - x_i) <= radius + rounding).all()
    again = rc.hopfield.retrieve(xi, x, beta=beta, steps=None)
    assert (norm(again - fixed.state) <= 4 * 1e-8 + rounding).all()
    # Theorem 4: |f(xi) - x_i*| <= J |xi - x_i*|, J <= 2 beta N M^2 (N-1) exp(-beta (Delta - 2 max(..) M))
    J = 2 * beta * N * M**2 * (N - 1) * np.exp(-beta * (delta - 2 * np.maximum(norm(xi - x_i), away) * M))
    assert (norm(one - fixed.state) <= J * norm(xi - fixed.state) + rounding + 1e-8).all()


def test_one_step_error_by_margins(rng):
    """Lemma A4: (x_i - x_j) . q >= c for all j gives |x_i - f(q)| <= 2 (N - 1) exp(-beta c) M."""
    x = sphere(rng, 30, 24, 3.0)
    q = x + 0.1 * rng.standard_normal(x.shape)
    z = q @ x.T
    own = np.diag(z).copy()
    np.fill_diagonal(z, -np.inf)
    c = own - z.max(1)
    for beta in (0.2, 1.0, 5.0):
        error = norm(rc.hopfield.retrieve(q, x, beta=beta) - x)
        assert (error <= 2 * 29 * np.exp(-beta * c) * 3.0 + acc.C_READ * 5 * EPS * 3.0 * (1 + 9 * beta)).all()


def test_a_small_beta_has_one_fixed_point(rng):
    """beta m_max^2 < 1: the update contracts everywhere in the hull, to a state near the mean."""
    x = rng.standard_normal((20, 16))
    m_max = norm(x - x.mean(0)).max()
    beta = 0.8 / m_max**2
    starts = rng.dirichlet(np.full(20, 0.2), 40) @ x
    info = rc.hopfield.retrieve(starts, x, beta=beta, steps=None, return_info=True)
    assert info.converged.all()
    r = beta * m_max**2
    assert (norm(info.state - info.state[0]) <= 2 * 1e-8 * r / (1 - r) + 64 * EPS * norm(x).max()).all()


def test_a_fixed_point_is_stationary(rng):
    q, x = rng.standard_normal((20, 16)), rng.standard_normal((12, 16))
    info = rc.hopfield.retrieve(q, x, beta=2.0, steps=None, tol=1e-10, return_info=True)
    done = info.converged
    assert done.any()
    state = info.state[done]
    energy, pullback = rc.vjp(rc.hopfield.energy, state, x, beta=2.0)
    J = np.linalg.norm(ref.jacobian(state, x, 2.0), 2, axis=(-1, -2))
    assert (norm(pullback(np.ones_like(energy)).state) <= 1e-10 * (1 + J) + 256 * EPS * norm(x).max() ** 3).all()


def test_the_jacobian(rng):
    """Row by row from pullbacks: symmetric, beta Cov_p[x], its norm within the bounds of the paper."""
    beta, d = 0.7, 6
    x = rng.standard_normal((9, d))
    q = rng.dirichlet(np.ones(9), 5) @ x
    _, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=beta)
    J = np.stack([pullback(np.tile(unit, (5, 1))).state for unit in np.eye(d)], axis=1)
    unit = 64 * EPS * beta * norm(x).max() ** 2
    assert (np.abs(J - np.swapaxes(J, 1, 2)) <= unit).all()
    assert (np.abs(J - ref.jacobian(q, x, beta)) <= unit).all()
    eigenvalues = np.linalg.eigvalsh((J + np.swapaxes(J, 1, 2)) / 2)
    assert (eigenvalues >= -unit).all()
    p = ref.weigh(q, x, beta).p
    m, M2, m_max = (p * (1 - p)).max(1), norm(x).max() ** 2, norm(x - x.mean(0)).max()
    assert (eigenvalues[:, -1] <= 2 * beta * 9 * M2 * m + unit).all()
    assert (eigenvalues[:, -1] <= beta * (2 * m_max) ** 2 + unit).all()


# ------------------------------------------------------------------------------------------ weights, symmetries


@pytest.mark.parametrize("beta", [1e-6, 0.3, 10.0, 1e6])
@pytest.mark.parametrize("N", [1, 7, 193, 2000])
def test_weights_are_a_distribution(rng, dtype, beta, N):
    """Values tell the weights: ones give their sum, the identity gives each of them."""
    q, x = rng.standard_normal((9, 5)).astype(dtype), rng.standard_normal((N, 5)).astype(dtype)
    total = rc.hopfield.retrieve(q, x, beta=beta, values=np.ones((N, 1), dtype))
    assert (np.abs(total - 1) <= 2 * acc.eps(dtype) * (4 + np.sqrt(N))).all()
    weights = rc.hopfield.retrieve(q, x, beta=beta, values=np.eye(N, dtype=dtype))
    assert (weights >= 0).all() and (weights <= 1 + 4 * acc.eps(dtype)).all()
    q, x, beta = acc.widen(dtype, q, x, beta)
    expected = ref.weigh(q, x, beta).p
    S = acc.score_size(q, x, beta)[:, None]
    assert (np.abs(weights - expected) <= acc.C_READ * acc.eps(dtype) * ((1 + S) * expected + 1)).all()


def test_one_pattern_returns_it(rng, dtype):
    x = rng.standard_normal((1, 12)).astype(dtype)
    q = (100 * rng.standard_normal((8, 12))).astype(dtype)
    for beta in (1e-6, 1.0, 1e6):
        for steps in (1, 4):
            out = rc.hopfield.retrieve(q, x, beta=beta, steps=steps)
            assert (np.abs(out - x) <= 2 * acc.eps(dtype) * np.abs(x)).all()


def test_equal_patterns_return_it(rng, dtype):
    one = rng.standard_normal(12).astype(dtype)
    out = rc.hopfield.retrieve(rng.standard_normal((3, 12)).astype(dtype), np.tile(one, (50, 1)), beta=2.0)
    assert (np.abs(out - one) <= acc.C_READ * acc.eps(dtype) * np.abs(one)).all()


def test_zero_state_returns_the_mean(rng, dtype):
    x = rng.standard_normal((40, 12)).astype(dtype)
    out = rc.hopfield.retrieve(np.zeros((2, 12), dtype), x, beta=5.0)
    assert (np.abs(out - x.astype(np.float64).mean(0)) <= acc.C_READ * acc.eps(dtype) * np.abs(x).max()).all()


def test_the_order_of_patterns_does_not_matter(rng, dtype):
    q, x = rng.standard_normal((12, 9)).astype(dtype), rng.standard_normal((300, 9)).astype(dtype)
    v, mask = rng.standard_normal((300, 4)).astype(dtype), rng.random((12, 300)) < 0.7
    order = rng.permutation(300)
    for values, wide in ((None, acc.widen(dtype, q, x, 0.8)), (v, acc.widen(dtype, q, x, 0.8, v))):
        moved = None if values is None else values[order]
        a = rc.hopfield.retrieve(q, x, beta=0.8, values=values, mask=mask)
        b = rc.hopfield.retrieve(q, x[order], beta=0.8, values=moved, mask=mask[:, order])
        assert (np.abs(a - b) <= 2 * acc.C_READ * acc.read_unit(dtype, *wide, mask=mask)[:, None]).all()
    e = rc.hopfield.energy(q, x, beta=0.8, mask=mask) - rc.hopfield.energy(q, x[order], beta=0.8, mask=mask[:, order])
    assert (np.abs(e) <= slack(dtype, q, x, 0.8)).all()


def test_powers_of_two_move_between_beta_and_the_patterns(rng):
    """beta -> beta / 4 with state and patterns doubled: the same weights."""
    q, x, v = rng.standard_normal((7, 9)), rng.standard_normal((60, 9)), rng.standard_normal((60, 3))
    a = rc.hopfield.retrieve(q, x, beta=0.8, values=v)
    b = rc.hopfield.retrieve(2 * q, 2 * x, beta=0.2, values=v)
    assert (np.abs(a - b) <= acc.C_READ * acc.read_unit(np.float64, q, x, 0.8, v)[:, None]).all()


def test_a_common_shift_of_scores_changes_nothing(rng):
    """Adding c to every pattern adds c . q to every score: the weights stay."""
    q, x, v = rng.standard_normal((7, 9)), rng.standard_normal((60, 9)), rng.standard_normal((60, 3))
    shift = 10 * rng.standard_normal(9)
    a = rc.hopfield.retrieve(q, x, beta=0.8, values=v)
    b = rc.hopfield.retrieve(q, x + shift, beta=0.8, values=v)
    assert (np.abs(a - b) <= 4 * acc.C_READ * acc.read_unit(np.float64, q, x + shift, 0.8, v)[:, None]).all()


def test_rotations_commute(rng):
    q, x = rng.standard_normal((7, 9)), rng.standard_normal((60, 9))
    turn = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    a = rc.hopfield.retrieve(q, x, beta=0.8, steps=2) @ turn
    b = rc.hopfield.retrieve(q @ turn, x @ turn, beta=0.8, steps=2)
    assert (norm(a - b) <= 9 * acc.path_bound(np.float64, q, x, 0.8, 2)).all()


def test_a_pattern_stored_twice_counts_double(rng):
    q, x = rng.standard_normal((7, 9)), rng.standard_normal((20, 9))
    twice = np.concatenate([x, x])
    a, b = rc.hopfield.retrieve(q, x, beta=0.8), rc.hopfield.retrieve(q, twice, beta=0.8)
    assert (np.abs(a - b) <= 2 * acc.C_READ * acc.read_unit(np.float64, q, x, 0.8)[:, None]).all()
    # lse gains log(2) / beta, the energy's log(N) / beta takes it back
    e = rc.hopfield.energy(q, x, beta=0.8) - rc.hopfield.energy(q, twice, beta=0.8)
    assert (np.abs(e) <= slack(np.float64, q, twice, 0.8)).all()


# ------------------------------------------------------------- a row never depends on the rows beside it: bitwise


@pytest.mark.parametrize(
    "n, N, d", [(2, 1, 1), (9, 7, 3), (65, 193, 16), (385, 191, 33), (129, 1000, 64), (200, 20_000, 16)]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_row_alone_is_the_row_in_a_batch(rng, dtype, same_bits, n, N, d, steps):
    q, x = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((N, d)).astype(dtype)
    beta = 2 / np.sqrt(d)
    together = rc.hopfield.retrieve(q, x, beta=beta, steps=steps, return_info=True)
    for k in {0, 1, n // 2, n - 1}:
        alone = rc.hopfield.retrieve(q[k : k + 1], x, beta=beta, steps=steps, return_info=True)
        for a, b in zip(alone, together, strict=True):
            same_bits(a[0], b[k])
    some = slice(n // 3, n // 3 + 5)
    same_bits(rc.hopfield.retrieve(q[some], x, beta=beta, steps=steps), together.state[some])
    back = rc.hopfield.retrieve(q[::-1].copy(), x, beta=beta, steps=steps)
    same_bits(back[::-1], together.state)
    same_bits(rc.hopfield.energy(q, x, beta=beta)[:1], rc.hopfield.energy(q[:1], x, beta=beta))


@pytest.mark.parametrize("N", [7, 193, 3000])
def test_a_row_alone_with_values_and_masks(rng, dtype, same_bits, N):
    q, x = rng.standard_normal((70, 12)).astype(dtype), rng.standard_normal((N, 12)).astype(dtype)
    v, mask = rng.standard_normal((N, 5)).astype(dtype), rng.random((70, N)) < 0.5
    mask[3] = False
    for m in (None, mask, mask[0]):
        together = rc.hopfield.retrieve(q, x, beta=0.6, values=v, steps=3, mask=m, return_info=True)
        for k in (0, 3, 41, 69):
            own = m[k : k + 1] if m is mask else m
            alone = rc.hopfield.retrieve(q[k : k + 1], x, beta=0.6, values=v, steps=3, mask=own, return_info=True)
            for a, b in zip(alone, together, strict=True):
                same_bits(a[0], b[k])


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_a_row_alone_stops_where_it_stops_in_a_batch(rng, dtype, same_bits, tol):
    q, x = rng.standard_normal((40, 6)).astype(dtype), rng.standard_normal((12, 6)).astype(dtype)
    together = rc.hopfield.retrieve(q, x, beta=2.0, steps=None, tol=tol, return_info=True)
    assert len(set(together.steps)) > 1
    for k in range(40):
        alone = rc.hopfield.retrieve(q[k : k + 1], x, beta=2.0, steps=None, tol=tol, return_info=True)
        for a, b in zip(alone, together, strict=True):
            same_bits(a[0], b[k])


def test_heads_alone_are_the_heads_in_a_batch(rng, dtype, same_bits):
    q, x = rng.standard_normal((2, 3, 33, 20)).astype(dtype), rng.standard_normal((3, 200, 20)).astype(dtype)
    beta = np.array([0.3, 0.6, 0.9], dtype)
    together = rc.hopfield.retrieve(q, x, beta=beta, steps=2)
    for b in range(2):
        for h in range(3):
            same_bits(rc.hopfield.retrieve(q[b, h], x[h], beta=beta[h], steps=2), together[b, h])


# --------------------------------------------------------------------------------------------------- at random

sizes = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40))


@given(sizes, st.floats(-3, 2), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_descent_and_hull_at_random(shape, log_beta, seed, dtype):
    n, N, d = shape
    rng, beta = np.random.default_rng(seed), 10**log_beta
    q, x = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((N, d)).astype(dtype)
    new = rc.hopfield.retrieve(q, x, beta=beta)
    room = acc.C_READ * acc.eps(dtype) * np.abs(x).max()
    assert (new >= x.min(0) - room).all() and (new <= x.max(0) + room).all()
    before, after = rc.hopfield.energy(q, x, beta=beta), rc.hopfield.energy(new, x, beta=beta)
    assert (after <= before + slack(dtype, q, x, beta) + slack(dtype, new, x, beta)).all()
