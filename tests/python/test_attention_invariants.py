"""What must hold for every correct implementation of attention.attend: rows and threads that change no bit,
masks that say the same in several ways, weights that are a distribution, symmetries."""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import accuracy as acc
from tests.reference import attention as ref

NUMBERS = ("query", "key", "value", "scale", "bias", "sink")
CAUSAL = [False, True, "top-left"]
COUNTS = [1, 2, 3, 7, 64]


def operands(rng, dtype, n=12, m=300, d=9, e=4, batch=(), **more):
    o = {
        "query": rng.standard_normal((*batch, n, d)).astype(dtype),
        "key": rng.standard_normal((*batch, m, d)).astype(dtype),
        "value": rng.standard_normal((*batch, m, e)).astype(dtype),
    }
    return o | more


def attend(o, **more):
    o = {"return_lse": True} | o | more
    return rc.attention.attend(o.pop("query"), o.pop("key"), o.pop("value"), **o)


def vjp(o, **more):
    return rc.vjp(rc.attention.attend, **(o | more))


def units(dtype, o):
    """The stated bounds of output and lse."""
    wide = {k: np.asarray(a, np.float64) if k in NUMBERS and a is not None else a for k, a in o.items()}
    out, lse = ref.sizes(**wide)
    return ref.Attention(acc.C_READ * acc.eps(dtype) * out, acc.C_ENERGY * acc.eps(dtype) * lse)


