"""Gradients of fast weights, each by name, by witnesses that share no code: the oracle that walks back through kept
states, complex steps of the definitions, finite differences, the adjoint identity."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests import fastweight_checks as fw
from tests.reference import fastweight as ref
from tests.reference import feature_maps as maps

# Central differences of a float64 function that errs by some eps: h^2 + eps / h is least at h = eps^(1/3).
H = acc.eps(np.float64) ** (1 / 3)
FD_TOL = 64 * H**2
FORMS = ["none", "per head", "per channel", "log per head", "log per channel"]


def with_decay(rng, dtype, o, form, T, F, batch=(), strength=0.3):
    o = o | {"decay": None}
    if form == "none":
        return o
    rate = rng.exponential(strength, (*batch, T, F) if "channel" in form else (*batch, T))
    return o | ({"log_decay": -rate.astype(dtype)} if "log" in form else {"decay": np.exp(-rate).astype(dtype)})


def variants(rng, dtype, T, batch=(), K=6, V=5):
    """Every rule with the options that change how its gradient goes."""
    positive = {"key": fw.draw(rng, dtype, *batch, T, K)}

    short = {"key": fw.unit(positive["key"]) / 2}

    def scale():
        return {"scale": np.array(0.7, dtype)}

    return {
        "sum": ("linear_attention", fw.linear(rng, dtype, T, K, V, batch, normalize=False) | scale()),
        "sum, normalised": ("linear_attention", fw.linear(rng, dtype, T, K, V, batch) | scale()),
        "delta": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, top=2.0) | scale()),
        "delta, sum": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, feature_map="elu1", normalize="sum") | positive),
        "delta, l2": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, normalize="l2", top=2.0) | positive),
        "delta, attention": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, feature_map="elu1", normalize="attention")),
        "general": ("fast_weight", fw.general(rng, dtype, T, K, V, batch) | scale()),
        "general without a": ("fast_weight", fw.general(rng, dtype, T, K, V, batch, a=None) | short),
    }  # fmt: skip


VARIANTS = list(variants(np.random.default_rng(0), np.float64, 1))


# --------------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_against_the_oracle(rng, dtype, name, form):
    for T, batch in ((1, ()), (20, ()), (75, (2,))):
        op, o = variants(rng, dtype, T, batch)[name]
        fw.check_gradients(op, with_decay(rng, dtype, o, form, T, 6, batch), dtype, rng)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_with_a_state_that_comes_in_and_goes_out(rng, dtype, name, form):
    for T, batch in ((1, ()), (20, (2,)), (75, ())):
        op, o = variants(rng, dtype, T, batch)[name]
        o = with_decay(rng, dtype, o, form, T, 6, batch)
        _, state = fw.call(op, o, return_state=True)
        fw.check_gradients(op, o | {"state": state}, dtype, rng, with_state=True)
        fw.check_gradients(op, o | {"state": state}, dtype, rng)
        fw.check_gradients(op, o, dtype, rng, with_state=True)


@pytest.mark.parametrize("name", fw.MAPS)
def test_through_every_feature_map(rng, dtype, name):
    how = fw.feature_maps(6)[name]
    for T in (1, 30):
        o = fw.linear(rng, dtype, T, feature_map=how)
        fw.check_gradients("linear_attention", o | {"normalize": False}, dtype, rng)
        if name in fw.POSITIVE:
            fw.check_gradients(
                "linear_attention", o | {"query": np.abs(o["query"]), "key": np.abs(o["key"])}, dtype, rng
            )
        for normalize in ("sum", "l2"):
            if normalize == "sum" and name not in fw.POSITIVE:
                continue
            d = fw.delta(rng, dtype, T, feature_map=how, normalize=normalize)
            some = {k: np.abs(fw.draw(rng, dtype, T, 6)) + dtype(0.1) for k in ("query", "key")}
            fw.check_gradients("delta_rule", d | some, dtype, rng, factor=4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n, m", [(20, 20), (5, 30), (30, 5), (1, 1), (0, 4), (4, 0)])
def test_over_all_keys(rng, dtype, normalize, n, m):
    o = fw.linear(rng, dtype, n, causal=False, normalize=normalize)
    o |= {"key": fw.draw(rng, dtype, m, 6), "value": fw.draw(rng, dtype, m, 5)}
    fw.check_gradients("linear_attention", o | {"scale": np.array(0.7, dtype)}, dtype, rng)


@pytest.mark.parametrize("name", VARIANTS)
def test_chunk_sizes_agree(rng, name):
    for T in (5, 64, 150):
        op, o = variants(rng, np.float64, T, (2,))[name]
        o = with_decay(rng, np.float64, o, "log per channel", T, 6, (2,))
        _, state = fw.call(op, o, return_state=True)
        made = [fw.vjp(op, o | {"state": state}, chunk=chunk) for chunk in fw.CHUNKS]
        u = fw.draw(rng, np.float64, *made[0][0].shape)
        exact, sizes = fw.expected_gradients(op, o | {"state": state}, u)
        for _, pullback in made:
            got = pullback(u)
            for field in got._fields[:-1]:
                fw.near(getattr(got, field), exact[field], fw.SAME["float64"], field, sizes[field])
            fw.near_state(got.state, exact["state"], fw.SAME["float64"])


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rate", [0.5, 3.0, 5.0, 20.0, 1000.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_strong_decays(rng, dtype, name, rate, channels):
    T = 150
    op, o = variants(rng, dtype, T)[name]
    o = o | {"decay": None, "log_decay": np.full((T, 6) if channels else T, -rate, dtype)}
    if channels:
        o["log_decay"][:, ::2] = -0.01
    for chunk in (None, *fw.CHUNKS):
        more = {} if chunk is None else {"chunk": chunk}
        if name == "delta, attention" and rate == 1000 and not channels:
            # the denominator of v-bar is exp(-1000), which is no number of this type: the ratio is that of an empty state
            assert all(np.isfinite(g).all() for g in fw.vjp(op, o | more)[1](np.ones((T, 5), dtype)))
        else:
            fw.check_gradients(op, o | more, dtype, rng)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-30])
@pytest.mark.parametrize("name", VARIANTS)
def test_small_decays(rng, dtype, name, small, channels):
    """What is forgotten at a token is what a decay's own gradient, not that of its logarithm, weighs in full."""
    op, o = variants(rng, dtype, 40)[name]
    decay = fw.decays(rng, dtype, *((40, 6) if channels else (40,)), strength=0.05)
    decay[5::9] = small
    if name == "delta, attention" and small == 1e-30:
        return  # v-bar is a ratio of what is left, and float32 keeps next to nothing
    fw.check_gradients(op, o | {"decay": decay}, dtype, rng)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_decay_of_one_has_a_gradient_and_changes_no_other(rng, dtype, name):
    op, o = variants(rng, dtype, 40)[name]
    o = o | {"decay": None}
    for own in ((40,), (40, 6)):
        a = fw.check_gradients(op, o | {"decay": np.ones(own, dtype)}, dtype, rng)
        b = fw.check_gradients(op, o | {"log_decay": np.zeros(own, dtype)}, dtype, rng)
        assert np.abs(a.decay).max() > 0 and np.abs(b.log_decay).max() > 0


