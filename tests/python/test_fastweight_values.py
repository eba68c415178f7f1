"""Fast weights against the oracle: every rule, map, normalisation and decay, in both number types."""

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw
from tests.reference import fastweight as ref
from tests.reference import feature_maps as maps

# How a decay is given: the argument, its strength (the mean of -log decay), per channel or per head.
DECAYS = {
    "no decay": None, "decay per head": ("decay", 0.3, False), "decay per channel": ("decay", 0.3, True),
    "log decay per head": ("log_decay", 0.3, False), "log decay per channel": ("log_decay", 0.3, True),
    "weak": ("decay", 1e-3, True), "strong": ("log_decay", 5.0, True),
}  # fmt: skip


def decay(rng, dtype, form, T, F, batch=()):
    if DECAYS[form] is None:
        return {}
    name, strength, channels = DECAYS[form]
    rate = rng.exponential(strength, (*batch, T, F) if channels else (*batch, T))
    return {name: (-rate if name == "log_decay" else np.exp(-rate)).astype(dtype)}


SPARSE = ["relu", "squared_relu", "dpfp 1", "dpfp 3"]  # maps that leave channels empty

# ----------------------------------------------------------------------------------------------------------- by hand


def test_the_sum_rule_by_hand():
    k, v = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), np.array([[2.0], [4.0], [10.0]])
    q = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    out = rc.fastweight.linear_attention(q, k, v, feature_map="identity")
    np.testing.assert_allclose(out, [[2.0], [3.0], [26 / 4]], rtol=1e-15)
    out = rc.fastweight.linear_attention(q, k, v, feature_map="identity", normalize=False, scale=0.5)
    np.testing.assert_allclose(out, [[1.0], [3.0], [13.0]], rtol=1e-15)
    out = rc.fastweight.linear_attention(q, k, v, feature_map="identity", causal=False)
    np.testing.assert_allclose(out, [[3.0], [3.0], [26 / 4]], rtol=1e-15)
    out = rc.fastweight.linear_attention(q, k, v, feature_map="identity", normalize=False, decay=[1.0, 0.5, 0.5])
    np.testing.assert_allclose(out, [[2.0], [5.0], [22.5]], rtol=1e-15)


def test_the_delta_rule_by_hand():
    k, v = np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]), np.array([[2.0], [4.0], [10.0]])
    # S = (2, 0); then 2 + 1/2 (4 - 2) = 3: S = (3, 0); v-bar = 1.8, S = (3, 0) + 8.2 (0.6, 0.8)
    out, state = rc.fastweight.delta_rule(k, k, v, [1.0, 0.5, 1.0], return_state=True)
    np.testing.assert_allclose(out, [[2.0], [3.0], [10.0]], rtol=1e-15)
    np.testing.assert_allclose(state, [[3 + 0.6 * 8.2], [0.8 * 8.2]], rtol=1e-15)
    # halved before the second read: v-bar = 1, S = 1 + 1/2 (4 - 1)
    out = rc.fastweight.delta_rule(k[:2], k[:2], v[:2], [1.0, 0.5], decay=[1.0, 0.5])
    np.testing.assert_allclose(out, [[2.0], [2.5]], rtol=1e-15)


def test_the_general_recurrence_by_hand():
    one = np.ones((3, 1))
    # S = 1; then 0.5 * 1 + 2 * (3 * 1) + 1 = 7.5; then 0.5 * 7.5 + 2 * 3 * 7.5 + 1: b reads before the decay
    out = rc.fastweight.fast_weight(one, one, one, 2 * one, 3 * one, decay=[0.5] * 3)
    np.testing.assert_allclose(out, [[1.0], [7.5], [49.75]], rtol=1e-15)


def test_the_result_has_names(rng, dtype, same_bits):
    for op in fw.OPS:
        o = fw.problem(op, rng, dtype)
        both = fw.call(op, o, return_state=True)
        assert isinstance(both, tuple) and both._fields == ("out", "state")
        alone = fw.call(op, o)
        assert isinstance(alone, np.ndarray) and alone.shape == (20, 5) and alone.dtype == dtype
        same_bits(alone, both.out)
        width = 6 if op == "linear_attention" else 5  # z is the last column of what is normalised
        assert both.state.shape == (6, width) and both.state.dtype == dtype


