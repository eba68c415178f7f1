"""Shapes, strides, sizes, heads and out= of attention.attend: whatever the layout, the same numbers."""

import itertools

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import accuracy as acc
from tests.reference import attention as ref

NUMBERS = ("query", "key", "value", "scale", "bias", "sink")
SIZES = [0, 1, 5, 24, 47, 48, 49, 191, 193, 385, 1200]
WIDTHS = [1, 7, 16, 33, 64, 100, 128]
CAUSAL = [False, True, "top-left"]


def attend(o, **more):
    o = {"return_lse": True} | o | more
    return rc.attention.attend(o.pop("query"), o.pop("key"), o.pop("value"), **o)


def check(dtype, o):
    # float64 is judged in float64 here, which doubles the rounding: test_attention_values judges it in long double
    wide = {k: np.asarray(a, np.float64) if k in NUMBERS and a is not None else a for k, a in o.items()}
    got, expected, size = attend(o), ref.attend(**wide), ref.sizes(**wide)
    for a, b, unit, c in zip(got, expected, size, (acc.C_READ, acc.C_ENERGY), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == dtype and a.shape == b.shape
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        assert (np.abs(a[finite] - b[finite]) <= 2 * c * acc.eps(dtype) * unit[finite]).all()
    return got


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def operands(rng, dtype, n=5, m=9, d=6, e=4, leads=((), (), ()), **more):
    shapes = (n, d), (m, d), (m, e)
    return {k: draw(rng, dtype, *lead, *own) for k, lead, own in zip(NUMBERS, leads, shapes, strict=False)} | more


# --------------------------------------------------------------------------------------------------------- sizes


def settings(rng, dtype, n, m):
    """Everything that takes another way through a kernel, one after the other."""
    prefix = np.arange(m) < max(1, 2 * m // 3)
    return [
        {}, {"causal": True}, {"causal": "top-left"}, {"mask": prefix}, {"causal": True, "bias": draw(rng, dtype, m)},
        {"mask": rng.random((n, m)) < 0.7, "causal": True}, {"bias": draw(rng, dtype, n, m), "sink": 0.3}, {"sink": 0.5, "causal": "top-left"},
    ]  # fmt: skip


@pytest.mark.parametrize("d", WIDTHS)
def test_every_size(rng, dtype, d):
    """Sizes around what kernels tile by; the settings take turns, so that each meets every size at some width."""
    turn = itertools.count(WIDTHS.index(d))
    for n in SIZES:
        for m in SIZES:
            o = operands(rng, dtype, n, m, d, WIDTHS[next(turn) % len(WIDTHS)])
            some = settings(rng, dtype, n, m)
            check(dtype, o)
            check(dtype, o | some[1 + next(turn) % (len(some) - 1)])


@pytest.mark.parametrize("e", WIDTHS)
@pytest.mark.parametrize("d", WIDTHS)
def test_every_width(rng, dtype, d, e):
    for n, m in ((1, 193), (7, 385), (53, 97), (0, 5), (5, 0)):
        for more in settings(rng, dtype, n, m)[:: 1 if n * m < 1000 else 3]:
            check(dtype, operands(rng, dtype, n, m, d, e) | more)


@pytest.mark.parametrize(
    "n, m, d, e",
    [(400, 2500, 64, 64), (2500, 400, 16, 33), (1153, 1153, 33, 16), (24, 4700, 8, 8), (770, 1200, 100, 128)],
)
def test_across_blocks_tiles_and_segments(rng, dtype, n, m, d, e):
    o = operands(rng, dtype, n, m, d, e)
    for more in settings(rng, dtype, n, m):
        check(dtype, o | more)


@pytest.mark.parametrize("n, m, d", [(20_000, 20, 8), (3, 60_000, 8)])
def test_long_ones(rng, dtype, n, m, d):
    o = operands(rng, dtype, n, m, d)
    for more in ({}, {"causal": True}, {"causal": "top-left", "bias": draw(rng, dtype, m)}):
        check(dtype, o | more)


# ------------------------------------------------------------------------------------------------- leading axes

LEADS = [  # leading axes of query, key, value; all broadcast as in np.matmul
    ((), (), ()), ((3,), (3,), (3,)), ((3,), (), ()), ((), (3,), ()), ((), (), (3,)), ((2, 3), (3,), (1,)), ((2, 1), (3,), (2, 3)),
    ((1, 1), (2, 3), ()), ((2, 3), (2, 1), (2, 1)), ((5, 1, 3), (2, 1), (1, 1, 1)), ((0,), (1,), ()), ((2, 0), (1,), (2, 1)), ((), (0, 3), (1,)),
    ((2, 3), (), ()), ((4, 1, 3), (1,), ()),
]  # fmt: skip


@pytest.mark.parametrize("leads", LEADS, ids=str)
@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("n, m", [(5, 9), (60, 50)])
def test_leading_axes_broadcast(rng, dtype, leads, causal, n, m):
    o = operands(rng, dtype, n, m, leads=leads, causal=causal)
    full = np.broadcast_shapes(*leads)
    out, lse = check(dtype, o)
    assert out.shape == (*full, n, 4) and lse.shape == (*full, n)
    check(dtype, o | {"mask": rng.random(m) < 0.6})
    check(dtype, o | {"mask": rng.random((n, m)) < 0.6, "bias": draw(rng, dtype, n, m)})
    check(
        dtype,
        o
        | {"mask": rng.random((*full, n, m)) < 0.6, "scale": draw(rng, dtype, *full), "sink": draw(rng, dtype, *full)},
    )
    if full:
        check(
            dtype,
            o
            | {
                "bias": draw(rng, dtype, *full[-1:], n, 1),
                "scale": draw(rng, dtype, *full[-1:]),
                "sink": draw(rng, dtype, 1),
            },
        )


GROUPS = [  # leading axes of query, key, value: several heads of the query read one of key and value
    ((4,), (2,), (2,)), ((6,), (3,), (3,)), ((6,), (2,), (2,)), ((8,), (1,), (1,)), ((12,), (4,), (4,)), ((2, 6), (2, 3), (2, 3)),
    ((2, 6), (2,), (2,)), ((2, 6), (1, 2), (2, 2)), ((1, 6), (4, 2), (1, 2)), ((3, 2, 4), (2, 2), (3, 1, 2)), ((0, 4), (0, 2), (0, 2)),
]  # fmt: skip


@pytest.mark.parametrize("leads", GROUPS, ids=str)
@pytest.mark.parametrize("n, m", [(1, 60), (5, 9), (60, 50), (20, 0)])
def test_grouped_queries(rng, dtype, same_bits, leads, n, m):
    o = operands(rng, dtype, n, m, leads=leads)
    repeated = o | {k: ref.repeat_heads(o[k], o["query"]) for k in ("key", "value")}
    heads, full = leads[0][-1], np.broadcast_shapes(*(repeated[k].shape[:-2] for k in NUMBERS[:3]))
    for more in (
        {}, {"causal": True}, {"causal": "top-left", "sink": draw(rng, dtype, heads)}, {"mask": rng.random((heads, n, m)) < 0.6},
        {"bias": draw(rng, dtype, heads, 1, m), "causal": True}, {"scale": draw(rng, dtype, *full), "mask": rng.random((*full, n, m)) < 0.7},
    ):  # fmt: skip
        out, lse = check(dtype, o | more)
        assert out.shape == (*full, n, 4)
        if "bias" in more:
            continue  # one row for all queries of a head may be added in another order than a dense bias
        same = attend(repeated | more)
        same_bits(out, same.out)
        same_bits(lse, same.lse)


def test_many_small_problems(rng, dtype):
    o = operands(rng, dtype, 2, 4, 3, 2, leads=((700,), (700,), (700,)))
    check(dtype, o | {"scale": rng.uniform(-3, 3, 700).astype(dtype), "causal": True})


# ------------------------------------------------------------------------------------------------------ strides


def layouts(a):
    """The same numbers in every layout NumPy makes."""
    big = np.zeros(tuple(3 * s + 2 for s in a.shape), a.dtype)
    spread = big[tuple(slice(1, 1 + 3 * s, 3) for s in a.shape)]
    spread[...] = a
    gaps = np.zeros((*a.shape[:-2], 2 * a.shape[-2], a.shape[-1] + 3), a.dtype)[..., ::2, : a.shape[-1]]
    gaps[...] = a
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    return {
        "C": a, "Fortran": np.asfortranarray(a), "reversed rows": a[..., ::-1, :].copy()[..., ::-1, :],
        "reversed columns": a[..., ::-1].copy()[..., ::-1], "every third": spread, "gaps between rows": gaps, "not aligned": raw,
        "read-only": frozen, "reversed all": a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        "batch last": np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
        "heads inside rows": np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, 1)), 1, 0),
    }  # fmt: skip


