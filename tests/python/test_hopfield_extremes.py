"""The ends of the number range: huge and tiny numbers, NaN, subnormals, and the caller's rounding mode."""

import threading

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests.reference import hopfield as ref

LONG = np.longdouble
if np.finfo(LONG).maxexp < 5000:
    pytest.skip("long double is no wider than double here: no judge for products near 1e400", allow_module_level=True)

HUGE = {"float32": 1e30, "float64": 1e200}


def draw(rng, dtype, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(dtype)


def name(dtype):
    return np.dtype(dtype).name


def check(dtype, out, q, x, beta, v=None):
    """The standard bound; but exactly the winner where the scores leave no doubt about it.

    Where S = |beta * score| is huge the standard bound says nothing. A rounded score is off by some eps * |q| |x|, so a
    winner that leads by a hundredth of that, times a huge beta, has weight 1 in any number type.
    """
    wide = [None if a is None else np.asarray(a).astype(LONG) for a in (q, x, v)]
    q, x, v = wide
    read = x if v is None else v
    with np.errstate(over="ignore", under="ignore"):
        expected = ref.step(q, x, beta, v)
        unit = acc.read_unit(dtype, q, x, LONG(beta), v)[:, None]
        z = q @ x.T
        size = (np.abs(q) @ np.abs(x).T).max(1)
        first, second = np.sort(z, axis=1)[:, ::-1][:, :2].T
        clear = ((first - second) > size / 100) & (beta * (first - second) > 1000)
    exact = acc.C_READ * acc.eps(dtype) * np.abs(read).max()
    assert out.dtype == dtype and np.isfinite(out).all()
    assert (np.abs(out - expected) <= np.where(clear[:, None], exact, acc.C_READ * unit)).all()
    # whatever the weights, they are weights: the result lies in the hull
    assert (out >= read.min(0) - exact).all() and (out <= read.max(0) + exact).all()
    return clear


SCALES = [
    (1, 1),
    (1, 0),
    (0, 1),
    (1, -1),
    (-1, 1),
    (2 / 3, 1),
    (-1, -1),
    (0.5, 0.5),
    (0.7, 0.7),
]  # of state, of patterns: powers of HUGE


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_no_overflow_in_retrieve(rng, dtype, beta, scales):
    a, b = (HUGE[name(dtype)] ** s for s in scales)
    q, x, v = draw(rng, dtype, 12, 7, scale=a), draw(rng, dtype, 30, 7, scale=b), draw(rng, dtype, 30, 3)
    clear = check(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)
    check(dtype, rc.hopfield.retrieve(q, x, beta=beta, values=v), q, x, beta, v)
    if scales == (1, 1):
        assert clear.any(), "the setting tests nothing"
    for steps in (2, 5, None):
        out = rc.hopfield.retrieve(q, x, beta=beta, steps=steps)
        assert np.isfinite(out).all()
        room = acc.C_READ * acc.eps(dtype) * np.abs(x).max()
        assert (out >= x.min(0) - room).all() and (out <= x.max(0) + room).all()


@pytest.mark.parametrize("N", [1, 2, 193, 1000])
@pytest.mark.parametrize("d", [1, 16, 100])
def test_no_overflow_at_any_size(rng, dtype, N, d):
    big = HUGE[name(dtype)]
    for n in (1, 5, 70):
        q, x = draw(rng, dtype, n, d, scale=big), draw(rng, dtype, N, d, scale=big)
        mask = np.arange(N) != N // 2
        if N == 1:
            check(dtype, rc.hopfield.retrieve(q, x, beta=1.0), q, np.concatenate([x, x]), 1.0)
        else:
            check(dtype, rc.hopfield.retrieve(q, x, beta=1.0), q, x, 1.0)
            if N > 2:
                check(dtype, rc.hopfield.retrieve(q, x, beta=1.0, mask=mask), q, x[mask], 1.0)


def test_products_that_cancel_beyond_the_number_range(dtype):
    """inf - inf in the scores of a careless kernel: exact scores are 0, and +-1 decides."""
    big = HUGE[name(dtype)]
    q = np.array([[big, big, 1.0]], dtype)
    x = np.array([[big, -big, 0.0], [-big, big, 0.0], [0.0, 0.0, 1.0]], dtype)
    out = rc.hopfield.retrieve(q, x, beta=1.0)
    assert np.isfinite(out).all() and (np.abs(out) <= big * (1 + 8 * acc.eps(dtype))).all()
    # only ordinary products compete here: the huge entries meet zeros
    q, x = np.array([[big, 0.5]], dtype), np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 3.0]], dtype)
    check(dtype, rc.hopfield.retrieve(q, x, beta=1.0), q, x, 1.0)