# -------------------------------------------------------------------------------------------------- linear attention


@pytest.mark.parametrize("form", DECAYS)
@pytest.mark.parametrize("name", fw.MAPS)
def test_linear_attention(rng, dtype, name, form):
    K = 6
    how = fw.feature_maps(K)[name]
    F = maps.width(how, K)
    for T, batch in ((1, ()), (20, ()), (70, (2,))):
        o = fw.linear(rng, dtype, T, K, batch=batch, feature_map=how) | decay(rng, dtype, form, T, F, batch)
        fw.check("linear_attention", o | {"normalize": False, "scale": 0.7}, dtype)
        if name in fw.POSITIVE and not (name in SPARSE and form == "strong"):
            fw.check("linear_attention", o, dtype)
            fw.check("linear_attention", o | {"scale": -2}, dtype)


def test_a_denominator_may_be_subnormal(dtype):
    """1 / z is more than the type holds; the ratio is a value again."""
    k, v = np.array([[1, -1], [-1, 1]], dtype), np.ones((2, 1), dtype)
    rate = np.array([0, {np.float32: -93, np.float64: -718}[dtype]], dtype)
    out = rc.fastweight.linear_attention(k[[0, 0]], k, v, feature_map="relu", log_decay=rate)
    np.testing.assert_allclose(out, 1, rtol=1e-3)


@pytest.mark.parametrize("name", SPARSE)
def test_denominators_below_the_normal_numbers(rng, dtype, name):
    """What a query shares with keys of long ago alone has faded to exp(-90) and less. As long as the denominator is a normal
    number the ratio is right; below it is finite, and within the values."""
    how = fw.feature_maps(6)[name]
    for _ in range(20):
        o = fw.linear(rng, dtype, 70, feature_map=how) | decay(rng, dtype, "strong", 70, maps.width(how, 6))
        out = fw.call("linear_attention", o)
        assert np.isfinite(out).all()
        ones = o | {"value": np.ones((70, 1), dtype), "normalize": False}
        smallest = 1e3 * np.finfo(dtype).tiny / np.finfo(dtype).eps
        good = fw.expected("linear_attention", ones, fw.judge(dtype)).out[:, 0] > smallest
        exact = fw.expected("linear_attention", o, fw.judge(dtype)).out
        fw.near(out[good], exact[good], fw.TOL[np.dtype(dtype).name])
        assert (np.abs(out) <= 2 * np.abs(o["value"]).max()).all()


@pytest.mark.parametrize("name", fw.MAPS)
@pytest.mark.parametrize("n, m", [(20, 20), (5, 30), (30, 5), (1, 1), (3, 300)])
def test_linear_attention_over_all_keys(rng, dtype, name, n, m):
    o = fw.linear(rng, dtype, n, feature_map=fw.feature_maps(6)[name], causal=False)
    o |= {"key": fw.draw(rng, dtype, m, 6), "value": fw.draw(rng, dtype, m, 5)}
    fw.check("linear_attention", o | {"normalize": False, "scale": -0.3}, dtype)
    if name in fw.POSITIVE:
        fw.check("linear_attention", o, dtype)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_state_of_the_full_sum_is_that_after_the_last_token(rng, dtype, normalize):
    o = fw.linear(rng, dtype, 30, normalize=normalize)
    causal, full = (fw.call("linear_attention", o, causal=c, return_state=True).state for c in (True, False))
    fw.near(full, causal, fw.SAME[np.dtype(dtype).name])


def test_without_keys_there_is_nothing_to_read(rng, dtype):
    o = fw.linear(rng, dtype, 4, causal=False) | {"key": np.zeros((0, 6), dtype), "value": np.zeros((0, 5), dtype)}
    for normalize in (True, False):
        out = fw.call("linear_attention", o, normalize=normalize)
        assert out.shape == (4, 5) and (out == 0).all()