def near(dtype, a, b, o, other=None):
    """Results of two problems with the same answer are apart by the sum of the stated bounds at most."""
    for x, y, *bounds in zip(a, b, units(dtype, o), units(dtype, o if other is None else other), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype == dtype
        finite = np.isfinite(x)
        np.testing.assert_array_equal(x[~finite], y[~finite])
        assert (np.abs(x[finite] - y[finite]) <= sum(bounds)[finite]).all()


# ------------------------------------------------------------- a row never depends on the rows beside it: bitwise

SIZES = [
    (2, 1, 1, 1),
    (9, 7, 3, 2),
    (50, 49, 16, 16),
    (65, 193, 16, 33),
    (385, 191, 33, 7),
    (129, 1200, 64, 64),
    (200, 5000, 16, 8),
]


def some_rows(n):
    return sorted({0, 1, 23, 24, n // 2, n - 1} & set(range(n)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_alone_is_the_row_in_a_batch(rng, dtype, same_bits, size):
    n, m = size[:2]
    o = operands(rng, dtype, *size)
    together = attend(o)
    for k in some_rows(n):
        alone = attend(o, query=o["query"][k : k + 1])
        same_bits(alone.out[0], together.out[k])
        same_bits(alone.lse[0], together.lse[k])
    some = slice(n // 3, n // 3 + 5)
    same_bits(attend(o, query=o["query"][some]).out, together.out[some])
    same_bits(attend(o, query=o["query"][::-1].copy()).out[::-1], together.out)


@pytest.mark.parametrize("m", [7, 193, 3000])
def test_a_row_alone_with_masks_biases_and_sinks(rng, dtype, same_bits, m):
    n = 70
    mask, bias = rng.random((n, m)) < 0.5, rng.standard_normal((n, m)).astype(dtype)
    mask[3] = False
    bias[rng.random((n, m)) < 0.2] = -np.inf
    o = operands(rng, dtype, n, m)
    for more in (
        {"mask": mask},
        {"mask": mask[0]},
        {"bias": bias},
        {"bias": bias[0]},
        {"mask": mask, "bias": bias, "sink": 0.4},
        {"sink": -1.0},
    ):
        together = attend(o | more)
        for k in (0, 3, 41, 69):
            own = {name: a[k : k + 1] if np.ndim(a) == 2 else a for name, a in more.items()}
            alone = attend(o | own, query=o["query"][k : k + 1])
            same_bits(alone.out[0], together.out[k])
            same_bits(alone.lse[0], together.lse[k])


@pytest.mark.parametrize("n, m", [(60, 60), (70, 193), (193, 70), (400, 2500)])
def test_causal_rows_alone_are_the_rows_in_a_batch(rng, dtype, same_bits, n, m):
    """The last rows with all keys see what they see in the batch; with "top-left" it is the first rows."""
    o = operands(rng, dtype, n, m, 16, 8)
    last, first = attend(o, causal=True), attend(o, causal="top-left")
    for k in sorted({1, 2, 25, 49, n // 2} & set(range(n))):
        some = attend(o, query=o["query"][n - k :], causal=True)
        same_bits(some.out, last.out[n - k :])
        same_bits(some.lse, last.lse[n - k :])
        same_bits(attend(o, query=o["query"][:k], causal="top-left").out, first.out[:k])


def test_heads_alone_are_the_heads_in_a_batch(rng, dtype, same_bits):
    o = operands(rng, dtype, 33, 200, 20, 6, (2, 6))
    o |= {
        "key": o["key"][:, :2],
        "value": o["value"][:, :2],
        "scale": rng.uniform(0.1, 0.9, 6),
        "sink": rng.standard_normal((2, 1)),
    }
    o["bias"] = rng.standard_normal((6, 1, 200)).astype(dtype)
    for causal in CAUSAL:
        together = attend(o, causal=causal)
        for b in range(2):
            for h in range(6):
                own = {"query": o["query"][b, h], "key": o["key"][b, h // 3], "value": o["value"][b, h // 3]}
                own |= {"scale": o["scale"][h], "sink": o["sink"][b, 0], "bias": o["bias"][h]}
                alone = attend(own, causal=causal)
                same_bits(alone.out, together.out[b, h])
                same_bits(alone.lse, together.lse[b, h])


# ------------------------------------------------------------------------------- the same bits for any threads

THREADS = [(1, 20_000, 16), (5, 3000, 33), (300, 700, 24), (1000, 50, 8), (2, 0, 4), (0, 5, 4), (1, 1, 1)]


def everything(o):
    """Forward and backward results of every kind, as a flat list of arrays."""
    n, m = o["query"].shape[-2], o["key"].shape[-2]
    u = np.random.default_rng(0)
    dtype = o["query"].dtype
    found = [*attend(o)]
    for more in (
        {}, {"causal": True}, {"mask": u.random((n, m)) < 0.8, "sink": 0.3, "scale": 0.2},
        {"bias": u.standard_normal(m).astype(dtype), "causal": "top-left"},
    ):  # fmt: skip
        out, pullback = vjp(o, **more)
        found += [out, *pullback(u.standard_normal(out.shape).astype(dtype))]
    return found


@pytest.mark.parametrize("n, m, d", THREADS)
def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, n, m, d):
    o = operands(rng, dtype, n, m, d)
    rc.set_num_threads(1)
    one = everything(o)
    for count in COUNTS[1:]:
        rc.set_num_threads(count)
        for a, b in zip(everything(o), one, strict=True):
            same_bits(a, b)


def test_the_same_bits_over_heads_and_groups(rng, dtype, same_bits):
    o = operands(rng, dtype, 70, 90, 8, 8, (2, 6))
    o |= {"key": o["key"][:, :2], "value": o["value"][:, :2]}
    found = []
    for count in COUNTS:
        rc.set_num_threads(count)
        found.append(everything(o))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


# -------------------------------------------------------------------------------------- masks said in other ways


@pytest.mark.parametrize(
    "n, m", [(5, 5), (24, 24), (49, 49), (48, 97), (97, 48), (400, 1200), (1200, 400), (400, 2500)]
)
@pytest.mark.parametrize("sink", [None, 0.4])
def test_causal_is_an_explicit_mask(rng, dtype, n, m, sink):
    o = operands(rng, dtype, n, m, 8, 8, sink=sink)
    for causal, offset in ((True, m - n), ("top-left", 0)):
        lower = np.tril(np.ones((n, m), bool), offset)
        masked = o | {"mask": lower}
        near(dtype, attend(o, causal=causal), attend(masked), masked)
        near(dtype, attend(masked, causal=causal), attend(masked), masked)
    last = o | {"query": o["query"][-1:]}
    near(dtype, attend(last, causal=True), attend(last), last)


def test_causal_gradients_are_those_of_an_explicit_mask(rng, dtype):
    for n, m in ((97, 97), (60, 500), (500, 60)):
        o = operands(rng, dtype, n, m, 8, 8, sink=0.4)
        u = rng.standard_normal((n, 8)).astype(dtype)
        for causal, offset in ((True, m - n), ("top-left", 0)):
            masked = o | {"mask": np.tril(np.ones((n, m), bool), offset)}
            wide = {k: np.asarray(a, np.float64) if k in NUMBERS else a for k, a in masked.items()}
            size = ref.gradients(d_out=u.astype(np.float64), absolute=True, **wide)
            a, b = vjp(o, causal=causal)[1](u), vjp(masked)[1](u)
            for name in a._fields:
                bound = 2 * acc.C_GRADIENT * acc.eps(dtype) * getattr(size, name) + acc.underflow(dtype, u)
                assert (np.abs(getattr(a, name) - getattr(b, name)) <= bound).all()


@pytest.mark.parametrize("causal", CAUSAL)
def test_a_bias_of_minus_infinity_is_the_mask(rng, dtype, causal):
    for shape in ((60, 300), (300,), (60, 1), (1, 300)):
        mask = rng.random(shape) < 0.6
        masked = operands(rng, dtype, 60, causal=causal) | {"mask": mask}
        bias = np.where(mask, 0, -np.inf).astype(dtype)
        near(dtype, attend(masked | {"mask": None}, bias=bias), attend(masked), masked)
        near(dtype, attend(masked, bias=bias), attend(masked), masked)


def test_a_bias_of_log_k_is_a_key_k_times(rng, dtype):
    o = operands(rng, dtype, m=40, sink=0.3)
    times = rng.integers(0, 5, 40)
    with np.errstate(divide="ignore"):
        biased = o | {"bias": np.log(times).astype(dtype)}
    repeated = o | {"key": np.repeat(o["key"], times, 0), "value": np.repeat(o["value"], times, 0)}
    near(dtype, attend(biased), attend(repeated), biased, repeated)


def test_masked_keys_are_absent_keys(rng, dtype):
    o, mask = operands(rng, dtype, sink=0.3), rng.random(300) < 0.4
    fewer = o | {"key": o["key"][mask], "value": o["value"][mask]}
    near(dtype, attend(o, mask=mask), attend(fewer), fewer)


@pytest.mark.parametrize("n, m", [(60, 60), (50, 500), (400, 2500)])
def test_later_keys_do_not_change_earlier_rows(rng, dtype, same_bits, n, m):
    o = operands(rng, dtype, n, m, 8, 8)
    for causal, offset in ((True, m - n), ("top-left", 0)):
        plain = attend(o, causal=causal)
        for i in sorted({0, 1, 22, 23, 24, 47, 48, n // 2, n - 2} & set(range(n))):
            changed = {k: o[k].copy() for k in ("key", "value")}
            for a in changed.values():
                a[i + offset + 1 :] = 100 * rng.standard_normal(a[i + offset + 1 :].shape)
            got = attend(o | changed, causal=causal)
            same_bits(got.out[: i + 1], plain.out[: i + 1])
            same_bits(got.lse[: i + 1], plain.lse[: i + 1])
            assert (got.out[i + 1 :] != plain.out[i + 1 :]).any(-1).all() or offset + i + 1 >= m


def test_growing_a_sequence_keeps_its_past(rng, dtype):
    """Decoding one query at a time against all keys so far gives the rows of the whole."""
    o = operands(rng, dtype, 60, 60)
    whole = attend(o, causal=True)
    for t in (1, 2, 24, 25, 49, 60):
        step = {"query": o["query"][t - 1 : t], "key": o["key"][:t], "value": o["value"][:t]}
        near(dtype, attend(step, causal=True), ref.Attention(*(a[t - 1 : t] for a in whole)), step)


# ----------------------------------------------------------------------------------- weights, symmetries, limits


@pytest.mark.parametrize("scale", [1e-6, 0.3, -10.0, 1e6])
@pytest.mark.parametrize("m", [1, 7, 193, 1500])
def test_weights_are_a_distribution(rng, dtype, scale, m):
    """Values tell the weights: the identity gives each of them, ones their sum, which a sink leaves below 1."""
    o = operands(rng, dtype, 9, m, 5, scale=scale) | {"value": np.eye(m, dtype=dtype)}
    ones = o | {"value": np.ones((m, 1), dtype)}
    room = 2 * acc.eps(dtype) * (4 + np.sqrt(m))
    assert (np.abs(attend(ones).out - 1) <= room).all()
    weights = attend(o).out
    assert (weights >= 0).all() and (weights <= 1 + 4 * acc.eps(dtype)).all()
    _, lse = attend(ones, sink=0.7)
    rest = np.exp(0.7 - lse.astype(np.float64))
    bound = room + rest * units(dtype, ones | {"sink": 0.7}).lse
    assert (np.abs(attend(ones, sink=0.7).out[:, 0] + rest - 1) <= bound).all()


@pytest.mark.parametrize("causal", [False, True])
def test_the_result_lies_in_the_hull_of_the_values(rng, dtype, causal):
    o = operands(rng, dtype, 60, 60, scale=2.0, causal=causal)
    out, room = attend(o).out, acc.C_READ * acc.eps(dtype) * np.abs(o["value"]).max()
    assert (out >= o["value"].min(0) - room).all() and (out <= o["value"].max(0) + room).all()


def test_the_order_of_keys_does_not_matter(rng, dtype):
    o = operands(rng, dtype, sink=0.2)
    order = rng.permutation(300)
    moved = o | {"key": o["key"][order], "value": o["value"][order]}
    for more in ({}, {"mask": rng.random((12, 300)) < 0.7}, {"bias": rng.standard_normal(300).astype(dtype)}):
        near(dtype, attend(o | more), attend(moved | {k: a[..., order] for k, a in more.items()}), o | more)


def test_a_common_shift_of_scores_changes_nothing(rng, dtype):
    """Adding s to every bias and to the sink: the same weights, lse larger by s."""
    o = operands(rng, dtype, bias=np.linspace(-1, 1, 300).astype(dtype), sink=0.25)
    moved = o | {"bias": o["bias"] + dtype(8), "sink": 8.25}
    a, b = attend(o), attend(moved)
    near(dtype, a, ref.Attention(b.out, b.lse - dtype(8)), moved)


def test_scale_moves_into_the_query(rng, dtype):
    o = operands(rng, dtype, scale=-0.75)
    moved = o | {"query": o["query"] * dtype(-0.75), "scale": 1.0}
    near(dtype, attend(o), attend(moved), o)


@pytest.mark.parametrize("sink", [-200.0, -1e4, -1e30])
def test_a_sink_far_below_is_no_sink(rng, dtype, sink):
    o = operands(rng, dtype)
    for more in ({}, {"causal": True}, {"mask": rng.random((12, 300)) < 0.5}):
        near(dtype, attend(o | more, sink=sink), attend(o | more), o | more)


def test_a_sink_is_a_key_that_reads_nothing(rng, dtype):
    o = operands(rng, dtype, sink=0.7)
    extra = {k: np.concatenate([o[k], np.zeros((1, o[k].shape[1]), dtype)]) for k in ("key", "value")}
    bias = np.zeros(301, dtype)
    bias[300] = 0.7
    near(dtype, attend(o), attend(o | extra | {"sink": None, "bias": bias}), o)


@pytest.mark.parametrize("scale", [0.05, 0.7, 5.0])
def test_attention_is_hopfield_retrieval_of_values(rng, dtype, scale):
    o = operands(rng, dtype, scale=scale)
    for mask in (None, rng.random((12, 300)) < 0.5, np.arange(300) % 3 > 0):
        info = rc.hopfield.retrieve(o["query"], o["key"], beta=scale, values=o["value"], mask=mask, return_info=True)
        near(dtype, attend(o, mask=mask), ref.Attention(info.state, info.lse * dtype(scale)), o | {"mask": mask})


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(CAUSAL),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
)
def test_two_halves_merge_by_their_lse(n, m, causal, seed, dtype):
    """Attention over all keys is the mean of attention over two parts, weighed by exp(lse)."""
    rng = np.random.default_rng(seed)
    o = operands(rng, dtype, n, m, 5, 3)
    whole, keep = attend(o, causal=causal), rng.random(m) < 0.5
    parts = [attend(o, causal=causal, mask=part) for part in (keep, ~keep)]
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.logaddexp(parts[0].lse, parts[1].lse)
        shares = [np.where(np.isneginf(p.lse), 0, np.exp(p.lse - lse))[:, None] for p in parts]
    out = sum(s * p.out for s, p in zip(shares, parts, strict=True)).astype(dtype)
    wide = {k: np.asarray(a, np.float64) for k, a in o.items()} | {"causal": causal}
    out_size, lse_size = ref.sizes(**wide)
    # the shares inherit the error of lse
    bound = 2 * acc.C_ENERGY * acc.eps(dtype) * (1 + lse_size[:, None]) * out_size
    assert (np.abs(out - whole.out) <= bound).all()