def test_one_huge_row_leaves_the_others_exact(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 20, 9), draw(rng, dtype, 50, 9)
    plain = rc.hopfield.retrieve(q, x, beta=0.7)
    q[7] *= HUGE[name(dtype)]
    out = rc.hopfield.retrieve(q, x, beta=0.7)
    same_bits(np.delete(out, 7, 0), np.delete(plain, 7, 0))
    check(dtype, out, q, x, 0.7)


def test_one_huge_pattern(rng, dtype):
    q, x = draw(rng, dtype, 20, 9), draw(rng, dtype, 50, 9)
    x[7] *= HUGE[name(dtype)]
    check(dtype, rc.hopfield.retrieve(q, x, beta=0.7), q, x, 0.7)


@pytest.mark.parametrize("N", [2, 64, 1000])
def test_sums_of_the_largest_numbers(rng, dtype, N):
    """Weights are at most 1 in sum, so not even patterns near the largest number overflow."""
    top = np.finfo(dtype).max
    x = np.full((N, 5), 0.9 * top, dtype)
    x[:, 1] = -x[:, 1]
    x[:, 2] = 0.9 * top * rng.uniform(0.5, 1, N)
    q = np.zeros((3, 5), dtype)
    check(dtype, rc.hopfield.retrieve(q, x, beta=1.0), q, x, 1.0)
    v = x
    q, x = draw(rng, dtype, 3, 4), draw(rng, dtype, N, 4)
    check(dtype, rc.hopfield.retrieve(q, x, beta=0.1, values=v), q, x, 0.1, v)


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_energy_of_huge_inputs(rng, dtype, beta, scales):
    """Right where it can be told; +inf where it leaves the number range; never NaN, never -inf."""
    a, b = (HUGE[name(dtype)] ** s for s in scales)
    q, x = draw(rng, dtype, 12, 7, scale=a), draw(rng, dtype, 30, 7, scale=b)
    wide = q.astype(LONG), x.astype(LONG), LONG(beta)
    expected, unit = ref.energy(*wide), acc.C_ENERGY * acc.energy_unit(dtype, *wide)
    info = rc.hopfield.retrieve(q, x, beta=beta, values=x, return_info=True)
    for energy in (rc.hopfield.energy(q, x, beta=beta), info.energy):
        assert not np.isnan(energy).any() and not np.isneginf(energy).any()
        small = expected + unit < np.finfo(dtype).max / 16
        small &= (wide[0] ** 2).sum(-1) + (wide[1] ** 2).sum(-1).max() < np.finfo(dtype).max / 16
        assert (np.abs(energy[small] - expected[small]) <= unit[small]).all()
        big = expected - unit > np.finfo(dtype).max
        assert np.isposinf(energy[big]).all()
    lse = ref.lse(*wide)
    small = np.abs(lse) < np.finfo(dtype).max / 16
    assert not np.isnan(info.lse).any()
    assert (np.abs(info.lse[small] - lse[small]) <= unit[small]).all()
    assert (np.sign(info.lse[~small]) == np.sign(lse[~small])).all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_gradients_of_huge_inputs_are_numbers(rng, dtype, steps, power):
    """One winner takes all: d_patterns is d_out at the winner and everything else is 0."""
    big = HUGE[name(dtype)] ** power
    x = (np.eye(9, 8) * big).astype(dtype)
    q = x[[1, 4]]
    out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=1.0, steps=steps)
    np.testing.assert_array_equal(out, q)
    g = pullback(np.ones_like(out))
    np.testing.assert_array_equal(g.state, np.zeros((2, 8)))
    np.testing.assert_array_equal(g.patterns, np.isin(np.arange(9), [1, 4])[:, None] * np.ones(8))
    assert g.beta == 0


# ---------------------------------------------------------------------------------------- beta, size of scores


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_beta_and_size_of_scores(rng, dtype, beta, size):
    q, x = draw(rng, dtype, 9, 6), draw(rng, dtype, 40, 6)
    q = (q * (size / (beta * np.abs(q @ x.T).max()))).astype(dtype)
    check(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)


@pytest.mark.parametrize("beta", [1e-300, 1e-60, 1e60, 1e300])
def test_beta_beyond_the_range_of_float32(rng, dtype, beta):
    """A positive finite number is allowed, also next to float32: the mean, or the winner."""
    q, x = draw(rng, dtype, 9, 6), draw(rng, dtype, 40, 6)
    out = rc.hopfield.retrieve(q, x, beta=beta)
    expected = ref.step(q.astype(LONG), x.astype(LONG), LONG(beta))
    assert (np.abs(out - expected) <= 2 * acc.C_READ * acc.eps(dtype) * np.abs(x).max()).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_close_together(rng, dtype, sign):
    """Scores near +-10^4 that differ by some units: the differences decide, as far as they are kept."""
    q = np.ones((3, 1), dtype)
    x = (sign * 1e4 + rng.integers(-8, 9, (50, 1)) / 4).astype(dtype)  # exact in float32
    v = draw(rng, dtype, 50, 4)
    out = rc.hopfield.retrieve(q, x, beta=1.0, values=v)
    expected = ref.step(q.astype(LONG), x.astype(LONG), 1.0, v.astype(LONG))
    # the scores are exact, and beta * score is too: all that may be lost is in exp((z - max) log2(e))
    assert (np.abs(out - expected) <= acc.C_READ * acc.eps(dtype) * (1 + 1e4) * np.abs(v).max()).all()