def test_the_defaults_of_linear_attention(rng, dtype, same_bits):
    o = fw.linear(rng, dtype)
    plain = rc.fastweight.linear_attention(o["query"], o["key"], o["value"])
    same_bits(plain, fw.call("linear_attention", o, feature_map="elu1", causal=True, normalize=True, scale=1.0))
    fw.near(plain, fw.expected("linear_attention", o, fw.judge(dtype)).out, fw.TOL[np.dtype(dtype).name])


@pytest.mark.parametrize("causal", [True, False])
def test_a_denominator_of_zero_gives_zeros(rng, dtype, causal):
    """relu and dpfp leave channels empty: keys and queries that share none."""
    k = np.array([[1.0, -1], [2, -1], [-1, 3]], dtype)
    q = np.array([[-1.0, 2], [-1, -1], [1, 1]], dtype)
    v = fw.draw(rng, dtype, 3, 4)
    out = rc.fastweight.linear_attention(q, k, v, feature_map="relu", causal=causal)
    assert (out[1] == 0).all() and np.isfinite(out).all()
    if causal:
        assert (out[0] == 0).all()
    fw.check("linear_attention", {"query": q, "key": k, "value": v, "feature_map": "relu", "causal": causal}, dtype)
    zero = rc.fastweight.linear_attention(
        np.zeros((3, 2), dtype), k, v, feature_map=fw.public(("dpfp", 1)), causal=causal
    )
    assert (zero == 0).all()


# --------------------------------------------------------------------------------------------------------- delta rule


@pytest.mark.parametrize("form", DECAYS)
@pytest.mark.parametrize("top", [1.0, 2.0])
def test_the_delta_rule(rng, dtype, form, top):
    for T, batch in ((1, ()), (20, ()), (150, (2,))):
        o = fw.delta(rng, dtype, T, batch=batch, top=top) | decay(rng, dtype, form, T, 6, batch)
        fw.check("delta_rule", o, dtype)
        fw.check("delta_rule", o | {"scale": 0.25, "normalize": "l2"}, dtype)


@pytest.mark.parametrize("form", ["no decay", "decay per head", "log decay per channel"])
@pytest.mark.parametrize("normalize", ["sum", "l2"])
@pytest.mark.parametrize("name", fw.MAPS)
def test_the_delta_rule_with_every_map(rng, dtype, name, normalize, form):
    if normalize == "sum" and name not in fw.POSITIVE:
        return  # a sum near 0 of either sign is no problem to solve
    how = fw.feature_maps(6)[name]
    for T in (1, 20, 70):
        o = fw.delta(rng, dtype, T, feature_map=how, normalize=normalize) | {"key": fw.draw(rng, dtype, T, 6)}
        fw.check("delta_rule", o | decay(rng, dtype, form, T, maps.width(how, 6)), dtype, factor=4)


@pytest.mark.parametrize("form", ["no decay", "decay per head", "log decay per channel"])
@pytest.mark.parametrize("name", ["elu1", "softmax", "favor"])
def test_the_delta_rule_with_attention_normalisation(rng, dtype, name, form):
    how = fw.feature_maps(6)[name]
    for T in (1, 2, 20, 70):
        o = fw.delta(rng, dtype, T, feature_map=how, normalize="attention") | {"key": fw.draw(rng, dtype, T, 6)}
        fw.check("delta_rule", o | decay(rng, dtype, form, T, maps.width(how, 6)), dtype, factor=4)


def test_attention_normalisation_where_keys_share_no_channel(rng, dtype):
    k = np.array([[1.0, -1], [-1, 2], [1, -1], [1, 1]], dtype)
    o = {"query": k[::-1].copy(), "key": k, "value": fw.draw(rng, dtype, 4, 3), "beta": np.ones(4, dtype)}
    out = fw.check("delta_rule", o | {"feature_map": "relu", "normalize": "attention"}, dtype)
    assert (out[1] == 0).all() or np.isfinite(out).all()


@pytest.mark.parametrize("normalize", ["sum", "l2"])
def test_features_that_are_zero_write_and_read_nothing(rng, dtype, normalize):
    o = fw.delta(rng, dtype, 9, feature_map="relu", normalize=normalize)
    o["key"][4] = -1
    o["query"][6] = -2
    out = fw.check("delta_rule", o, dtype)
    assert (out[6] == 0).all()
    without = {name: np.delete(a, 4, 0) if isinstance(a, np.ndarray) else a for name, a in o.items()}
    fw.near(np.delete(out, 4, 0), fw.call("delta_rule", without), fw.SAME[np.dtype(dtype).name])


