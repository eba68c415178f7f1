"""Gradients through every separation, each by name: the closed forms of the oracle, finite differences of the op itself, the
adjoint identity, the adjoint at the fixed point.

Weights have kinks where a score reaches a threshold, and jumps at the ties of hard and top_k_softmax: there nothing is asked.
"""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests import separation_checks as check
from tests.reference import attention as att
from tests.reference import separated
from tests.reference import separations as sep

EVERY, SOME, OTHERS = check.EVERY, check.SOME, check.OTHERS
each = pytest.mark.parametrize("separation", OTHERS, ids=str)
# Central differences at h and 2 h, extrapolated, err by h^4 times a fifth derivative and by eps / h.
H = acc.eps(np.float64) ** 0.25
FD_TOL = 4000 * acc.eps(np.float64) / H
CLEAR = 0.04  # scores that no difference moves across a threshold, where fifth derivatives are moderate


def slope(function):
    """The derivative of function(t) at t = 0."""
    near, far = ((function(h) - function(-h)) / (2 * h) for h in (H, 2 * H))
    return (4 * near - far) / 3


def full(rng, dtype, n=4, m=7, **more):
    """Attention with a scale and a bias."""
    o = check.operands(rng, dtype, n, m, d=5, e=3, **more)
    return o | {"scale": np.array(0.4, dtype), "bias": rng.standard_normal((n, m)).astype(dtype)}


def masks(rng, n, m):
    ragged = rng.random((n, m)) < 0.6
    ragged[1] = False
    return {"per key": np.arange(m) % 3 != 1, "dense": ragged, "one": np.arange(m) == 2, "none": np.zeros(m, bool)}


# ------------------------------------------------------------------------------------------------- the oracle


@each
@pytest.mark.parametrize("scale", [None, 0.05, 0.4, 2.0, -0.7, 0.0])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
def test_attention_against_the_oracle(rng, dtype, separation, scale, causal):
    given = {} if scale is None else {"scale": np.array(scale, dtype)}
    for e in (1, 9):
        o = check.operands(rng, dtype, n=12, m=9, e=e, causal=causal)
        _, clear = check.check_attend_gradients(rc, dtype, separation, o | given, rng)
        # without a scale hard and top_k_softmax see ties alone
        assert clear.any() or (scale == 0 and sep.parse(separation)[0] in ("hard", "top_k_softmax"))
        check.check_attend_gradients(rc, dtype, separation, full(rng, dtype, 12, 9, causal=causal) | given, rng)


@each
@pytest.mark.parametrize("form", ["per key", "dense", "one", "none"])
def test_attention_with_masks(rng, dtype, separation, form):
    for n, m in ((4, 7), (7, 4), (31, 50)):
        check.check_attend_gradients(rc, dtype, separation, full(rng, dtype, n, m, mask=masks(rng, n, m)[form]), rng)


@each
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("e", [None, 3])
@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_retrieval_against_the_oracle(rng, dtype, separation, steps, e, beta):
    if separation == "linear":
        beta = min(beta, 0.1)
    _, clear = check.check_retrieve_gradients(
        rc, dtype, separation, check.memory(rng, dtype, n=12, N=7, d=5, e=e, beta=beta), rng, steps
    )
    assert clear.any() or (dtype == np.float32 and (steps > 1 or sep.tsallis(separation) == 3.0))


@each
@pytest.mark.parametrize("form", ["per key", "dense", "one", "none"])
def test_retrieval_with_masks(rng, dtype, separation, form):
    for e in (None, 3):
        h = check.memory(rng, dtype, n=12, N=7, e=e, beta=0.2, mask=masks(rng, 12, 7)[form])
        for steps in (1, 2):
            check.check_retrieve_gradients(rc, dtype, separation, h, rng, steps)