@pytest.mark.parametrize("op", fw.OPS)
def test_the_gradient_of_a_long_sequence(rng, op):
    """Every state is recomputed, none is inverted: nothing drifts over 4000 steps of strong writes."""
    for dtype in (np.float32, np.float64):
        o = fw.problem(op, rng, dtype, 4000, 4, 3, **({"top": 2.0} if op == "delta_rule" else {}))
        out, pullback = fw.vjp(op, o)
        u = fw.draw(rng, dtype, *out.shape)
        exact, sizes = fw.expected_gradients(op, o, u, kind=np.float64)
        got = pullback(u)
        for name in got._fields:
            fw.near(getattr(got, name), exact[name], 4 * fw.GRADIENT_TOL[np.dtype(dtype).name], name, sizes[name])


# -------------------------------------------------------------------------------------- broadcasting, layouts, repeats


@pytest.mark.parametrize("op", fw.OPS)
def test_broadcast_operands_have_summed_gradients(rng, dtype, op):
    T, K, V = 12, 6, 5
    full = fw.problem(op, rng, dtype, T, K, V, (2, 3))
    leads = {"query": (2, 1), "key": (3,), "value": (), "beta": (2, 1), "a": (1, 3), "b": (2, 1)}
    o = {}
    for name, a in full.items():
        own = 1 if name == "beta" else 2
        lead = leads.get(name)
        o[name] = a if lead is None else a[tuple(0 if s == 1 else slice(None) for s in (1,) * (2 - len(lead)) + lead)]
        if lead is not None:
            o[name] = o[name].reshape(*lead, *a.shape[a.ndim - own :])
    o |= {"scale": rng.uniform(0.2, 1, 3).astype(dtype)}
    for decay in (fw.decays(rng, dtype, 3, T), fw.decays(rng, dtype, 2, 1, T, K), fw.decays(rng, dtype, T)):
        got = fw.check_gradients(op, o | {"decay": decay}, dtype, rng, with_state=True)
        assert got.decay.shape == decay.shape and got.scale.shape == (3,)