def test_scores_from_minus_to_plus_ten_thousand(dtype):
    q = np.ones((1, 1), dtype)
    x = np.linspace(-1e4, 1e4, 401)[:, None].astype(dtype)
    for order in (x, x[::-1].copy()):
        check(dtype, rc.hopfield.retrieve(q, order, beta=1.0), q, order, 1.0)
        info = rc.hopfield.retrieve(-q, order, beta=1.0, values=order, return_info=True)
        assert abs(info.lse[0] - 1e4) <= acc.C_ENERGY * acc.eps(dtype) * 1e4


# -------------------------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n, N", [(5, 7), (70, 193), (200, 500)])
def test_a_bad_query_spoils_only_its_own_row(rng, dtype, same_bits, steps, bad, n, N):
    q, x, v = draw(rng, dtype, n, 16), draw(rng, dtype, N, 16), draw(rng, dtype, N, 3)
    rows = [1, n - 2]
    spoiled = q.copy()
    spoiled[rows, [0, 15]] = bad
    for values in (None, v):
        plain = rc.hopfield.retrieve(q, x, beta=0.4, values=values, steps=steps, return_info=True)
        info = rc.hopfield.retrieve(spoiled, x, beta=0.4, values=values, steps=steps, return_info=True)
        for a, b in zip(info, plain, strict=True):
            same_bits(np.delete(a, rows, 0), np.delete(b, rows, 0))
        if np.isnan(bad):
            assert np.isnan(info.state[rows]).all()
            assert np.isnan(info.energy[rows]).all() and np.isnan(info.lse[rows]).all()
            assert not info.converged[rows].any()
    if np.isnan(bad):
        energy = rc.hopfield.energy(spoiled, x, beta=0.4)
        assert np.isnan(energy[rows]).all() and np.isnan(energy).sum() == 2


def test_a_bad_query_does_not_keep_the_others_from_stopping(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 9, 6), draw(rng, dtype, 12, 6)
    plain = rc.hopfield.retrieve(q, x, beta=1.0, steps=None, return_info=True)
    q[4, 2] = np.nan
    info = rc.hopfield.retrieve(q, x, beta=1.0, steps=None, return_info=True)
    assert np.isnan(info.state[4]).all() and not info.converged[4]
    for a, b in zip(info, plain, strict=True):
        same_bits(np.delete(a, 4, 0), np.delete(b, 4, 0))


@pytest.mark.parametrize("place", [0, 100, 192])
def test_a_bad_pattern_is_never_passed_over(rng, dtype, place):
    """A NaN among the patterns has no weight: every row that reads it is NaN, no row looks plausible."""
    q, x = draw(rng, dtype, 9, 16), draw(rng, dtype, 193, 16)
    x[place, 3] = np.nan
    assert np.isnan(rc.hopfield.retrieve(q, x, beta=0.4)).all()
    assert np.isnan(rc.hopfield.energy(q, x, beta=0.4)).all()
    v = draw(rng, dtype, 193, 4)
    assert np.isnan(rc.hopfield.retrieve(q, x, beta=0.4, values=v)).all()


def test_a_bad_value_is_never_passed_over(rng, dtype):
    q, x, v = draw(rng, dtype, 9, 16), draw(rng, dtype, 193, 16), draw(rng, dtype, 193, 4)
    v[100, 2] = np.nan
    out = rc.hopfield.retrieve(q, x, beta=0.01, values=v)
    assert np.isnan(out[:, 2]).all() and np.isfinite(np.delete(out, 2, 1)).all()


def test_a_bad_pattern_of_one_head_spoils_only_that_head(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 3, 9, 16), draw(rng, dtype, 3, 50, 16)
    plain = rc.hopfield.retrieve(q, x, beta=0.4)
    x[1, 20, 3] = np.nan
    out = rc.hopfield.retrieve(q, x, beta=0.4)
    assert np.isnan(out[1]).all()
    same_bits(out[[0, 2]], plain[[0, 2]])


def padded(rng, dtype, N, bad):
    """Two memories that differ only in what no state may see: zeros, or something bad."""
    q, x, v = draw(rng, dtype, 9, 16), draw(rng, dtype, N, 16), draw(rng, dtype, N, 4)
    keep = np.arange(N) % 3 != 1
    clean, spoiled = (x.copy(), v.copy()), (x.copy(), v.copy())
    for filling, arrays in ((0, clean), (bad, spoiled)):
        for a in arrays:
            a[~keep] = filling
    return q, keep, clean, spoiled


