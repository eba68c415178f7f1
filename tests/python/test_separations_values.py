"""Every separation in attention.attend, hopfield.retrieve and hopfield.energy against the oracle, in both number types."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests import separation_checks as check
from tests.reference import separated
from tests.reference import separations as sep

EVERY, SOME, OTHERS = check.EVERY, check.SOME, check.OTHERS
each = pytest.mark.parametrize("separation", EVERY, ids=str)


def weights_of(z, separation, dtype=np.float64, **more):
    """The weights themselves: one query per row of scores z (n, m), read through values that are the unit vectors."""
    z = np.asarray(z, dtype)
    key, value = np.zeros((z.shape[1], 1), dtype), np.eye(z.shape[1], dtype=dtype)
    return rc.attention.attend(np.zeros((len(z), 1), dtype), key, value, bias=z, separation=separation, **more)


# ----------------------------------------------------------------------------------------------------- by hand

PUBLISHED = [  # for z = (-2, 0, 0.5)
    ("softmax", (0.0486, 0.3592, 0.5922)), ("sparsemax", (0, 0.25, 0.75)), ("entmax15", (0, 0.3260, 0.6740)),
    (("normmax", 2), (0, 0.3110, 0.6890)), (("normmax", 1000), (0, 0.4997, 0.5003)), (("k_subset", 2), (0, 1, 1)),
    ("hard", (0, 0, 1)), (("top_k_softmax", 1), (0, 0, 1)), (("top_k_softmax", 2), (0, 0.3775, 0.6225)), ("linear", (-2, 0, 0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("separation", "weights"), PUBLISHED, ids=str)
def test_published_weights(separation, weights, dtype):
    np.testing.assert_allclose(weights_of([[-2, 0, 0.5]], separation, dtype), [weights], rtol=0, atol=5.1e-5)
    # the same as retrieval: patterns whose scalar products with the state 1 are z
    out = rc.hopfield.retrieve([[1.0]], [[-2.0], [0.0], [0.5]], beta=1.0, values=np.eye(3), separation=separation)
    np.testing.assert_allclose(out, [weights], rtol=0, atol=5.1e-5)


def test_the_list_of_separations():
    listed = rc.separations()
    assert isinstance(listed, tuple) and dict(listed) == sep.PARAMETERS and len(listed) == len(sep.PARAMETERS)


def test_margins():
    for separation in (*EVERY, ("top_k_softmax", 1), ("k_subset", 2), ("entmax", 7), ("normmax", 1.01)):
        m = rc.hopfield.margin(separation)
        assert isinstance(m, float) and m == pytest.approx(sep.margin(separation), rel=1e-15)


def test_softmax_is_the_default(rng, dtype, same_bits):
    o, h = check.operands(rng, dtype), check.memory(rng, dtype, steps=2)
    same_bits(rc.attention.attend(**o), rc.attention.attend(**o, separation="softmax"))
    same_bits(rc.hopfield.retrieve(**h), rc.hopfield.retrieve(**h, separation="softmax"))


# ----------------------------------------------------------------------------------------------------- attention


@each
@pytest.mark.parametrize("scale", [1e-4, 0.05, 0.4, 1.0, 5.0, 300.0, -0.7, 0.0])
def test_attention(rng, dtype, separation, scale):
    for e in (1, 4, 19):
        check.check_attend(rc, dtype, separation, check.operands(rng, dtype, n=9, e=e, scale=scale))


@each
def test_attention_with_the_default_scale(rng, dtype, separation, same_bits):
    o = check.operands(rng, dtype, d=16)
    check.check_attend(rc, dtype, separation, o)
    same_bits(
        rc.attention.attend(**o, separation=separation), rc.attention.attend(**o, scale=0.25, separation=separation)
    )


@pytest.mark.parametrize("separation", [("entmax", 1.01), ("entmax", 12.0), ("normmax", 1.02), ("normmax", 40.0), ("k_subset", 10), ("k_subset", 11), ("top_k_softmax", 11)], ids=str)  # fmt: skip
def test_parameters_at_the_edge(rng, dtype, separation):
    for scale in (0.01, 0.4, 3.0):
        check.check_attend(rc, dtype, separation, check.operands(rng, dtype, n=9, scale=scale))


@pytest.mark.parametrize("make", [int, float, np.int64, np.float32, np.float64, np.int8])
def test_parameters_of_every_kind(rng, dtype, make, same_bits):
    o = check.operands(rng, dtype)
    for name, whole in (("entmax", False), ("normmax", False), ("k_subset", True), ("top_k_softmax", True)):
        if whole and make in (float, np.float32, np.float64):
            continue
        same_bits(rc.attention.attend(**o, separation=(name, make(2))), rc.attention.attend(**o, separation=(name, 2)))


def masks(rng, n, m):
    ragged = rng.random((n, m)) < 0.5
    ragged[1], ragged[2] = False, np.arange(m) == 1
    return {"per key": np.arange(m) % 3 != 1, "dense": ragged, "one": np.arange(m) == 2, "none": np.zeros(m, bool)}


@each
@pytest.mark.parametrize("form", ["per key", "dense", "one", "none", None])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
def test_masks_biases_and_causality(rng, dtype, separation, form, causal):
    for n, m in ((5, 11), (11, 5), (30, 70)):
        mask = None if form is None else masks(rng, n, m)[form]
        o = check.operands(rng, dtype, n, m, mask=mask, causal=causal, scale=0.6)
        check.check_attend(rc, dtype, separation, o)
        bias = rng.standard_normal((n, m)).astype(dtype)
        check.check_attend(rc, dtype, separation, o | {"bias": bias})
        bias[rng.random((n, m)) < 0.3] = -np.inf
        check.check_attend(rc, dtype, separation, o | {"bias": bias})
        check.check_attend(rc, dtype, separation, o | {"bias": bias[0]})


@each
@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_few_keys(rng, dtype, separation, m):
    if sep.PARAMETERS[sep.parse(separation)[0]] == "k":
        if m == 0:
            return
        separation = (separation[0], min(separation[1], m))
    for causal in (False, True):
        got = check.check_attend(rc, dtype, separation, check.operands(rng, dtype, m=m, causal=causal))
        if m == 0:
            assert (got.out == 0).all() and np.isneginf(got.lse).all()


@each
def test_rows_that_admit_nothing(rng, dtype, separation):
    mask = np.ones((5, 11), bool)
    mask[[0, 3]] = False
    got = check.check_attend(rc, dtype, separation, check.operands(rng, dtype, mask=mask))
    assert (got.out[[0, 3]] == 0).all() and np.isneginf(got.lse[[0, 3]]).all() and np.isfinite(got.lse[[1, 2, 4]]).all()
    h = check.memory(rng, dtype, mask=mask)
    for steps in (1, 2):
        info = rc.hopfield.retrieve(**h, steps=steps, separation=separation, return_info=True)
        assert (
            (info.state[[0, 3]] == 0).all()
            and np.isneginf(info.lse[[0, 3]]).all()
            and np.isposinf(info.energy[[0, 3]]).all()
        )
    assert np.isposinf(rc.hopfield.energy(**h, separation=separation)[[0, 3]]).all()


def test_fewer_than_k_are_all_of_them(rng, dtype):
    """Of two admissible keys a subset of three is both, each with weight 1, and Omega* is the sum of their scores."""
    z, mask = rng.standard_normal((1, 6)).astype(dtype), np.array([False, True, False, False, True, False])
    np.testing.assert_array_equal(weights_of(z, ("k_subset", 3), dtype, mask=mask), mask[None].astype(dtype))
    p, lse = weights_of(z, ("k_subset", 3), dtype, mask=mask, return_lse=True)
    assert lse[0] == pytest.approx(z[0, mask].sum(), rel=8 * acc.eps(dtype), abs=8 * acc.eps(dtype))
    soft = weights_of(z, "softmax", dtype, mask=mask)
    np.testing.assert_allclose(weights_of(z, ("top_k_softmax", 3), dtype, mask=mask), soft, rtol=8 * acc.eps(dtype))


@pytest.mark.parametrize("separation", SOME, ids=str)
@pytest.mark.parametrize("leads", [((2, 6), (2, 2), (2, 2)), ((2, 3), (3,), (2, 1)), ((), (2,), (2,)), ((4,), (), (4,))], ids=str)  # fmt: skip
def test_leading_axes_and_grouped_heads(rng, dtype, separation, leads):
    lead_q, lead_k, lead_v = leads
    o = {
        "query": rng.standard_normal((*lead_q, 5, 4)).astype(dtype),
        "key": rng.standard_normal((*lead_k, 9, 4)).astype(dtype),
        "value": rng.standard_normal((*lead_v, 9, 3)).astype(dtype),
    }
    check.check_attend(rc, dtype, separation, o | {"causal": True})
    if lead_q:
        scale = rng.uniform(0.2, 1, lead_q[-1]).astype(dtype)
        check.check_attend(
            rc, dtype, separation, o | {"scale": scale, "bias": rng.standard_normal((lead_q[-1], 1, 9)).astype(dtype)}
        )


@each
def test_out_and_strides(rng, dtype, separation, same_bits):
    o = check.operands(rng, dtype, n=7, m=20)
    plain, out = rc.attention.attend(**o, separation=separation), np.empty((7, 4), dtype)
    assert rc.attention.attend(**o, separation=separation, out=out) is out
    same_bits(out, plain)
    strided = {k: np.asfortranarray(a) for k, a in o.items()} | {"query": o["query"][::-1].copy()[::-1]}
    same_bits(rc.attention.attend(**strided, separation=separation), plain)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("separation", SOME, ids=str)
def test_stored_in_half_precision(rng, name, separation):
    half = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    o = check.operands(rng, np.float32, 7, 100, scale=0.5)
    o |= {k: o[k].astype(half) for k in ("key", "value")}
    check.check_attend(rc, np.float32, separation, o)
    h = check.memory(rng, np.float32, 7, 100, beta=0.5)
    check.check_retrieve(rc, np.float32, separation, h | {"patterns": h["patterns"].astype(half)}, 2)


# ---------------------------------------------------------------------------------------------------- retrieval


@each
@pytest.mark.parametrize("beta", [1e-4, 0.05, 0.8, 4.0, 300.0])
def test_retrieval_and_energy(rng, dtype, separation, beta):
    steps = 3 if separation != "linear" or beta < 1 else 1
    for e in (None, 4):
        h = check.memory(rng, dtype, n=9, e=e, beta=beta)
        check.check_retrieve(rc, dtype, separation, h, steps)
        h.pop("values", None)
        check.check_energy(dtype, separation, rc.hopfield.energy(**h, separation=separation), None, h["state"], h)


@pytest.mark.parametrize("separation", OTHERS, ids=str)
@pytest.mark.parametrize("form", ["per key", "dense", "one", "none"])
def test_retrieval_with_masks(rng, dtype, separation, form):
    for e in (None, 3):
        h = check.memory(rng, dtype, e=e, mask=masks(rng, 5, 11)[form], beta=0.4)
        check.check_retrieve(rc, dtype, separation, h, 2)


@pytest.mark.parametrize("separation", SOME, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
def test_beta_per_head_and_batch(rng, dtype, separation, shape):
    h = check.memory(rng, dtype, batch=(2, 3), beta=rng.uniform(0.2, 0.6, shape))
    check.check_retrieve(rc, dtype, separation, h, 2)


@pytest.mark.parametrize("separation", [s for s in EVERY if s != "linear"], ids=str)
@pytest.mark.parametrize("e", [None, 3])
def test_until_at_rest(rng, dtype, separation, e):
    h = check.memory(rng, dtype, n=8, N=9, d=5, e=e, beta=0.6)
    info = rc.hopfield.retrieve(**h, separation=separation, steps=None, return_info=True)
    updates, tol = info.steps - (e is not None), separated.DEFAULT_TOL[np.dtype(dtype).name]
    assert info.converged.all() and (updates >= 1).all()
    bare = {k: a for k, a in h.items() if k != "values"}
    for row, count in enumerate(updates):
        ends = [rc.hopfield.retrieve(**bare, separation=separation, steps=max(int(count) - t, 1))[row] for t in (0, 1)]
        before = ends[1] if count > 1 else h["state"][row]
        assert np.linalg.norm(ends[0] - before) <= tol * (1 + 1e-3)
        if e is None:
            np.testing.assert_array_equal(info.state[row], ends[0])


@pytest.mark.parametrize("separation", ["sparsemax", "entmax15", ("entmax", 3.0), ("normmax", 2), ("k_subset", 1), "hard"], ids=str)  # fmt: skip
def test_the_margin_predicts_exact_retrieval(rng, separation):
    """Of 200 random unit patterns those that lead by the margin come back in one step, to the last bit, and no others."""
    x = rng.standard_normal((200, 24))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    lead = (x * x).sum(1) - (x @ x.T - 4 * np.eye(200)).max(axis=1)
    for beta in (0.5, 1.5, 2, 2.5, 3, 4, 6, 12):
        exact = (rc.hopfield.retrieve(x, x, beta=beta, separation=separation) == x).all(axis=1)
        room = beta * lead - rc.hopfield.margin(separation)
        sure = np.abs(room) > 1e-12
        np.testing.assert_array_equal(exact[sure], (room >= 0)[sure])


# ------------------------------------------------------------------------------------------------------- sizes


@each
@pytest.mark.parametrize("m", [64, 193, 1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_many_keys(rng, dtype, separation, m):
    """From single keys to supports of all: scores that are tiny beside one another."""
    for scale in (1e-5, 0.02, 1.0):
        o = check.operands(rng, dtype, 4, m, 8, 3, scale=scale)
        check.check_attend(rc, dtype, separation, o)


@pytest.mark.parametrize("separation", [("k_subset", 700), ("top_k_softmax", 700)], ids=str)
def test_large_subsets(rng, dtype, separation):
    for scale in (1e-5, 0.3, 3.0):
        check.check_attend(rc, dtype, separation, check.operands(rng, dtype, 4, 1500, 8, 3, scale=scale), judge=False)


@each
def test_many_patterns(rng, dtype, separation):
    for n, N, d, beta in ((40, 700, 64, 0.125), (3, 5000, 20, 1e-6), (3, 5000, 20, 0.3)):
        h = check.memory(rng, dtype, n, N, d, beta=beta if separation != "linear" else min(beta, 1e-3))
        check.check_retrieve(rc, dtype, separation, h, 1, judge=False)


@pytest.mark.parametrize("separation", OTHERS, ids=str)
def test_huge_scores(dtype, separation):
    z = np.array([[1e30, -1e30, 0, 9e29, 1e30], [-1e30, -2e30, -3e30, -4e30, -5e30], [0, 0, 1e30, 0, -1e30]], dtype)
    p = weights_of(z, separation, dtype)
    if separation == "linear":
        return np.testing.assert_array_equal(p, z)
    expected = np.array([[0.5, 0, 0, 0, 0.5], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    if separation == "hard":
        expected[0] = [1, 0, 0, 0, 0]
    if separation == ("k_subset", 3):
        expected = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0], [2 / 3, 2 / 3, 1, 2 / 3, 0]])
    return np.testing.assert_allclose(p, expected, rtol=0, atol=64 * acc.eps(dtype))


# ------------------------------------------------------------------------------------------------------- peers


def test_the_entmax_package_agrees(rng):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    z = rng.standard_normal((50, 30)) * np.resize([0.1, 1, 5], 50)[:, None]
    t = torch.from_numpy(z)
    theirs = {
        "softmax": torch.softmax(t, -1), "sparsemax": entmax.sparsemax(t), "entmax15": entmax.entmax15(t), ("entmax", 1.3): entmax.entmax_bisect(t, 1.3),
        ("normmax", 2): entmax.normmax_bisect(t, 2), ("normmax", 5): entmax.normmax_bisect(t, 5), ("k_subset", 4): entmax.budget_bisect(t, 4),
    }  # fmt: skip
    for separation, p in theirs.items():
        np.testing.assert_allclose(weights_of(z, separation), p.numpy(), rtol=0, atol=2e-7, err_msg=str(separation))
