"""The separations oracle's own witnesses: published numbers, the definition as a maximum, identities, finite differences."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import separations as sep  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
# Central differences at h and 2 h, extrapolated, err by h^4 times a fifth derivative and by eps / h.
STEP = 4e-6
DIFFERENCE_TOL = 1e-9
THRESHOLDS = [
    "sparsemax", "entmax15", ("entmax", 1.05), ("entmax", 1.5), ("entmax", 2), ("entmax", 2.5), ("entmax", 4.0),
    ("normmax", 1.3), ("normmax", 2), ("normmax", 3.5), ("k_subset", 1), ("k_subset", 3),
]  # fmt: skip
ALL = ["softmax", *THRESHOLDS, "hard", ("top_k_softmax", 3), "linear"]
SIMPLEX = [s for s in ALL if s not in ("linear", ("k_subset", 3))]


def agree(a, b, tol=64 * EPS):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0))))


def close(separation, a, b, z, keep=None):
    """Weights of equal scores, each of which rounding may have moved: beside a threshold roots of alpha > 2 are steep."""
    size = np.where(True if keep is None else keep, np.abs(z), 0).max(axis=-1, initial=0)
    bound = sep.spread(separation, z, 64 * EPS * (1 + size), keep)
    assert a.shape == b.shape and (np.abs(a - b) <= bound + 64 * EPS * (1 + np.abs(b))).all()


def rows(seed, n=40, m=9, sizes=(0.01, 0.3, 1, 3, 30)):
    """Scores of several sizes: wide supports, narrow ones, single ones."""
    rng = np.random.default_rng(seed)
    return LONG(rng.standard_normal((n, m)) * np.resize(sizes, n)[:, None])


# -------------------------------------------------------------------------------------------- published numbers

PUBLISHED = [
    ("softmax", (0.0486, 0.3592, 0.5922)), ("sparsemax", (0, 0.25, 0.75)), ("entmax15", (0, 0.3260, 0.6740)),
    (("normmax", 2), (0, 0.3110, 0.6890)), (("normmax", 1000), (0, 0.4997, 0.5003)), (("k_subset", 2), (0, 1, 1)),
    ("hard", (0, 0, 1)), ("linear", (-2, 0, 0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("separation", "weights"), PUBLISHED, ids=str)
def test_published_weights(separation, weights):
    for kind in (np.float64, LONG):
        got = sep.separate(separation, np.array([[-2, 0, 0.5]], kind)).p[0]
        assert got.dtype == kind
        np.testing.assert_allclose(got, weights, rtol=0, atol=5.1e-5)


def test_the_entmax_package_agrees():
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    z = rows(0).astype(np.float64)
    t = torch.from_numpy(z)
    theirs = {
        "sparsemax": entmax.sparsemax(t), "entmax15": entmax.entmax15(t), ("entmax", 1.3): entmax.entmax_bisect(t, 1.3),
        ("entmax", 3.0): entmax.entmax_bisect(t, 3.0), ("normmax", 2): entmax.normmax_bisect(t, 2),
        ("normmax", 5): entmax.normmax_bisect(t, 5), ("k_subset", 2): entmax.budget_bisect(t, 2),
    }  # fmt: skip
    for separation, p in theirs.items():
        np.testing.assert_allclose(sep.separate(separation, z).p, p.numpy(), rtol=0, atol=1e-7, err_msg=str(separation))


# ----------------------------------------------------------------------------------------------- the definition


def in_the_domain(rng, separation, p):
    """Weights where Omega is finite: some at random, some between those and p."""
    name, k = sep.parse(separation)
    n, m = p.shape
    if name == "linear":
        other = rng.standard_normal((60, n, m)) * 3
    elif name == "k_subset":
        few, many = rng.random((60, n, m)), np.argsort(rng.random((60, n, m)), -1) < k
        other = np.where(np.arange(60)[:, None, None] % 2, many, few * np.minimum(k / few.sum(-1, keepdims=True), 1))
        short = k - other.sum(-1, keepdims=True)
        other = other + short * (1 - other) / np.maximum((1 - other).sum(-1, keepdims=True), 1e-300)
    else:
        other = rng.exponential(size=(60, n, m)) ** rng.choice([1, 4], (60, 1, 1))
        if name == "top_k_softmax":
            other = other * (np.argsort(rng.random((60, n, m)), -1) < k)
        other = other / other.sum(-1, keepdims=True)
    other = LONG(other)
    # A mixture of two sets of k may have more than k members: there the domain is no convex set.
    return [other] if name == "top_k_softmax" else [other, 0.9 * p + 0.1 * other, 0.999 * p + 0.001 * other]


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_weights_maximise(separation):
    rng = np.random.default_rng(1)
    z = rows(1)
    p, potential = sep.separate(separation, z)
    agree((p * z).sum(-1) - sep.omega(separation, p), potential, 1e3 * EPS)
    for other in in_the_domain(rng, separation, p):
        value = (other * z).sum(-1) - sep.omega(separation, other)
        assert (value <= potential + 1e3 * EPS * (1 + np.abs(potential))).all()


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_weights_lie_in_their_set(separation):
    for z in (rows(2), rows(3, m=1), rows(4, m=200, n=20)):
        p = sep.separate(separation, z).p
        if separation == "linear":
            agree(p, z)
            continue
        total = min(separation[1], z.shape[-1]) if sep.parse(separation)[0] == "k_subset" else 1
        assert (p >= 0).all() and (p <= 1 + 8 * EPS).all()
        room = sep.spread(separation, z, 4 * EPS * (1 + np.abs(z).max(-1))).sum(-1)
        assert (np.abs(p.sum(-1) - total) <= room + 400 * EPS).all()


@pytest.mark.parametrize("separation", [s for s in ALL if s != "linear"], ids=str)
def test_a_common_shift_changes_nothing(separation):
    z = rows(5)
    a, b = sep.separate(separation, z), sep.separate(separation, z + 4)
    close(separation, b.p, a.p, z)
    agree(a.potential + 4 * a.p.sum(-1), b.potential, 1e3 * EPS)


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_the_gradient_of_the_potential_are_the_weights(separation):
    z = rows(6)
    z = z[sep.gap(separation, z) > 1e-3]
    assert len(z) > 20
    agree(
        differences(lambda a: sep.separate(separation, a).potential, z), sep.separate(separation, z).p, DIFFERENCE_TOL
    )


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_larger_scores_have_larger_weights(separation):
    z = np.sort(rows(7), axis=-1)
    assert (np.diff(sep.separate(separation, z).p, axis=-1) >= 0).all()


# -------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("k_subset", 1), "sparsemax"), (("entmax", 2), "sparsemax"), (("entmax", 1.5), "entmax15"), (("top_k_softmax", 9), "softmax"),
        (("top_k_softmax", 1), "hard"), (("top_k_softmax", 40), "softmax"),
    ],
    ids=str,
)  # fmt: skip
def test_two_names_of_one_separation(one, other):
    for z in (rows(8), rows(9, n=10, m=300)[:, : 9 if one == ("top_k_softmax", 9) else 40]):
        a, b = (sep.separate(s, z) for s in (one, other))
        agree(a.p, b.p, 1e3 * EPS)
        agree(a.potential, b.potential, 1e3 * EPS)


def test_entmax_of_alpha_near_one_is_softmax():
    z = rows(10, sizes=(0.01, 0.3, 1, 3))
    for alpha, tol in ((1 + 1e-3, 1e-2), (1 + 1e-6, 1e-5), (1 + 1e-9, 1e-8)):
        a, b = sep.separate(("entmax", alpha), z), sep.separate("softmax", z)
        agree(a.p, b.p, tol)
        agree(a.potential, b.potential, tol)


def test_normmax_of_large_alpha_is_uniform_over_the_support_of_sparsemax():
    z = rows(10)
    there = sep.separate("sparsemax", z).p > 0
    clear = sep.gap("sparsemax", z) > 1e-3
    p = sep.separate(("normmax", 1e7), z).p
    np.testing.assert_allclose(p[clear], (there / there.sum(-1, keepdims=True))[clear], rtol=0, atol=1e-5)


def test_closed_forms_of_the_potential():
    """entmax: threshold t in units of z, Omega* = t + 1 / (alpha - 1) + ... by hand; normmax: lambda + 1."""
    z = rows(11)
    for alpha in (1.3, 2, 4):
        threshold = (z - sep.levels(("normmax", alpha), z))[:, 0]
        agree(sep.separate(("normmax", alpha), z).potential, threshold + 1, 1e3 * EPS)
        p, potential = sep.separate(("entmax", alpha), z)
        tsallis = (p ** LONG(alpha)).sum(-1)
        threshold = (z - sep.levels(("entmax", alpha), z))[:, 0]
        agree(
            potential,
            threshold + tsallis / (LONG(alpha) - 1) - (tsallis - 1) / (LONG(alpha) * (LONG(alpha) - 1)),
            1e3 * EPS,
        )


def test_equal_scores_have_equal_weights():
    z = np.zeros((3, 7), LONG) + LONG([[-3], [0], [1e30]])
    for separation in ("softmax", *THRESHOLDS):
        total = separation[1] if sep.parse(separation)[0] == "k_subset" else 1
        agree(sep.separate(separation, z).p, np.full((3, 7), LONG(total) / 7), 1e3 * EPS)
    np.testing.assert_array_equal(sep.separate("hard", z).p, np.eye(7)[[0, 0, 0]])
    agree(sep.separate(("top_k_softmax", 3), z).p, LONG([[1 / LONG(3)] * 3 + [0] * 4] * 3))


def test_huge_scores():
    z = LONG([[1e30, -1e30, 0, 9e29, 1e30], [-1e300, -2e300, -3e300, -4e300, -5e300]])
    for separation in SIMPLEX:
        p, potential = sep.separate(separation, z)
        first = [[1, 0, 0, 0, 0]] if separation == "hard" else [[0.5, 0, 0, 0, 0.5]]
        agree(p, LONG([*first, [1, 0, 0, 0, 0]]), 1e4 * EPS)
        agree(potential, LONG([1e30, -1e300]))
    agree(sep.separate(("k_subset", 3), z).p, LONG([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]))
    np.testing.assert_allclose(sep.separate(("k_subset", 3), z).potential, [2.9e30, -6e300], rtol=1e-15)


def test_hand_made_k_subsets():
    z = LONG([[0, 0, 0, 0], [3, 0, 0, -1], [2, 1.5, 0, -4], [0.25, 0, -0.25, -0.5]])
    expected = [[0.5] * 4, [1, 0.5, 0.5, 0], [1, 1, 0, 0], [0.875, 0.625, 0.375, 0.125]]
    agree(sep.separate(("k_subset", 2), z).p, LONG(expected))
    agree(sep.separate(("k_subset", 4), z).p, np.ones((4, 4), LONG))
    agree(sep.gap(("k_subset", 2), z)[[1, 2]], LONG([0.5, 0.25]))  # row 2: tau anywhere from 0 to 0.5


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_what_is_masked_does_not_exist(separation):
    rng = np.random.default_rng(12)
    z, keep = rows(12), rng.random((40, 9)) < 0.6
    keep[0], keep[1] = False, np.arange(9) == 4
    holed = np.where(keep, z, np.nan)
    p, potential = sep.separate(separation, holed, keep)
    assert (p[~keep] == 0).all() and (p[0] == 0).all() and potential[0] == -np.inf
    assert sep.gap(separation, holed, keep)[0] == np.inf
    for row in range(1, 40):
        alone = sep.separate(separation, z[row, keep[row]][None])
        close(separation, p[None, row, keep[row]], alone.p, z[None, row, keep[row]])
        agree(potential[row], alone.potential[0], 1e3 * EPS)
    g = LONG(rng.standard_normal((40, 9)))
    assert (sep.pullback(separation, p, g)[0] == (g[0] if separation == "linear" else 0)).all()


def test_no_scores_at_all():
    for separation in ALL:
        p, potential = sep.separate(separation, np.zeros((2, 0)))
        assert p.shape == (2, 0) and (potential == -np.inf).all()


# --------------------------------------------------------------------------------------- margins, neighbourhoods


@pytest.mark.parametrize("separation", ["sparsemax", "entmax15", ("entmax", 3), ("normmax", 1.5), ("normmax", 4), ("k_subset", 1), "hard"], ids=str)  # fmt: skip
def test_the_margin_predicts_exact_retrieval(separation):
    """200 random unit patterns: those that beat all others by the margin are those whose weight is one, at every beta."""
    rng = np.random.default_rng(13)
    x = rng.standard_normal((200, 24))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    lead = 1 - (x @ x.T - 2 * np.eye(200)).max(axis=1)
    seen = []
    for beta in (0.5, 1.5, 2, 2.5, 3, 4, 6, 12):
        predicted = beta * lead >= sep.margin(separation)
        exact = (sep.separate(separation, beta * (x @ x.T)).p == np.eye(200)).all(axis=1)
        np.testing.assert_array_equal(exact, predicted)
        seen.append(predicted.mean())
    assert seen[-1] == 1 and (separation == "hard" or 0 in seen)


def test_margins():
    expected = {"softmax": np.inf, "sparsemax": 1, "entmax15": 2, ("entmax", 3.0): 0.5, ("normmax", 7): 1, ("k_subset", 1): 1,
                ("k_subset", 2): np.inf, "hard": 0, ("top_k_softmax", 1): 0, ("top_k_softmax", 2): np.inf, "linear": np.inf}  # fmt: skip
    assert {s: sep.margin(s) for s in expected} == expected


@pytest.mark.parametrize("separation", ALL, ids=str)
@pytest.mark.parametrize("delta", [1e-9, 1e-4, 0.05])
def test_the_spread_bounds_what_a_disturbance_does(separation, delta):
    rng = np.random.default_rng(14)
    z = rows(14)
    bound = sep.spread(separation, z, np.full(len(z), delta))
    p = sep.separate(separation, z).p
    for _ in range(20):
        moved = sep.separate(separation, z + delta * LONG(rng.choice([-1, 0.3, 1], z.shape))).p
        assert (np.abs(moved - p) <= bound + 1e3 * EPS).all()
    if delta < 1e-8 and sep.tsallis(separation) in (1.5, 2):  # and it is no wild guess
        assert (bound <= 8 * delta).all()


# --------------------------------------------------------------------------------------------------- gradients


def differences(function, z):
    """Row by row: central differences of function(z) (n,) with respect to every entry of z (n, m)."""
    gradient = np.zeros(z.shape, LONG)
    for j in range(z.shape[-1]):
        e = STEP * (np.arange(z.shape[-1]) == j)
        near, far = ((function(z + t * e) - function(z - t * e)) / (2 * t * LONG(STEP)) for t in (1, 2))
        gradient[:, j] = (4 * near - far) / 3
    return gradient


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_pullbacks_are_finite_differences(separation):
    rng, steep = np.random.default_rng(15), 0
    for z in (rows(15, sizes=(0.01, 0.1, 0.3, 1, 2)), rows(17, m=3, sizes=(0.02, 0.2, 0.6))):
        z = z[sep.gap(separation, z) > 4e-3]
        assert len(z) >= 10
        g = LONG(rng.standard_normal(z.shape))
        expected = differences(lambda a, g=g: (g * sep.separate(separation, a).p).sum(-1), z)
        p = sep.separate(separation, z).p
        agree(sep.pullback(separation, p, g), expected, DIFFERENCE_TOL)
        size = sep.pullback(separation, p, np.abs(g), absolute=True)
        assert (np.abs(expected) <= size * (1 + 1e-6) + DIFFERENCE_TOL).all()
        steep += (np.abs(expected).max(-1) > 1e-3).sum()
    assert separation == "hard" or steep >= 10


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_pullbacks_are_symmetric_and_see_the_support_alone(separation):
    rng = np.random.default_rng(16)
    p = sep.separate(separation, rows(16)).p
    u, g = LONG(rng.standard_normal((2, *p.shape)))
    left, right = (u * sep.pullback(separation, p, g)).sum(-1), (g * sep.pullback(separation, p, u)).sum(-1)
    agree(left, right, 1e4 * EPS)
    if separation != "linear":
        assert (sep.pullback(separation, p, g)[p == 0] == 0).all()
        agree(sep.pullback(separation, p, np.ones_like(p)), np.zeros_like(p), 1e4 * EPS)