@pytest.mark.parametrize("op", fw.OPS)
def test_a_shared_state_has_a_summed_gradient(rng, dtype, op):
    one = fw.problem(op, rng, dtype, 10)
    _, state = fw.call(op, one, return_state=True)
    fw.check_gradients(op, fw.problem(op, rng, dtype, 10, batch=(4,)) | {"state": state}, dtype, rng, with_state=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_pullback_may_be_called_again(rng, dtype, name, same_bits):
    op, o = variants(rng, dtype, 30, (2,))[name]
    out, pullback = fw.vjp(op, o)
    same_bits(out, fw.call(op, o))
    u = fw.draw(rng, dtype, *out.shape)
    first = pullback(u)
    pullback(np.ones_like(u))
    same_bits(first, pullback(u))
    same_bits(first, pullback(np.asfortranarray(u)))
    for g in first:
        assert np.isfinite(g).all()
    assert all((np.asarray(g) == 0).all() for g in pullback(np.zeros_like(u)))


@pytest.mark.parametrize("name", VARIANTS)
def test_no_time_at_all(rng, dtype, name):
    """The cotangent of the last state goes to the first."""
    op, o = variants(rng, dtype, 4, (2,))[name]
    _, state = fw.call(op, o, return_state=True)
    op, o = variants(rng, dtype, 0, (2,))[name]
    got = fw.check_gradients(op, o | {"state": state}, dtype, rng, with_state=True)
    assert got.query.shape == (2, 0, 6) and got.state.shape == state.shape


@pytest.mark.parametrize("causal", [False, True])
def test_a_denominator_of_zero_has_no_gradient(rng, dtype, causal):
    k = np.array([[1.0, -1], [2, -1], [0.5, -3]], dtype)
    q = np.array([[-1.0, 2], [-1, -1], [1, 1]], dtype)
    o = {"query": q, "key": k, "value": fw.draw(rng, dtype, 3, 4), "feature_map": "relu", "causal": causal}
    got = fw.check_gradients("linear_attention", o, dtype, rng)
    assert (got.query[:2] == 0).all() and all(np.isfinite(g).all() for g in got)
    if causal:
        o = {"query": q, "key": k, "value": o["value"], "beta": np.ones(3, dtype)}
        got = fw.check_gradients("delta_rule", o | {"feature_map": "relu", "normalize": "attention"}, dtype, rng)
        assert (got.query[:2] == 0).all()


@pytest.mark.parametrize("power", [30, 36, 37, 38, 40, 42, 45, 46, 300, 307, 308, 310, 320, 323])
def test_gradients_behind_denominators_of_any_size(rng, dtype, power):
    """What is all but forgotten is still read right, of normal denominators; its gradient is a number."""
    rate = -power * np.log(10)
    k, q = np.array([[1, 0], [0, 1], [0, 1]], dtype), np.array([[1, 0], [1, 0], [1, 1]], dtype)
    fading = {"log_decay": np.array([0, rate, 0], dtype)}
    value = fw.draw(rng, dtype, 3, 4)
    for op, more in (
        ("linear_attention", {"feature_map": "relu"}),
        ("delta_rule", {"feature_map": "relu", "normalize": "attention", "beta": np.ones(3, dtype)}),
        ("delta_rule", {"feature_map": "relu", "normalize": "attention", "beta": np.ones(3, dtype), "key": q[:, ::-1]}),
    ):
        o = {"query": q, "key": k, "value": value} | more
        out, pullback = fw.vjp(op, o | fading)
        got = pullback(fw.draw(rng, dtype, 3, 4))
        assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in got), op
        if 10.0**-power > np.finfo(dtype).tiny:
            fw.near(out, fw.expected(op, o | fading).out, fw.TOL[np.dtype(dtype).name] * power)
        if 10.0**-power > 1e3 * np.finfo(dtype).tiny / np.finfo(dtype).eps:
            fw.check_gradients(op, o | fading, dtype, rng, factor=power)


@pytest.mark.parametrize("name", ["sum, normalised", "delta, attention"])
@pytest.mark.parametrize("strength", [1, 5, 30, 200])
def test_what_fades_through_all_small_numbers_stays_a_number(rng, dtype, name, strength):
    """Channels that forget at different times: denominators pass every size down to 0 while rows beside them are large."""
    for _ in range(30):
        op, o = variants(rng, dtype, 70)[name]
        o |= {"feature_map": "relu", "log_decay": -rng.exponential(strength, (70, 6)).astype(dtype)}
        (out, state), pullback = fw.vjp(op, o, return_state=True)
        got = pullback((fw.draw(rng, dtype, *out.shape), fw.draw(rng, dtype, *state.shape)))
        assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in got)


# ----------------------------------------------------------------------------------------------------- other witnesses


