"""What must hold for every correct implementation of fast weights: parts and the whole, threads and heads that change no
bit, what the delta rule edits and what it leaves alone, linearity, special cases that are one another."""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import fastweight_checks as fw

COUNTS = [1, 2, 3, 7, 64]
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from([np.float32, np.float64])


def same(dtype):
    return fw.SAME[np.dtype(dtype).name]


def part(o, times):
    """The operands at some times."""
    return {k: a[..., times] if k in ("beta", "decay", "log_decay") and not fw.per_channel(a, *o["key"].shape[-2:])
            else a[..., times, :] if isinstance(a, np.ndarray) else a for k, a in o.items()}  # fmt: skip


def variants(rng, dtype, T, K=6, V=5, batch=()):
    key = {"key": fw.draw(rng, dtype, *batch, T, K)}
    each = {"log_decay": -rng.exponential(0.3, (*batch, T, K)).astype(dtype)}
    return {
        "sum": ("linear_attention", fw.linear(rng, dtype, T, K, V, batch, normalize=False)),
        "sum, normalised": ("linear_attention", fw.linear(rng, dtype, T, K, V, batch, decay=fw.decays(rng, dtype, *batch, T))),
        "delta": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, top=2.0)),
        "gated delta": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch) | each),
        "delta, attention": ("delta_rule", fw.delta(rng, dtype, T, K, V, batch, feature_map="elu1", normalize="attention") | key),
        "general": ("fast_weight", fw.general(rng, dtype, T, K, V, batch)),
    }  # fmt: skip


VARIANTS = list(variants(np.random.default_rng(0), np.float64, 1))