@pytest.mark.parametrize("layout", list(layouts(np.zeros((1, 1, 1)))))
def test_strides(rng, dtype, same_bits, layout):
    heads = ((4,), (2,), (2,))
    o = operands(
        rng, dtype, 37, 70, 21, 5, leads=heads, scale=np.array([0.3, 0.6, 0.9, -0.2], dtype), sink=draw(rng, dtype, 4)
    )
    o |= {"mask": rng.random((4, 37, 70)) < 0.7, "bias": draw(rng, dtype, 4, 37, 70)}
    other = o | {k: layouts(o[k])[layout] for k in ("query", "key", "value", "mask", "bias")}
    other |= {k: o[k][::-1].copy()[::-1] for k in ("scale", "sink")}
    for causal in (False, True):
        plain = attend(o, causal=causal)
        for k in ("query", "key", "value", "mask", "bias", "scale", "sink"):
            same_bits(attend(o | {k: other[k]}, causal=causal), plain)
        same_bits(attend(other, causal=causal), plain)
    out, pullback = rc.vjp(rc.attention.attend, **o)
    _, strided = rc.vjp(rc.attention.attend, **other)
    u = draw(rng, dtype, *out.shape)
    for a, b in zip(pullback(u), strided(layouts(u)[layout]), strict=True):
        same_bits(np.asarray(a), np.asarray(b))