@pytest.mark.parametrize("form", ["none", "per head", "log per channel"])
@pytest.mark.parametrize("name", VARIANTS)
def test_finite_differences(rng, name, form):
    """Of the library itself: a mistake that value and oracle share would show here."""
    T, K, V = 9, 3, 2
    op, o = variants(rng, np.float64, T, (), K, V)[name]
    o = with_decay(rng, np.float64, o, form, T, K)
    _, state = fw.call(op, o, return_state=True)
    o = o | {"state": state}
    (out, last), pullback = fw.vjp(op, o, return_state=True)
    u, w = fw.draw(rng, np.float64, *out.shape), fw.draw(rng, np.float64, *last.shape)
    got = pullback((u, w))

    def total(o):
        out, state = fw.call(op, o, return_state=True)
        return (u * out).sum() + (w * state).sum()

    for field in got._fields:
        x = np.array(o[field], np.float64)
        for i in np.ndindex(x.shape):
            ends = []
            for step in (H, -H):
                moved = x.copy()
                moved[i] += step
                ends.append(total(o | {field: moved}))
            error = abs((ends[0] - ends[1]) / (2 * H) - np.asarray(getattr(got, field))[i])
            assert error <= FD_TOL * max(1, abs(total(o))) * 10, (field, i, error)


@pytest.mark.parametrize("name", VARIANTS)
def test_adjoint_identity(rng, name):
    """<J u, w> = <u, J^T w>: J u from two evaluations along a direction, J^T w from the pullback."""
    op, o = variants(rng, np.float64, 100, (2,), 12, 8)[name]
    o = with_decay(rng, np.float64, o, "log per channel", 100, 12, (2,))
    out, pullback = fw.vjp(op, o)
    w = fw.draw(rng, np.float64, *out.shape)
    got = pullback(w)
    for field in got._fields:
        u = fw.draw(rng, np.float64, *np.shape(o[field])) if np.ndim(o[field]) else np.ones(())
        u = -np.abs(u) if field == "log_decay" else u
        u = u / max(1.0, np.linalg.norm(u))
        a, b = (fw.call(op, o | {field: o[field] + s * H * u}).astype(np.longdouble) for s in (1, -1))
        left, right = float(((a - b) * w).sum() / (2 * H)), float((u * getattr(got, field)).sum())
        assert abs(left - right) <= FD_TOL * np.linalg.norm(w) * np.sqrt(out.size), field


def test_complex_steps_of_the_definition(rng):
    """The whole of a call, features and all, differentiated by its own definition."""
    how = ("dpfp", 2)
    o = fw.delta(rng, np.float64, 8, 3, 2, feature_map=how, normalize="sum", log_decay=-rng.exponential(0.3, 8))
    out, pullback = fw.vjp("delta_rule", o)
    u = fw.draw(rng, np.float64, *out.shape)
    got = pullback(u)

    def total(query, key, value, beta, log_decay, **_):
        q, k = (maps.value(x, how, "sum") for x in (query, key))
        return (u * ref.delta_rule(q, k, value, beta, decay=np.exp(log_decay)[:, None]).out).sum()

    for name in got._fields:
        fw.near(getattr(got, name), ref.complex_step(total, o, name), fw.GRADIENT_TOL["float64"], name)


# ----------------------------------------------------------------------------------------------------- feature maps


@pytest.mark.parametrize("name", fw.MAPS)
def test_the_gradient_of_a_feature_map(rng, dtype, name):
    how = fw.feature_maps(6)[name]
    for shape in ((6,), (4, 6), (2, 3, 70, 6), (0, 6)):
        x = fw.draw(rng, dtype, *shape)
        phi, pullback = rc.vjp(rc.fastweight.feature_map, x, fw.public(how))
        u = fw.draw(rng, dtype, *phi.shape)
        (got,) = pullback(u)
        wide = np.asarray(x, fw.judge(dtype)), np.asarray(u, fw.judge(dtype))
        assert got.dtype == dtype
        fw.near(got, maps.pullback(*wide, how), 10 * fw.TOL[np.dtype(dtype).name], name)


@pytest.mark.parametrize("name", ["relu", "elu1", "l2", "squared_relu", "dpfp 1"])
def test_at_zero_the_gradient_of_a_feature_map_is_that_of_the_convention(dtype, name):
    how = fw.feature_maps(4)[name]
    x = np.array([[0.0, -0.0, 0.0, -0.0], [0.0, 2.0, -1.0, 0.0]], dtype)
    phi, pullback = rc.vjp(rc.fastweight.feature_map, x, fw.public(how))
    u = np.ones_like(phi)
    fw.near(pullback(u)[0], maps.pullback(x.astype(float), u.astype(float), how), fw.TOL[np.dtype(dtype).name], name)