def nearly(a, b):
    """Equal but for roundings: a kernel may take another path where it meets something bad."""
    a, b = np.asarray(a), np.asarray(b)
    finite = np.isfinite(a) & (a.dtype.kind == "f")
    np.testing.assert_array_equal(a[~finite], b[~finite])
    if finite.any():
        room = 64 * acc.C_READ * acc.eps(a.dtype) * max(1.0, np.abs(a[finite]).max())
        np.testing.assert_allclose(b[finite], a[finite], rtol=0, atol=room)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("N", [5, 193, 1000])
@pytest.mark.parametrize("form", ["shared", "per query"])
def test_what_no_state_may_see_can_hold_anything(rng, dtype, bad, N, form):
    q, keep, clean, spoiled = padded(rng, dtype, N, bad)
    mask = keep if form == "shared" else np.tile(keep, (9, 1))
    found = []
    for x, v in (clean, spoiled):
        found.append([rc.hopfield.energy(q, x, beta=0.4, mask=mask)])
        for more in ({}, {"steps": 2}, {"values": v}):
            found[-1] += rc.hopfield.retrieve(q, x, beta=0.4, mask=mask, return_info=True, **more)
    for a, b in zip(*found, strict=True):
        nearly(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("N", [5, 193, 1000])
@pytest.mark.parametrize("form", ["shared", "per query"])
def test_what_no_state_may_see_has_no_part_in_gradients(rng, dtype, bad, N, form):
    q, keep, clean, spoiled = padded(rng, dtype, N, bad)
    mask = keep if form == "shared" else np.tile(keep, (9, 1))
    found = []
    for x, v in (clean, spoiled):
        found.append([])
        for function, more in (
            (rc.hopfield.retrieve, {}), (rc.hopfield.retrieve, {"steps": 2}), (rc.hopfield.retrieve, {"values": v}), (rc.hopfield.energy, {})
        ):  # fmt: skip
            out, pullback = rc.vjp(function, q, x, beta=0.4, mask=mask, **more)
            found[-1] += pullback(np.ones_like(out))
    for a, b in zip(*found, strict=True):
        nearly(a, b)


# -------------------------------------------------------------------------- subnormal numbers, rounding modes


def test_subnormal_patterns_are_kept(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = (tiny * np.arange(1, 9)).reshape(1, 8).astype(dtype)
    for q in (np.ones((1, 8), dtype), np.ones((300, 8), dtype)):
        np.testing.assert_array_equal(rc.hopfield.retrieve(q, x, beta=1.0), np.broadcast_to(x, q.shape))
    # four equal weights: the mean, to one subnormal
    x = (tiny * np.array([[4, 8], [8, 8], [4, 0], [8, 0]])).astype(dtype)
    out = rc.hopfield.retrieve(np.zeros((1, 2), dtype), x, beta=1.0)
    assert (np.abs(out / tiny - [[6, 4]]) <= 4).all() and (out > 0).all()


def test_subnormal_states(rng, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    q, x = (tiny * rng.integers(1, 100, (3, 6))).astype(dtype), draw(rng, dtype, 20, 6)
    check(dtype, rc.hopfield.retrieve(q, x, beta=1.0), q, x, 1.0)


def floating_point_mode_is_plain():
    """Subnormals survive arithmetic in this thread (no FTZ, no DAZ), and it rounds to nearest."""
    for dtype in (np.float32, np.float64):
        one, eps = np.ones(64, dtype), np.finfo(dtype).eps
        sub = np.full(64, np.finfo(dtype).smallest_subnormal, dtype)
        least = np.full(64, np.finfo(dtype).tiny, dtype)
        assert (sub * one > 0).all() and (sub + sub == 2 * sub).all() and ((sub + sub) > sub).all()
        assert (least / 2 > 0).all() and (least - sub < least).all()
        assert (one + dtype(0.4) * eps == one).all() and (one + dtype(0.6) * eps == one + eps).all()
        assert (-one - dtype(0.4) * eps == -one).all()


def test_the_floating_point_mode_of_the_caller_is_left_alone(rng, dtype):
    floating_point_mode_is_plain()
    found = []

    def work():
        q, x = draw(rng, dtype, 200, 16), draw(rng, dtype, 1000, 16)
        out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=0.5, steps=2)
        pullback(np.ones_like(out))
        rc.hopfield.retrieve(q, x, beta=0.5, steps=None)
        rc.hopfield.energy(q, x, beta=0.5)
        floating_point_mode_is_plain()
        found.append(True)

    for threads in (1, 4):
        rc.set_num_threads(threads)
        work()
    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert len(found) == 3
    floating_point_mode_is_plain()