# ---------------------------------------------------------------------------------------------- parts and the whole


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cuts", [(0, 50), (1, 2), (16, 32), (7, 64), (49, 50), (20, 20)], ids=str)
def test_a_sequence_in_parts_with_its_state_carried_on(rng, dtype, name, cuts):
    op, o = variants(rng, dtype, 75)[name]
    whole, last = fw.call(op, o, return_state=True)
    state, parts = None, []
    for times in (slice(0, cuts[0]), slice(*cuts), slice(cuts[1], 75)):
        out, state = fw.call(op, part(o, times), state=state, return_state=True)
        parts.append(out)
    fw.near(np.concatenate(parts), whole, same(dtype))
    fw.near(state, last, same(dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_at_a_time(rng, dtype, name):
    """Decoding: the state is all that is needed."""
    op, o = variants(rng, dtype, 40, batch=(2,))[name]
    whole, last = fw.call(op, o, return_state=True)
    state = None
    for t in range(40):
        out, state = fw.call(op, part(o, slice(t, t + 1)), state=state, return_state=True)
        fw.near(out[..., 0, :], whole[..., t, :], 4 * same(dtype))
    fw.near(state, last, same(dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_in_parts_are_those_of_the_whole(rng, dtype, name):
    """The chain rule over the carried state: d_state of the second half is what the first half is given."""
    op, o = variants(rng, dtype, 50)[name]
    (first, middle), back1 = fw.vjp(op, part(o, slice(0, 23)), return_state=True)
    second, back2 = fw.vjp(op, part(o, slice(23, 50)), state=middle)
    u = fw.draw(rng, dtype, 50, 5)
    late = back2(u[23:])
    early = back1((u[:23], late.state))
    whole = fw.vjp(op, o)[1](u)
    for field in whole._fields:
        got = np.concatenate([getattr(early, field), getattr(late, field)])
        fw.near(got, getattr(whole, field), 10 * same(dtype), field)


@given(
    st.sampled_from(VARIANTS),
    st.integers(0, 90),
    st.integers(0, 90),
    st.integers(1, 20),
    st.integers(1, 20),
    SEEDS,
    KINDS,
)
def test_parts_at_random(name, first, second, K, V, seed, dtype):
    rng = np.random.default_rng(seed)
    op, o = variants(rng, dtype, first + second, K, V)[name]
    whole, last = fw.call(op, o, return_state=True)
    out1, state = fw.call(op, part(o, slice(0, first)), return_state=True)
    out2, state = fw.call(op, part(o, slice(first, None)), state=state, return_state=True)
    fw.near(np.concatenate([out1, out2]), whole, 4 * same(dtype))
    fw.near(state, last, 4 * same(dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_later_tokens_do_not_change_earlier_ones(rng, dtype, name, same_bits):
    op, o = variants(rng, dtype, 150)[name]
    _, other = variants(rng, dtype, 150)[name]
    plain = fw.call(op, o)
    for t in (0, 1, 7, 15, 16, 63, 64, 100, 148):
        mixed = {
            k: np.concatenate([a[: t + 1], other[k][t + 1 :]]) if isinstance(a, np.ndarray) else a for k, a in o.items()
        }
        same_bits(fw.call(op, mixed)[: t + 1], plain[: t + 1])


@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_comes_later_may_hold_anything(rng, dtype, name, junk, same_bits):
    """The padding of a sequence that has ended: no zero is multiplied with it."""
    op, o = variants(rng, dtype, 150)[name]
    plain = fw.call(op, o)
    for t in (0, 6, 15, 63, 100):
        for k in ("query", "key", "value"):
            spoilt = o[k].copy()
            spoilt[t + 1 :] = junk
            same_bits(fw.call(op, o | {k: spoilt})[: t + 1], plain[: t + 1])


@pytest.mark.parametrize("large", ["late", "early", "all"])
def test_favor_needs_no_small_numbers(rng, dtype, large):
    """Products of features below the smallest number of the type: a running maximum keeps them in range, and looks at
    no later key."""
    times, tol = (6, 1e-4) if dtype == np.float32 else (20, 1e-10)
    o = fw.linear(rng, dtype, 60, feature_map=fw.favor(6, 32))
    where = {"late": slice(40, 60), "early": slice(0, 20), "all": slice(0, 60)}[large]
    plain = fw.call("linear_attention", o)
    o["key"][where] *= times
    o["query"][where] *= times
    out = fw.call("linear_attention", o)
    if large == "late":
        fw.near(out[:40], plain[:40], same(dtype))
    fw.near(out, fw.expected("linear_attention", o).out, tol)
    halves = [fw.call("linear_attention", part(o, slice(0, 30)), return_state=True)]
    halves.append(fw.call("linear_attention", part(o, slice(30, 60)), state=halves[0].state, return_state=True))
    fw.near(np.concatenate([half.out for half in halves]), out, tol)


# ------------------------------------------------------------------------------------------------ the same bits again


def everything(op, o):
    """Forward and backward results, as a flat list of arrays."""
    (out, state), pullback = fw.vjp(op, o, return_state=True)
    u = np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype)
    got = pullback((u, state))
    return [out, state, fw.call(op, o), *got]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "T, K, V, batch",
    [(300, 64, 64, ()), (300, 16, 33, (2, 3)), (5, 7, 30, (300,)), (1, 64, 64, (70,)), (2000, 8, 130, ())],
)
def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, name, T, K, V, batch):
    op, o = variants(rng, dtype, T, K, V, batch)[name]
    rc.set_num_threads(1)
    one = everything(op, o)
    for count in COUNTS[1:]:
        rc.set_num_threads(count)
        for a, b in zip(everything(op, o), one, strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_alone_are_the_heads_in_a_batch(rng, dtype, same_bits, name):
    op, o = variants(rng, dtype, 70, 16, 9, (2, 3))[name]
    whole, state = fw.call(op, o, return_state=True)
    for b in range(2):
        for h in range(3):
            own = {k: a[b, h] if isinstance(a, np.ndarray) else a for k, a in o.items()}
            out, last = fw.call(op, own, return_state=True)
            same_bits(out, whole[b, h])
            same_bits(last, state[b, h])


# --------------------------------------------------------------------------------------------- the paper's behaviour


def test_a_second_value_replaces_the_first(rng, dtype):
    """The same unit key twice, beta 1: the delta rule gives the second value, the sum rule the mean."""
    for K in (1, 4, 64):
        k = np.repeat(fw.unit(fw.draw(rng, dtype, 1, K)), 2, axis=0)
        v = fw.draw(rng, dtype, 2, 7)
        out = rc.fastweight.delta_rule(k, k, v, np.ones(2, dtype))
        fw.near(out, v, fw.TOL[np.dtype(dtype).name])
        for name in ("elu1", "relu", "softmax"):
            k = np.abs(k)
            out = rc.fastweight.linear_attention(k, k, v, feature_map=name)
            fw.near(out, np.stack([v[0], (v[0] + v[1]) / 2]), fw.TOL[np.dtype(dtype).name])


def test_orthogonal_keys_are_never_disturbed(rng, dtype):
    """Writes and rewrites along other axes leave a value exactly as it was."""
    K = 16
    keys = np.eye(K, dtype=dtype)[rng.integers(1, K, 300)]
    keys[0] = np.eye(K, dtype=dtype)[0]
    v, beta = fw.draw(rng, dtype, 300, 5), rng.uniform(0, 2, 300).astype(dtype)
    beta[0] = 1
    query = np.broadcast_to(keys[0], (300, K))
    out = rc.fastweight.delta_rule(query, keys, v, beta)
    np.testing.assert_array_equal(out, np.broadcast_to(v[0], (300, 5)))
    # the gate of the sum rule forgets all keys alike
    faded = rc.fastweight.linear_attention(
        query, keys, v, feature_map="identity", normalize=False, decay=np.full(300, 0.5, dtype)
    )
    np.testing.assert_array_equal(faded[:30], v[0] * dtype(0.5) ** np.arange(30, dtype=dtype)[:, None])


def test_orthonormal_keys_are_retrieved_whole(rng, dtype):
    K = 32
    k = np.linalg.qr(rng.standard_normal((K, K)))[0].astype(dtype)
    v = fw.draw(rng, dtype, K, 6)
    _, state = rc.fastweight.delta_rule(k, k, v, np.ones(K, dtype), return_state=True)
    fw.near(k @ state, v, fw.TOL[np.dtype(dtype).name])
    # more keys than width: not all can be held, but the last is
    k2, v2 = fw.unit(fw.draw(rng, dtype, 100, K)), fw.draw(rng, dtype, 100, 6)
    out = rc.fastweight.delta_rule(k2, k2, v2, np.ones(100, dtype))
    fw.near(out, v2, fw.TOL[np.dtype(dtype).name])


def test_writing_what_is_read_changes_nothing(rng, dtype):
    o = fw.delta(rng, dtype, 30)
    _, state = fw.call("delta_rule", o, return_state=True)
    k = fw.unit(fw.draw(rng, dtype, 1, 6))
    value = k @ state
    _, again = rc.fastweight.delta_rule(k, k, value, np.ones(1, dtype), state=state, return_state=True)
    fw.near(again, state, fw.TOL[np.dtype(dtype).name])


# ------------------------------------------------------------------------------------- linearity, symmetries, identities


@given(st.sampled_from(VARIANTS), st.integers(1, 80), st.integers(1, 12), st.integers(1, 12), SEEDS, KINDS)
def test_every_rule_is_linear_in_its_values(name, T, K, V, seed, dtype):
    rng = np.random.default_rng(seed)
    op, o = variants(rng, dtype, T, K, V)[name]
    v1, v2 = o["value"], fw.draw(rng, dtype, T, V)
    both = fw.call(op, o | {"value": v1 + 2 * v2})
    size = [np.abs(fw.call(op, o | {"value": v})) for v in (v1, v2)]
    error = np.abs(both - fw.call(op, o) - 2 * fw.call(op, o | {"value": v2})).max()
    assert error <= 4 * same(dtype) * max(1e-3, *(a.max() for a in size))


@pytest.mark.parametrize("name", VARIANTS)
def test_channels_of_the_values_do_not_meet(rng, dtype, name):
    op, o = variants(rng, dtype, 60, 9, 40)[name]
    whole = fw.call(op, o)
    some = [3, 17, 39]
    fw.near(fw.call(op, o | {"value": o["value"][:, some]}), whole[:, some], same(dtype))


@given(st.integers(1, 60), st.integers(1, 60), SEEDS, KINDS, st.booleans())
def test_the_order_of_keys_does_not_matter_to_the_full_sum(n, m, seed, dtype, normalize):
    rng = np.random.default_rng(seed)
    o = fw.linear(rng, dtype, n, causal=False, normalize=normalize)
    o |= {"key": fw.draw(rng, dtype, m, 6), "value": fw.draw(rng, dtype, m, 5)}
    order = rng.permutation(m)
    moved = o | {"key": o["key"][order], "value": o["value"][order]}
    fw.near(fw.call("linear_attention", moved), fw.call("linear_attention", o), same(dtype))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_last_causal_row_is_the_full_sum(rng, dtype, normalize):
    o = fw.linear(rng, dtype, 90, normalize=normalize)
    causal, full = (fw.call("linear_attention", o, causal=c) for c in (True, False))
    fw.near(causal[-1], full[-1], same(dtype))


@pytest.mark.parametrize("op", fw.OPS)
def test_ways_to_say_a_decay(rng, dtype, op, same_bits):
    o = fw.problem(op, rng, dtype, 50, batch=(2,)) | {"decay": None}
    one = fw.decays(rng, dtype, 2, 50)
    each = np.repeat(one[..., None], 6, axis=-1)
    plain = fw.call(op, o, decay=one)
    fw.near(fw.call(op, o, decay=each), plain, same(dtype))
    fw.near(fw.call(op, o, log_decay=np.log(one)), plain, same(dtype))
    fw.near(fw.call(op, o, log_decay=np.log(each)), plain, same(dtype))
    for none in ({"decay": np.ones(50, dtype)}, {"log_decay": np.zeros((50, 6), dtype)}):
        fw.near(fw.call(op, o, **none), fw.call(op, o), same(dtype))


def test_rules_that_are_one_another(rng, dtype):
    o = fw.delta(rng, dtype, 60, top=2.0)
    q, k, v, beta = (o[name] for name in ("query", "key", "value", "beta"))
    b, zero, decay = beta[:, None], np.zeros_like(k), fw.decays(rng, dtype, 60, 6)
    fast, tol = rc.fastweight.fast_weight, same(dtype)
    fw.near(fast(q, b * k, v, -b * k, k), fw.call("delta_rule", o), tol)
    fw.near(fast(q, b * k, v, -b * k, decay * k, decay=decay), fw.call("delta_rule", o, decay=decay), tol)
    plain = rc.fastweight.linear_attention(q, k, v, feature_map="identity", normalize=False, decay=decay)
    fw.near(fast(q, k, v, zero, zero, decay=decay), plain, tol)
    fw.near(fast(q, k, v, zero, k, decay=decay), plain, tol)
    # a normaliser is one more value of 1
    a = fw.linear(rng, dtype, 60)
    more = {"value": np.concatenate([a["value"], np.ones((60, 1), dtype)], axis=1), "normalize": False}
    out = fw.call("linear_attention", a | more)
    fw.near(out[:, :-1] / out[:, -1:], fw.call("linear_attention", a), tol)


def test_keys_that_meet_no_other_make_the_delta_rule_the_sum_rule(rng, dtype):
    k = np.eye(40, dtype=dtype)
    o = {"query": fw.draw(rng, dtype, 40, 40), "key": k, "value": fw.draw(rng, dtype, 40, 5)}
    delta = fw.call("delta_rule", o, beta=np.ones(40, dtype))
    fw.near(delta, fw.call("linear_attention", o, feature_map="identity", normalize=False), same(dtype))


@pytest.mark.parametrize("name", ["elu1", "softmax", "favor"])
def test_normalised_reads_lie_in_the_hull_of_the_values(rng, dtype, name):
    o = fw.linear(rng, dtype, 60, feature_map=fw.feature_maps(6)[name])
    out, room = fw.call("linear_attention", o), fw.TOL[np.dtype(dtype).name] * np.abs(o["value"]).max()
    assert (out >= o["value"].min(0) - room).all() and (out <= o["value"].max(0) + room).all()
    np.testing.assert_allclose(out[0], o["value"][0], rtol=0, atol=room)