def test_stretched_axes_are_not_copies(rng, dtype, same_bits):
    o = operands(rng, dtype, 50, 130, mask=rng.random(130) < 0.7, bias=draw(rng, dtype, 130))
    plain = attend(o)
    wide = {k: np.broadcast_to(o[k], (4, *o[k].shape)) for k in ("query", "key", "value")}
    wide |= {k: np.broadcast_to(o[k], (4, 50, 130)) for k in ("mask", "bias")}
    for out, lse in zip(*attend(wide), strict=True):
        same_bits(out, plain.out)
        same_bits(lse, plain.lse)
    row = attend(o | {"query": np.broadcast_to(o["query"][:1], (50, 6))})
    same_bits(row.out, np.tile(plain.out[:1], (50, 1)))
    check(dtype, o | {"value": np.broadcast_to(o["value"][:, :1], (130, 4))})


def test_the_result_is_fresh_and_contiguous(rng, dtype):
    o = operands(rng, dtype)
    for query in (o["query"], np.asfortranarray(o["query"]), o["query"][::-1]):
        for a in attend(o, query=query):
            assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
            assert not any(np.shares_memory(a, b) for b in (query, o["key"], o["value"]))


def test_a_mask_may_be_a_list(rng, dtype, same_bits):
    o = operands(rng, dtype, 2, 3)
    same_bits(attend(o, mask=[True, False, True]), attend(o, mask=np.array([True, False, True])))


