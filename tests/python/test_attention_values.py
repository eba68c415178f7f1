"""attention.attend against the oracle: every argument, in both number types."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests.reference import attention as ref

NUMBERS = ("query", "key", "value", "scale", "bias", "sink")


def operands(rng, dtype, n=5, m=11, d=6, e=4, batch=(), **more):
    o = {
        "query": rng.standard_normal((*batch, n, d)).astype(dtype),
        "key": rng.standard_normal((*batch, m, d)).astype(dtype),
        "value": rng.standard_normal((*batch, m, e)).astype(dtype),
    }
    return o | more


def attend(o, **more):
    o = o | more
    return rc.attention.attend(o.pop("query"), o.pop("key"), o.pop("value"), **o)


def widen(dtype, o):
    return {k: acc.widen(dtype, a)[0] if k in NUMBERS else a for k, a in o.items()}


def check(dtype, o):
    """Output and lse, every entry within the stated bounds; returns what came."""
    got, wide = attend(o, return_lse=True), widen(dtype, o)
    expected, size = ref.attend(**wide), ref.sizes(**wide)
    for a, b, unit, c in zip(got, expected, size, (acc.C_READ, acc.C_ENERGY), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        error, bound = np.abs(a[finite] - b[finite]), c * acc.eps(dtype) * unit[finite]
        assert (error <= bound).all(), f"{(error / bound).max()} times the bound"
    return got


# ----------------------------------------------------------------------------------------------------- by hand


def test_two_keys_by_hand():
    # d = 1: the default scale is 1; scores 0 and log 3: weights 1/4 and 3/4
    q, k, v = [[np.log(3)]], [[0.0], [1.0]], [[4.0, 0.0], [0.0, 8.0]]
    tight = {"rel": 8 * acc.eps(np.float64)}
    out, lse = rc.attention.attend(q, k, v, return_lse=True)
    assert out == pytest.approx(np.array([[1.0, 6.0]]), **tight) and lse == pytest.approx([np.log(4)], **tight)
    # a sink of log 4 is worth as much as both keys
    out, lse = rc.attention.attend(q, k, v, sink=np.log(4), return_lse=True)
    assert out == pytest.approx(np.array([[0.5, 3.0]]), **tight) and lse == pytest.approx([np.log(8)], **tight)
    # a bias of log 3 on the first key makes the two equal; the scale does not touch it
    out = rc.attention.attend(q, k, v, bias=[np.log(3), 0.0])
    assert out == pytest.approx(np.array([[2.0, 4.0]]), **tight)
    out = rc.attention.attend(q, k, v, bias=[np.log(9), 0.0], scale=2)
    assert out == pytest.approx(np.array([[2.0, 4.0]]), **tight)


def test_causality_by_hand():
    """Equal scores: each row is the mean of what it sees."""
    q2, q4, k = np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((3, 3))
    v = np.array([[1.0], [3.0], [8.0]])
    for q, causal, rows, seen in (
        (q2, True, [2, 4], [2, 3]), (q2, "top-left", [1, 2], [1, 2]), (k, True, [1, 2, 4], [1, 2, 3]),
        (k, "top-left", [1, 2, 4], [1, 2, 3]), (q4, True, [0, 1, 2, 4], [0, 1, 2, 3]), (q4, "top-left", [1, 2, 4, 4], [1, 2, 3, 3]),
    ):  # fmt: skip
        out, lse = rc.attention.attend(q, k, v, causal=causal, return_lse=True)
        np.testing.assert_allclose(out[:, 0], rows, rtol=1e-14)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(lse, np.log(seen), rtol=1e-14)


def test_the_result_has_names(rng, dtype, same_bits):
    o = operands(rng, dtype)
    both = attend(o, return_lse=True)
    assert isinstance(both, tuple) and type(both).__name__ == "Attention" and both._fields == ("out", "lse")
    assert both.lse.shape == (5,) and both.lse.dtype == dtype
    alone = attend(o)
    assert isinstance(alone, np.ndarray)
    same_bits(alone, both.out)


# ------------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize("scale", [None, 0, 1e-6, 0.05, 1.0, 4, -1.0, -3.5, 300.0, 1e6])
@pytest.mark.parametrize("e", [1, 3, 19])
def test_scale(rng, dtype, scale, e):
    check(dtype, operands(rng, dtype, e=e) | ({} if scale is None else {"scale": scale}))


@pytest.mark.parametrize("d", [1, 2, 6, 64, 100])
def test_the_default_scale(rng, dtype, d, same_bits):
    o = operands(rng, dtype, d=d)
    check(dtype, o)
    same_bits(attend(o), attend(o, scale=None))
    same_bits(attend(o), attend(o, scale=1 / np.sqrt(d)))


def test_a_scale_of_zero_is_the_mean(rng, dtype):
    o = operands(rng, dtype, scale=0.0)
    mean = o["value"].astype(np.float64).mean(0)
    assert (np.abs(attend(o) - mean) <= acc.C_READ * acc.eps(dtype) * np.abs(o["value"]).max()).all()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3), (1, 3)])
@pytest.mark.parametrize("name", ["scale", "sink"])
def test_numbers_per_head_and_batch(rng, dtype, shape, name):
    o = operands(rng, dtype, batch=(2, 3))
    for causal in (False, True):
        check(dtype, o | {name: rng.uniform(-2, 3, shape).astype(dtype), "causal": causal})


@pytest.mark.parametrize("make", [int, float, np.int64, np.float32, np.float64, np.array])
def test_numbers_of_every_kind(rng, dtype, make, same_bits):
    o = operands(rng, dtype)
    for name in ("scale", "sink"):
        out = attend(o, **{name: make(2)})
        assert out.dtype == dtype, "a number decides no number type"
        same_bits(out, attend(o, **{name: 2.0}))


# ------------------------------------------------------------------------------------------ masks and causality


def mask_forms(rng, n, m):
    ragged = rng.random((n, m)) < 0.5
    ragged[1] = False
    ragged[2] = True
    return {
        "no mask": None, "per key": rng.random(m) < 0.5, "per key row": rng.random((1, m)) < 0.5, "dense": ragged,
        "per query": (np.arange(n) % 2 == 0)[:, None], "one key": np.arange(m) == m // 2, "all": np.ones(m, bool),
        "none": np.zeros(m, bool), "none at all": np.zeros((n, m), bool), "prefix": np.arange(m) < 4,
    }  # fmt: skip


FORMS = list(mask_forms(np.random.default_rng(0), 5, 11))
CAUSAL = [False, True, "top-left"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", CAUSAL)
def test_masks(rng, dtype, form, causal):
    for n, m in ((5, 11), (11, 11), (11, 5), (60, 130)):
        o = operands(rng, dtype, n, m, mask=mask_forms(rng, n, m)[form], causal=causal)
        check(dtype, o)
        check(dtype, o | {"sink": 0.4})
        check(dtype, o | {"sink": -1.5, "bias": rng.standard_normal((n, m)).astype(dtype)})


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("size", [97, 300])
def test_masks_with_long_gaps(rng, dtype, causal, size):
    """Whole stretches of keys that a row does not admit, at the start, the middle and the end."""
    mask = np.ones((size, size), bool)
    for i in range(size):
        a, b = sorted(rng.integers(0, size + 1, 2))
        mask[i, a:b] = i % 3 == 0
        if i % 5 == 0:
            mask[i] = ~mask[i]
    o = operands(rng, dtype, size, size, 16, 8, mask=mask, causal=causal)
    check(dtype, o)
    check(dtype, o | {"mask": mask[7]})


def test_rows_that_admit_nothing(rng, dtype):
    mask = np.ones((5, 11), bool)
    mask[[0, 3]] = False
    minus = np.where(mask, 0, -np.inf).astype(dtype)
    for more in ({"mask": mask}, {"bias": minus}, {"mask": mask, "bias": minus, "causal": "top-left"}):
        out, lse = check(dtype, operands(rng, dtype) | more)
        assert (out[[0, 3]] == 0).all() and np.isneginf(lse[[0, 3]]).all() and np.isfinite(lse[[1, 2, 4]]).all()
        out, lse = check(dtype, operands(rng, dtype) | more | {"sink": 1.25})
        assert (out[[0, 3]] == 0).all() and lse[[0, 3]] == pytest.approx(1.25, rel=4 * acc.eps(dtype))
    out, lse = check(dtype, operands(rng, dtype, 11, 4, causal=True))
    assert (out[:7] == 0).all() and np.isneginf(lse[:7]).all() and (out[7:] != 0).all()


def test_no_keys_at_all(rng, dtype):
    for causal in CAUSAL:
        o = operands(rng, dtype, m=0, causal=causal)
        out, lse = check(dtype, o)
        assert (out == 0).all() and np.isneginf(lse).all() and out.shape == (5, 4)
        out, lse = check(dtype, o | {"sink": -0.5})
        assert (out == 0).all() and lse == pytest.approx(np.full(5, -0.5), rel=4 * acc.eps(dtype))


@pytest.mark.parametrize("hide", ["mask per key", "mask", "bias per key", "bias"])
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_what_is_hidden_from_all_may_hold_anything(rng, dtype, hide, junk):
    for n, m in ((5, 11), (30, 500)):
        keep = rng.random(m) < 0.6
        keep[:2] = True, False
        o = operands(rng, dtype, n, m)
        o["key"][~keep], o["value"][~keep] = junk, junk
        full = keep if "per key" in hide else np.broadcast_to(keep, (n, m))
        o |= {"mask": full} if "mask" in hide else {"bias": np.where(full, 0.5, -np.inf).astype(dtype)}
        for causal in CAUSAL:
            assert np.isfinite(check(dtype, o | {"causal": causal}).out).all()


# -------------------------------------------------------------------------------------------------- bias, sink


def bias_forms(rng, n, m):
    holes = rng.standard_normal((n, m))
    holes[rng.random((n, m)) < 0.4] = -np.inf
    holes[1] = -np.inf
    padding = np.where(np.arange(m) < m - 3, 0, -np.inf)
    return {
        "dense": rng.standard_normal((n, m)), "holes": holes, "per key": rng.standard_normal(m), "padding": padding,
        "row": padding[None], "per query": rng.standard_normal((n, 1)), "zero": np.zeros((n, m)), "large": 1e4 * rng.standard_normal(m),
        "slope": -0.3 * np.abs(np.arange(n)[:, None] - np.arange(m)), "nothing": np.full(m, -np.inf),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(bias_forms(np.random.default_rng(0), 5, 11)))
@pytest.mark.parametrize("causal", CAUSAL)
def test_biases(rng, dtype, form, causal):
    for n, m in ((5, 11), (11, 5), (60, 130)):
        o = operands(rng, dtype, n, m, bias=bias_forms(rng, n, m)[form].astype(dtype), causal=causal)
        check(dtype, o)
        check(dtype, o | {"scale": -2.0, "mask": rng.random((n, m)) < 0.7})
        check(dtype, o | {"sink": 0.4})


@pytest.mark.parametrize(
    "shape", [(3, 1, 11), (3, 5, 11), (2, 1, 5, 11), (2, 1, 1, 11), (2, 3, 5, 1), (1, 3, 1, 11), (1, 11)]
)
def test_masks_and_biases_per_head(rng, dtype, shape):
    o = operands(rng, dtype, batch=(2, 3))
    bias, mask = rng.standard_normal(shape).astype(dtype), rng.random(shape) < 0.6
    for causal in CAUSAL:
        check(dtype, o | {"bias": bias, "causal": causal})
        check(dtype, o | {"mask": mask, "causal": causal})
        check(dtype, o | {"mask": mask, "bias": np.where(mask, bias, -np.inf).astype(dtype), "causal": causal})


def test_a_hugely_negative_bias_hides(rng, dtype):
    """-1e9, or the lowest finite number, are common ways to write a mask."""
    o, mask = operands(rng, dtype), rng.random((5, 11)) < 0.5
    mask[:, 3] = True
    wide = widen(dtype, o)
    expected, size = ref.attend(**wide, mask=mask), ref.sizes(**wide, mask=mask)
    for lowest in (-1e9, np.finfo(dtype).min):
        out = attend(o, bias=np.where(mask, 0, lowest).astype(dtype))
        assert (np.abs(out - expected.out) <= acc.C_READ * acc.eps(dtype) * size.out).all()


@pytest.mark.parametrize("sink", [-80.0, -3.0, 0.0, 0.7, 5.0, 80.0, 1e4])
def test_sinks(rng, dtype, sink):
    for more in ({}, {"causal": True}, {"scale": 3.0}, {"mask": rng.random((5, 11)) < 0.5}):
        out, lse = check(dtype, operands(rng, dtype, sink=sink) | more)
        assert (lse >= sink * (1 - np.sign(sink) * 4 * acc.eps(dtype))).all()


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores(rng, dtype, size, sign):
    o = operands(rng, dtype, m=200)
    check(dtype, o | {"scale": sign * size})
    check(dtype, o | {"bias": np.full(200, sign * size, dtype)})
    check(dtype, o | {"bias": np.linspace(-size, size, 200)[::sign].astype(dtype), "sink": size})


# ------------------------------------------------------------------------------------------------ number types


def test_integers_and_lists_are_float64(rng):
    o = {"query": [[1, 0, -1]], "key": [[1, 1, 0], [0, 1, 1]], "value": [[1, 2], [3, 5]]}
    exact = {k: np.array(a, np.float64) for k, a in o.items()}
    for kind in (list, np.int8, np.int32, np.int64):
        made = {k: np.array(a, kind) if kind is not list else a for k, a in o.items()}
        out = attend(made)
        assert out.dtype == np.float64
        np.testing.assert_array_equal(out, check(np.float64, exact).out)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("which", [("key",), ("value",), ("key", "value")])
def test_stored_in_half_precision(rng, name, which, same_bits):
    """What is stored is exact: only the arithmetic rounds, in float32."""
    half = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    o = operands(rng, np.float32, 30, 200, 33, 9, (4,), causal=True, sink=0.3)
    o = o | {k: o[k][:2].astype(half) for k in ("key", "value")}
    exact = o | {k: o[k].astype(np.float32) for k in ("key", "value")}
    o = exact | {k: o[k] for k in which}
    out, wide = attend(o), widen(np.float32, exact)
    error = np.abs(out - ref.attend(**wide).out)
    assert out.dtype == np.float32 and (error <= acc.C_READ * acc.eps(np.float32) * ref.sizes(**wide).out).all()


def test_mixed_number_types_never_lose_precision_silently(rng):
    o = operands(rng, np.float64)
    for name in ("query", "key", "value"):
        mixed = o | {name: o[name].astype(np.float32)}
        try:
            out = attend(mixed)
        except TypeError as error:
            assert "float32" in str(error) and "float64" in str(error)
        else:
            wide = widen(np.float64, mixed)
            assert (
                np.abs(out - ref.attend(**wide).out) <= acc.C_READ * acc.eps(np.float64) * ref.sizes(**wide).out
            ).all()


def test_inputs_are_left_alone(rng, dtype, same_bits):
    o = operands(rng, dtype, batch=(2,), causal=True)
    o |= {
        "scale": np.array([0.4, 0.7]),
        "sink": np.array(0.2),
        "mask": rng.random((5, 11)) < 0.7,
        "bias": rng.standard_normal(11).astype(dtype),
    }
    copies = {k: np.copy(a) for k, a in o.items()}
    attend(o, return_lse=True)
    out, pullback = rc.vjp(rc.attention.attend, **o)
    d_out = np.ones_like(out)
    pullback(d_out)
    assert (d_out == 1).all()
    for k, a in o.items():
        same_bits(np.asarray(a), copies[k])


# ------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("form", ["plain", "scale", "mask", "bias", "causal", "grouped"])
def test_torch_agrees(rng, dtype, form):
    torch = pytest.importorskip("torch")
    o = operands(rng, dtype, 70, 90, 24, 10, (2, 6))
    mask, bias = rng.random((2, 1, 70, 90)) < 0.7, rng.standard_normal((6, 70, 90)).astype(dtype)
    if form == "grouped":
        o["key"], o["value"] = o["key"][:, :2], o["value"][:, :2]
    ours, theirs = {
        "plain": ({}, {}), "scale": ({"scale": 0.9}, {"scale": 0.9}), "causal": ({"causal": "top-left"}, {"is_causal": True}),
        "mask": ({"mask": mask}, {"attn_mask": torch.from_numpy(mask)}), "grouped": ({}, {"enable_gqa": True}),
        "bias": ({"bias": bias}, {"attn_mask": torch.from_numpy(bias)}),
    }[form]  # fmt: skip
    out = attend(o | ours)
    tensors = (torch.from_numpy(np.ascontiguousarray(o[k])) for k in ("query", "key", "value"))
    other = torch.nn.functional.scaled_dot_product_attention(*tensors, **theirs).numpy()
    size = ref.sizes(**widen(dtype, o | ours)).out
    assert (np.abs(out - other) <= 2 * acc.C_READ * acc.eps(dtype) * size).all()