@each
@pytest.mark.parametrize("form", [None, "per key", "dense", "none"])
@pytest.mark.parametrize("beta", [0.05, 0.5, 4.0])
def test_energy_against_the_oracle(rng, dtype, separation, form, beta):
    h = check.memory(rng, dtype, n=6, N=7, beta=beta, mask=None if form is None else masks(rng, 6, 7)[form])
    out, pullback = rc.vjp(rc.hopfield.energy, **h, separation=separation)
    d_out = rng.standard_normal(out.shape).astype(dtype)
    got = pullback(d_out)
    assert got._fields == ("state", "patterns", "beta")
    wide = check.widen(dtype, h | {"d_out": d_out})
    expected = separated.energy_gradients(**wide, separation=separation)
    x = separated.pose(**{k: a for k, a in wide.items() if k != "d_out"})
    read = check.read_bound(dtype, x, separation, acc.C_GRADIENT) + acc.C_GRADIENT * acc.eps(dtype) * np.abs(x.query)
    g, p, c = np.abs(wide["d_out"])[..., None], check.weights(x, separation), acc.C_GRADIENT
    z, some = separated.logits(x), x.keep.any(axis=-1)
    moved = sep.spread(separation, z, check.shift(dtype, x, separation, c), x.keep) + c * acc.eps(dtype) * np.abs(p)
    floor = acc.underflow(dtype, h["state"], h["patterns"], d_out)
    check.within(got.state, expected.state, np.where(some[..., None], g * read, 0) + floor, "d_state")
    check.within(got.patterns, expected.patterns, att.transpose(moved * g) @ np.abs(x.query) + floor, "d_patterns")
    # d_beta = -g Omega(p) / beta^2 is a difference of Omega* and p . z
    size = np.where(some, check.potential_bound(dtype, x, separation, c) + (moved * np.abs(z)).sum(-1), 0)
    check.within(got.beta, expected.beta, (g[..., 0] * size).sum() / float(h["beta"]) ** 2 + floor, "d_beta")


@pytest.mark.parametrize("separation", SOME, ids=str)
@pytest.mark.parametrize(
    "leads", [((2, 6), (2, 3), (2, 3), (6,)), ((2, 3), (), (2, 3), (2, 1)), ((), (4,), (), ())], ids=str
)
def test_broadcast_and_grouped_axes_are_summed(rng, dtype, separation, leads):
    lead_q, lead_k, lead_v, scale = leads
    o = {
        "query": rng.standard_normal((*lead_q, 4, 5)).astype(dtype),
        "key": rng.standard_normal((*lead_k, 7, 5)).astype(dtype),
        "value": rng.standard_normal((*lead_v, 7, 3)).astype(dtype),
        "scale": rng.uniform(0.2, 0.6, scale).astype(dtype),
        "bias": rng.standard_normal(7).astype(dtype),
    }
    check.check_attend_gradients(rc, dtype, separation, o, rng)


@pytest.mark.parametrize("separation", SOME, ids=str)
def test_broadcast_memories(rng, dtype, separation):
    h = check.memory(rng, dtype, n=6, N=7, d=5, beta=0.1)
    h |= {"state": rng.standard_normal((2, 3, 6, 5)).astype(dtype), "beta": np.array([0.05, 0.1, 0.2], dtype)}
    for steps in (1, 2):
        check.check_retrieve_gradients(rc, dtype, separation, h, rng, steps)


@each
@pytest.mark.parametrize("n, m, d", [(3, 500, 16), (100, 193, 8), (2, 5000, 8)])
def test_larger_problems(rng, dtype, separation, n, m, d):
    """Narrow and wide supports; scores of a step of 1 / 8 keep clear of one another's thresholds more often."""
    for scale in (1e-5, 0.3):
        o = check.operands(rng, dtype, n, m, d, 5, scale=np.array(scale, dtype))
        check.check_attend_gradients(rc, dtype, separation, o, rng, judge=False)


@each
@pytest.mark.parametrize("n, m", [(0, 5), (1, 1), (5, 1), (2, 2)])
def test_empty_and_single(rng, dtype, separation, n, m):
    if sep.PARAMETERS[sep.parse(separation)[0]] == "k":
        separation = (separation[0], min(separation[1], m))
    check.check_attend_gradients(rc, dtype, separation, full(rng, dtype, n, m), rng)


# ------------------------------------------------------------------------------------------- exactly zero


@each
def test_what_is_hidden_has_zero_gradients(rng, dtype, separation):
    keep = np.ones((6, 7), bool)
    keep[1], keep[:, 3] = False, False
    o = full(rng, dtype, 6, 7, mask=keep)
    o["key"][3], o["value"][3] = np.nan, np.inf
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    g = pullback(np.ones_like(out))
    assert all(np.isfinite(a).all() for a in g) and np.isfinite(out).all()
    assert (g.query[1] == 0).all() and (g.key[3] == 0).all() and (g.value[3] == 0).all() and (g.bias[~keep] == 0).all()
    h = check.memory(rng, dtype, n=6, N=7, beta=0.2, mask=keep)
    h["patterns"][3] = np.nan
    for function, more in (
        (rc.hopfield.retrieve, {"steps": 1}),
        (rc.hopfield.retrieve, {"steps": 2}),
        (rc.hopfield.energy, {}),
    ):
        out, pullback = rc.vjp(function, **h, **more, separation=separation)
        g = pullback(np.ones_like(out))
        assert all(np.isfinite(a).all() for a in g) and (g.state[1] == 0).all() and (g.patterns[3] == 0).all()