# ---------------------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("more", [{}, {"causal": True}, {"sink": 0.4}], ids=str)
def test_out(rng, dtype, same_bits, more):
    o = operands(rng, dtype, 60, 50, leads=((4,), (2,), (2,))) | more
    plain = attend(o)
    out = np.full(plain.out.shape, np.nan, dtype)
    assert attend(o, out=out, return_lse=False) is out
    same_bits(out, plain.out)
    out[...] = np.nan
    both = attend(o, out=out)
    assert both.out is out
    same_bits(both, plain)


def test_out_with_gaps_touches_nothing_else(rng, dtype, same_bits):
    o = operands(rng, dtype, 7, 4, causal=True)  # rows of zeros among them
    plain, wide = attend(o), np.full((17, 11), 7, dtype)
    out = wide[2:16:2, 1:5]
    assert attend(o, out=out).out is out
    same_bits(out, plain.out)
    out[...] = 7
    assert (wide == 7).all()


@pytest.mark.parametrize("kind", ["Fortran", "every other column", "reversed rows", "reversed columns", "not aligned"])
def test_out_in_an_unusual_layout_is_right_or_refused(rng, dtype, same_bits, kind):
    o = operands(rng, dtype)
    plain = attend(o).out
    out = {
        "Fortran": np.zeros((5, 4), dtype, order="F"), "every other column": np.zeros((5, 8), dtype)[:, ::2],
        "reversed rows": np.zeros((5, 4), dtype)[::-1], "reversed columns": np.zeros((5, 4), dtype)[:, ::-1],
        "not aligned": np.zeros(1 + plain.nbytes, np.uint8)[1:].view(dtype).reshape(5, 4),
    }[kind]  # fmt: skip
    try:
        assert attend(o, out=out).out is out
    except ValueError as error:
        assert "attention.attend" in str(error) and "out" in str(error)
    else:
        same_bits(out, plain)


@pytest.mark.parametrize("which", ["query", "key", "value", "shifted query", "half of the keys"])
def test_out_over_an_operand_is_right_or_refused(rng, dtype, same_bits, which):
    """Never silently wrong: the result of separate memory, or a sentence about out."""
    room = draw(rng, dtype, 300, 16)
    before = room.copy()
    plain = rc.attention.attend(before[:100], before[100:200], before[200:], causal=True)
    q, k, v = room[:100], room[100:200], room[200:]
    out = {"query": q, "key": k, "value": v, "shifted query": room[3:103], "half of the keys": room[150:250]}[which]
    try:
        rc.attention.attend(q, k, v, causal=True, out=out)
    except ValueError as error:
        assert "attention.attend" in str(error) and "out" in str(error)
        same_bits(room, before)
    else:
        same_bits(out, plain)


# ---------------------------------------------------------------------------------------------------- at random


@given(st.data())
def test_shapes_at_random(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3), "lead"))

    def part(name, own=()):
        """Some of the leading axes, each stretched or not."""
        keep = data.draw(st.integers(0, len(lead)), name)
        return *(s if data.draw(st.booleans(), name) else 1 for s in lead[len(lead) - keep :]), *own

    n, m = (data.draw(st.integers(0, 60), name) for name in "nm")
    d, e = (data.draw(st.integers(1, 30), name) for name in "de")
    o = {
        "query": draw(rng, dtype, *lead, n, d),
        "key": draw(rng, dtype, *part("key", (m, d))),
        "value": draw(rng, dtype, *part("value", (m, e))),
    }
    own = st.sampled_from([(m,), (1, m), (n, 1), (n, m)])
    o["causal"] = data.draw(st.sampled_from(CAUSAL), "causal")
    for name in ("scale", "sink"):
        if data.draw(st.booleans(), name):
            o[name] = draw(rng, dtype, *part(name))
    for name in ("mask", "bias"):
        if data.draw(st.booleans(), name):
            last = data.draw(own, name)
            o[name] = draw(rng, dtype, *(part(name, last) if len(last) == 2 else last))
    if "mask" in o:
        o["mask"] = o["mask"] > -0.5
    check(dtype, o)