@pytest.mark.parametrize("size", [3.0, 30.0])
def test_unstable_keys_are_allowed(rng, dtype, size):
    """beta |k|^2 > 2: the state grows without bound, as the equations say."""
    o = fw.delta(rng, dtype, 12)
    o["key"] *= dtype(np.sqrt(size))
    o["beta"][:] = 1
    fw.check("delta_rule", o, dtype, factor=10)


def test_beta_of_zero_writes_nothing(rng, dtype):
    o = fw.delta(rng, dtype, beta=np.zeros(20, dtype))
    out, state = fw.call("delta_rule", o, return_state=True)
    assert (out == 0).all() and (state == 0).all()


# ------------------------------------------------------------------------------------------------ general recurrence


@pytest.mark.parametrize("form", DECAYS)
def test_the_general_recurrence(rng, dtype, form):
    for T, batch in ((1, ()), (20, ()), (150, (2,))):
        o = fw.general(rng, dtype, T, batch=batch) | {"decay": None} | decay(rng, dtype, form, T, 6, batch)
        fw.check("fast_weight", o, dtype)
        fw.check("fast_weight", o | {"scale": -0.5}, dtype)
        key, b = fw.unit(o["key"]), -fw.unit(o["key"]) * dtype(0.7)
        fw.check("fast_weight", o | {"a": None, "b": b, "key": key}, dtype)  # written where the value is


def test_without_a_what_is_read_is_written_where_the_value_is(rng, dtype):
    o = fw.general(rng, dtype, 60)
    o["key"] = fw.unit(o["key"])
    fw.near(fw.call("fast_weight", o, a=None), fw.call("fast_weight", o, a=o["key"]), fw.SAME[np.dtype(dtype).name])


# ------------------------------------------------------------------------------- chunks, strong decays, long sequences


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("form", DECAYS)
def test_chunk_sizes_agree(rng, op, form):
    for T in (5, 64, 150):
        o = fw.problem(op, rng, np.float64, T, batch=(2,), **({"top": 2.0} if op == "delta_rule" else {}))
        o = o | {"decay": None} | decay(rng, np.float64, form, T, 6, (2,))
        exact = fw.expected(op, o)
        for chunk in fw.CHUNKS:
            out, state = fw.call(op, o, chunk=chunk, return_state=True)
            fw.near(out, exact.out, fw.SAME["float64"])
            fw.near_state(state, exact.state, fw.SAME["float64"])


@pytest.mark.parametrize("form", ["no decay", "decay per head", "log decay per channel", "strong"])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_attention_is_its_quadratic_form(rng, form, normalize):
    o = fw.linear(rng, np.float64, 75, normalize=normalize) | decay(rng, np.float64, form, 75, 6)
    _, _, _, q, k, more = fw.posed("linear_attention", o, np.float64)
    exact = ref.quadratic(q, k, o["value"], **more)
    for chunk in fw.CHUNKS:
        fw.near(fw.call("linear_attention", o, chunk=chunk), exact, fw.SAME["float64"])


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 5.0, 20.0, 1000.0])
@pytest.mark.parametrize("op", fw.OPS)
def test_strong_decays(rng, dtype, op, rate, channels):
    """exp(-5) a step over 64 steps is exp(-320): products of decays must never divide."""
    T = 150
    o = fw.problem(op, rng, dtype, T) | {"decay": None}
    o["log_decay"] = np.full((T, 6) if channels else T, -rate, dtype)
    if channels:
        o["log_decay"][:, ::2] = 0  # channels that keep everything beside channels that forget at once
    for chunk in (None, *fw.CHUNKS):
        out = fw.check(op, o | ({} if chunk is None else {"chunk": chunk}), dtype)
        assert np.isfinite(out).all()


def test_decays_may_be_as_small_as_there_are(rng, dtype):
    tiny = np.array([1.0, np.finfo(dtype).tiny, 1e-30, 1.0, np.finfo(dtype).tiny] * 4, dtype)
    for op in fw.OPS:
        fw.check(op, fw.problem(op, rng, dtype) | {"decay": tiny}, dtype)