@pytest.mark.parametrize("separation", [s for s in OTHERS if s != "linear"], ids=str)
def test_what_has_no_weight_has_no_gradient(rng, dtype, separation):
    """Support only: not small, zero."""
    o = full(rng, dtype, 20, 30) | {"scale": np.array(2.0, dtype), "value": np.eye(30, dtype=dtype)}
    p, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    u = rng.standard_normal(p.shape).astype(dtype)
    g = pullback(u)
    assert (g.bias[p == 0] == 0).all() and (p == 0).any()
    assert (g.key[(p == 0).all(axis=0)] == 0).all()
    if separation == "hard":
        assert all((a == 0).all() for a in (g.query, g.key, g.scale, g.bias)) and (g.value != 0).any()
    if separation == ("k_subset", 3):
        assert (g.bias[p == 1] == 0).all() and (p == 1).any()


# ------------------------------------------------------------------------------------------ finite differences


def check_differences(op, o, name, clear, rng, **more):
    """The pullback of one operand against differences of the op in each of its entries."""
    out, pullback = rc.vjp(op, **o, **more)
    u = rng.standard_normal(out.shape) * clear.reshape(clear.shape + (1,) * (out.ndim - clear.ndim))
    got, a = np.asarray(getattr(pullback(u), name)), o[name]
    expected = np.zeros(a.shape)
    for i in np.ndindex(a.shape):

        def along(t, i=i):
            moved = a.copy()
            moved[i] += t
            out = np.asarray(op(**o | {name: moved}, **more), np.longdouble)
            return (u * np.where(np.isfinite(out), out, 0)).sum()

        expected[i] = slope(along)
    scale = max(1.0, np.abs(expected).max(initial=0), np.abs(out[np.isfinite(out)]).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=FD_TOL * scale)


def far_from_kinks(path, separation):
    # levels of alpha > 2 are small numbers: of those that are near all the row would be left out
    gaps = [sep.gap(separation, separated.logits(x), x.keep) for x in path]
    return np.min(gaps, axis=0) > CLEAR


@pytest.mark.parametrize("separation", [s for s in OTHERS if s not in (("entmax", 3.0), ("normmax", 5.0))], ids=str)
@pytest.mark.parametrize("name", ["query", "key", "value", "scale", "bias"])
@pytest.mark.parametrize("form", [None, "dense"])
def test_attention_by_finite_differences(rng, separation, name, form):
    o = full(rng, np.float64, 12, 6, mask=None if form is None else masks(rng, 12, 6)[form])
    o["bias"] *= 0.3
    clear = far_from_kinks([att.pose(**o)], separation)
    assert clear.sum() >= 3
    check_differences(rc.attention.attend, o, name, clear, rng, separation=separation)


@pytest.mark.parametrize("separation", [("entmax", 3.0), ("normmax", 5.0)], ids=str)
def test_steep_separations_by_finite_differences(rng, separation):
    """Two or three scores that are close: their levels are as far from zero as they can be."""
    for m in (2, 3):
        o = full(rng, np.float64, 12, m)
        o |= {"scale": np.array(0.01), "bias": o["bias"] * 0.02}
        clear = far_from_kinks([att.pose(**o)], separation)
        assert clear.sum() >= 3
        for name in ("query", "key", "value", "scale", "bias"):
            check_differences(rc.attention.attend, o, name, clear, rng, separation=separation)


@pytest.mark.parametrize("separation", SOME, ids=str)
@pytest.mark.parametrize("name", ["state", "patterns", "beta", "values"])
@pytest.mark.parametrize("steps", [1, 3])
def test_retrieval_by_finite_differences(rng, separation, name, steps):
    h = check.memory(rng, np.float64, n=24, N=5, d=4, e=3 if name == "values" or steps == 1 else None, beta=0.15)
    more = {"separation": separation, "steps": steps}
    clear = far_from_kinks(separated.visited(**h, **more), separation)
    assert clear.sum() >= 3
    check_differences(rc.hopfield.retrieve, h, name, clear, rng, **more)


@each
@pytest.mark.parametrize("name", ["state", "patterns", "beta"])
def test_energy_by_finite_differences(rng, separation, name):
    """Its gradient has kinks where retrieval has, so a difference across one would err by its step: clear rows again."""
    h = check.memory(
        rng,
        np.float64,
        n=24,
        N=4,
        d=4,
        beta=0.05 if sep.tsallis(separation) == 3.0 or separation == ("normmax", 5.0) else 0.2,
    )
    clear = sep.gap(separation, separated.logits(separated.pose(**h))) > CLEAR / 4
    assert clear.sum() >= 3
    check_differences(rc.hopfield.energy, h, name, clear, rng, separation=separation)