@pytest.mark.parametrize("op", fw.OPS)
def test_long_sequences(rng, op):
    """Rounding does not pile up: 20 000 steps against the oracle, in float32 too."""
    T = 20_000
    for dtype, kind in ((np.float32, np.float64), (np.float64, np.float64)):
        o = fw.problem(op, rng, dtype, T, 4, 3)
        exact, tol = fw.expected(op, o, kind), 4 * fw.TOL[np.dtype(dtype).name]
        out, state = fw.call(op, o, return_state=True)
        fw.near(out, exact.out, tol)
        fw.near_state(state, exact.state, tol)


# -------------------------------------------------------------------------------------------------------- number types


def test_integers_and_lists_are_float64():
    k, v, beta = [[1, 0], [0, 1], [1, 1]], [[1], [2], [3]], [1, 1, 0]
    for kind in (list, np.int8, np.int64):
        made = [a if kind is list else np.array(a, kind) for a in (k, k, v)]
        for out in (
            rc.fastweight.linear_attention(*made, feature_map="relu"),
            rc.fastweight.delta_rule(*made, beta),
            rc.fastweight.fast_weight(*made, made[0], made[1], decay=[1, 1, 1]),
        ):
            assert out.dtype == np.float64
    np.testing.assert_array_equal(rc.fastweight.delta_rule(k, k, v, beta), [[1.0], [2.0], [3.0]])


@pytest.mark.parametrize("op", fw.OPS)
def test_mixed_number_types_never_lose_precision_silently(rng, op):
    o = fw.problem(op, rng, np.float64)
    for name in [name for name in o if name in fw.ARRAYS]:
        mixed = o | {name: o[name].astype(np.float32)}
        try:
            out = fw.call(op, mixed)
        except TypeError as error:
            assert "float32" in str(error) and "float64" in str(error)
        else:
            fw.near(out, fw.expected(op, mixed).out, fw.TOL["float64"])


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
def test_a_scale_per_head(rng, dtype, op, shape):
    o = fw.problem(op, rng, dtype, batch=(2, 3), scale=rng.uniform(-2, 2, shape).astype(dtype))
    fw.check(op, o, dtype)


def test_inputs_are_left_alone(rng, dtype, same_bits):
    for op in fw.OPS:
        o = fw.problem(op, rng, dtype, decay=fw.decays(rng, dtype, 20))
        _, state = fw.call(op, o, return_state=True)
        before = state.copy()
        copies = {k: a.copy() for k, a in o.items() if isinstance(a, np.ndarray)}
        fw.call(op, o, state=state)
        out, pullback = fw.vjp(op, o, state=state)
        pullback(np.ones_like(out))
        for name, a in copies.items():
            same_bits(o[name], a)
        same_bits(state, before)


# ----------------------------------------------------------------------------------------------------------- stability


@pytest.mark.parametrize("name", [None, "elu1", "dpfp 1"])
def test_the_diagnostic_of_unstable_writes(rng, dtype, name):
    """The largest beta |phi(k)|^2, above 2 of which a write grows what it meets, and where it is."""
    how = None if name is None else fw.feature_maps(6)[name]
    key, beta = fw.draw(rng, dtype, 2, 3, 40, 6), rng.uniform(0, 2, (2, 3, 40)).astype(dtype)
    size = beta.astype(float) * (maps.value(key.astype(float), how) ** 2).sum(axis=-1)
    largest, where = rc.fastweight.stability(key, beta, feature_map=fw.public(how))
    assert largest == pytest.approx(size.max(), rel=fw.TOL[np.dtype(dtype).name])
    assert tuple(where) == np.unravel_index(size.argmax(), size.shape)


def test_normalised_features_are_stable(rng, dtype):
    key, beta = fw.draw(rng, dtype, 40, 6), np.full(40, 2, dtype)
    for normalize in ("l2", "sum"):
        largest, _ = rc.fastweight.stability(key, beta, feature_map="elu1", normalize=normalize)
        assert largest <= 2 * (1 + fw.TOL[np.dtype(dtype).name])
