"""Shapes, strides, sizes, masks and out=: whatever the layout, the same numbers."""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import accuracy as acc
from tests.reference import hopfield as ref

SIZES = [0, 1, 7, 191, 192, 193, 385]
WIDTHS = [1, 7, 16, 33, 64, 100, 128, 200, 257]


def check(dtype, out, q, x, beta, v=None, mask=None):
    # float64 is judged in float64 here, which doubles the rounding: the accuracy sweep judges it in long double
    assert isinstance(out, np.ndarray) and out.dtype == dtype
    q, x, beta, v = (None if a is None else np.asarray(a, np.float64) for a in (q, x, beta, v))
    q = ref.spread(q, x, beta, v, mask)
    expected = ref.step(q, x, beta, v, mask)
    assert out.shape == expected.shape
    unit = acc.read_unit(dtype, q, x, beta, v, mask)[..., None]
    assert (np.abs(out - expected) <= 2 * acc.C_READ * unit).all()


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("d", WIDTHS)
def test_every_size(rng, dtype, d):
    """Sizes around what kernels tile by: n and N of 0, 1, 7, 191, 192, 193, 385."""
    beta = 1 / np.sqrt(d)
    for n in SIZES:
        q = draw(rng, dtype, n, d)
        for N in SIZES:
            x = draw(rng, dtype, N, d)
            check(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)


@pytest.mark.parametrize("e", WIDTHS)
def test_every_width_of_values(rng, dtype, e):
    for n, N, d in ((1, 193, 16), (7, 385, 33), (193, 7, 64), (0, 5, 3), (5, 0, 3)):
        q, x, v = draw(rng, dtype, n, d), draw(rng, dtype, N, d), draw(rng, dtype, N, e)
        check(dtype, rc.hopfield.retrieve(q, x, beta=0.2, values=v), q, x, 0.2, v)


@pytest.mark.parametrize("d", [1, 33, 64])
def test_energy_and_info_of_every_size(rng, dtype, d):
    beta = 1 / np.sqrt(d)
    for n in (0, 1, 7, 193):
        for N in SIZES:
            q, x = draw(rng, dtype, n, d), draw(rng, dtype, N, d)
            energy = rc.hopfield.energy(q, x, beta=beta)
            info = rc.hopfield.retrieve(q, x, beta=beta, values=x, return_info=True)
            assert info.energy.shape == info.lse.shape == info.steps.shape == info.converged.shape == (n,)
            wide = [a.astype(np.float64) for a in (q, x)]
            unit = 2 * acc.C_ENERGY * acc.energy_unit(dtype, *wide, beta)
            expected, lse = ref.energy(*wide, beta), ref.lse(*wide, beta)
            if N == 0:
                np.testing.assert_array_equal(energy, expected)
                np.testing.assert_array_equal(info.lse, lse)
            else:
                for got, truth in ((energy, expected), (info.energy, expected), (info.lse, lse)):
                    assert got.dtype == dtype and (np.abs(got - truth) <= unit).all()


@pytest.mark.parametrize("n, N, d", [(30_000, 20, 8), (3, 60_000, 8), (2000, 2000, 16)])
def test_long_ones(rng, dtype, n, N, d):
    q, x = draw(rng, dtype, n, d), draw(rng, dtype, N, d)
    out = rc.hopfield.retrieve(q, x, beta=0.5)
    some = rng.integers(0, n, 50)
    check(dtype, out[some], q[some], x, 0.5)


LEADS = [  # leading axes of state, patterns, values; all broadcast as in np.matmul
    ((), (), ()), ((3,), (3,), (3,)), ((3,), (), ()), ((), (3,), ()), ((), (), (3,)), ((2, 3), (3,), (1,)), ((2, 1), (3,), (2, 3)),
    ((1, 1), (2, 3), ()), ((2, 3), (2, 1), (3,)), ((5, 1, 3), (2, 1), (1, 1, 1)), ((0,), (1,), ()), ((2, 0), (1,), (2, 1)), ((), (0, 3), (1,)),
]  # fmt: skip


@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_leading_axes_broadcast(rng, dtype, leads):
    a, b, c = leads
    q, x, v = draw(rng, dtype, *a, 5, 6), draw(rng, dtype, *b, 9, 6), draw(rng, dtype, *c, 9, 4)
    out = rc.hopfield.retrieve(q, x, beta=0.7, values=v)
    assert out.shape == (*np.broadcast_shapes(a, b, c), 5, 4)
    check(dtype, out, q, x, 0.7, v)
    out = rc.hopfield.retrieve(q, x, beta=0.7)
    assert out.shape == np.matmul(q, np.swapaxes(x, -1, -2)).shape[:-1] + (6,)
    check(dtype, out, q, x, 0.7)
    assert rc.hopfield.energy(q, x, beta=0.7).shape == out.shape[:-1]
    info = rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=2, return_info=True)
    rows = (*np.broadcast_shapes(a, b, c), 5)
    assert info.energy.shape == info.lse.shape == info.steps.shape == info.converged.shape == rows


def test_many_small_problems(rng, dtype):
    q, x = draw(rng, dtype, 700, 2, 3), draw(rng, dtype, 700, 4, 3)
    beta = rng.uniform(0.1, 3, 700).astype(dtype)
    check(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)


def layouts(a):
    """The same numbers in every layout NumPy makes."""
    big = np.zeros(tuple(3 * s + 2 for s in a.shape), a.dtype)
    spread = big[tuple(slice(1, 1 + 3 * s, 3) for s in a.shape)]
    spread[...] = a
    gaps = np.zeros((*a.shape[:-2], 2 * a.shape[-2], a.shape[-1] + 3), a.dtype)[..., ::2, : a.shape[-1]]
    gaps[...] = a
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape) if a.nbytes else a
    if a.nbytes:
        raw[...] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    return {
        "C": a, "Fortran": np.asfortranarray(a), "reversed rows": a[..., ::-1, :].copy()[..., ::-1, :],
        "reversed columns": a[..., ::-1].copy()[..., ::-1], "every third": spread, "gaps between rows": gaps, "not aligned": raw,
        "read-only": frozen, "reversed all": a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        "batch last": np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    }  # fmt: skip


LAYOUTS = list(layouts(np.zeros((1, 1, 1))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(rng, dtype, same_bits, layout):
    q, x, v = draw(rng, dtype, 2, 37, 21), draw(rng, dtype, 2, 70, 21), draw(rng, dtype, 2, 70, 5)
    mask, beta = rng.random((2, 37, 70)) < 0.7, np.array([0.3, 0.6], dtype)
    plain = rc.hopfield.retrieve(q, x, beta=beta, values=v, steps=2, mask=mask)
    energy = rc.hopfield.energy(q, x, beta=beta, mask=mask)
    a, b, c, m = (layouts(o)[layout] for o in (q, x, v, mask))
    same_bits(rc.hopfield.retrieve(a, b, beta=beta, values=c, steps=2, mask=m), plain)
    same_bits(rc.hopfield.energy(a, b, beta=beta, mask=m), energy)
    same_bits(rc.hopfield.retrieve(a, x, beta=beta, values=v, steps=2, mask=mask), plain)
    same_bits(rc.hopfield.retrieve(q, b, beta=beta, values=v, steps=2, mask=mask), plain)
    same_bits(rc.hopfield.retrieve(q, x, beta=beta[::-1].copy()[::-1], values=c, steps=2, mask=mask), plain)
    out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=beta, values=v, mask=mask)
    _, strided = rc.vjp(rc.hopfield.retrieve, a, b, beta=beta, values=c, mask=m)
    u = draw(rng, dtype, *out.shape)
    same_bits(tuple(map(np.asarray, pullback(u)))[0], np.asarray(strided(layouts(u)[layout]).state))


def test_stretched_axes_are_not_copies(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 5, 6), draw(rng, dtype, 9, 6)
    plain = rc.hopfield.retrieve(q, x, beta=0.7)
    out = rc.hopfield.retrieve(np.broadcast_to(q, (4, 5, 6)), np.broadcast_to(x, (4, 9, 6)), beta=0.7)
    for o in out:
        same_bits(o, plain)
    row = np.broadcast_to(q[:1], (5, 6))
    same_bits(rc.hopfield.retrieve(row, x, beta=0.7), np.tile(plain[:1], (5, 1)))
    column = np.broadcast_to(np.asarray(q[:, :1]), (5, 6))
    check(dtype, rc.hopfield.retrieve(column, x, beta=0.7), column, x, 0.7)


def test_a_foreign_byte_order_is_right_or_refused(rng, dtype):
    q, x = draw(rng, dtype, 5, 6), draw(rng, dtype, 9, 6)
    swapped = q.astype(q.dtype.newbyteorder())
    try:
        out = rc.hopfield.retrieve(swapped, x, beta=0.7)
    except TypeError as error:
        assert "state" in str(error)
    else:
        check(dtype, out.astype(dtype), q, x, 0.7)


def test_the_result_is_fresh_and_contiguous(rng, dtype):
    q, x = draw(rng, dtype, 5, 6), draw(rng, dtype, 9, 6)
    for operand in (q, np.asfortranarray(q), q[::-1]):
        out = rc.hopfield.retrieve(operand, x, beta=0.7)
        assert out.flags.c_contiguous and out.flags.writeable and out.flags.aligned
        assert not np.shares_memory(out, operand) and not np.shares_memory(out, x)


# -------------------------------------------------------------------------------------------------------- masks

MASKS = [
    (9,),
    (1,),
    (1, 9),
    (5, 1),
    (5, 9),
    (3, 1, 9),
    (3, 5, 9),
    (2, 1, 5, 9),
    (2, 3, 5, 9),
    (1, 1, 1, 9),
    (1, 3, 5, 1),
]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_mask_shapes(rng, dtype, shape):
    q, x, v = draw(rng, dtype, 2, 3, 5, 6), draw(rng, dtype, 3, 9, 6), draw(rng, dtype, 9, 4)
    mask = rng.random(shape) < 0.6
    check(dtype, rc.hopfield.retrieve(q, x, beta=0.7, mask=mask), q, x, 0.7, None, mask)
    check(dtype, rc.hopfield.retrieve(q, x, beta=0.7, values=v, mask=mask), q, x, 0.7, v, mask)


def test_a_mask_may_be_a_list(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 2, 6), draw(rng, dtype, 3, 6)
    listed = rc.hopfield.retrieve(q, x, beta=0.7, mask=[True, False, True])
    same_bits(listed, rc.hopfield.retrieve(q, x, beta=0.7, mask=np.array([True, False, True])))


@pytest.mark.parametrize("N", [191, 192, 193, 1000])
def test_masks_across_blocks(rng, dtype, N):
    """Whole stretches of patterns that a row does not admit, at the start, the middle and the end."""
    q, x = draw(rng, dtype, 8, 16), draw(rng, dtype, N, 16)
    mask = np.ones((8, N), bool)
    mask[0, : N // 2], mask[1, N // 2 :], mask[2, N // 4 : 3 * N // 4], mask[3, :-1], mask[4, 1:] = (False,) * 5
    mask[5] = False
    check(dtype, rc.hopfield.retrieve(q, x, beta=0.7, mask=mask), q, x, 0.7, None, mask)
    for row in mask:
        check(dtype, rc.hopfield.retrieve(q, x, beta=0.7, mask=row), q, x, 0.7, None, row)


# ---------------------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("e", [None, 4])
@pytest.mark.parametrize("steps", [1, 3, None])
def test_out(rng, dtype, same_bits, e, steps):
    q, x = draw(rng, dtype, 3, 5, 6), draw(rng, dtype, 3, 9, 6)
    v = None if e is None else draw(rng, dtype, 3, 9, e)
    plain = rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=steps, return_info=True)
    out = np.full(plain.state.shape, np.nan, dtype)
    assert rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=steps, out=out) is out
    same_bits(out, plain.state)
    out[...] = np.nan
    info = rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=steps, out=out, return_info=True)
    assert info.state is out
    same_bits(tuple(info)[1:][0], plain.energy)
    same_bits(out, plain.state)


def test_out_with_gaps_touches_nothing_else(rng, dtype, same_bits):
    q, x = draw(rng, dtype, 5, 6), draw(rng, dtype, 9, 6)
    plain = rc.hopfield.retrieve(q, x, beta=0.7)
    wide = np.full((13, 11), 7, dtype)
    out = wide[2:12:2, 1:7]
    assert rc.hopfield.retrieve(q, x, beta=0.7, out=out) is out
    same_bits(out, plain)
    out[...] = 7
    assert (wide == 7).all()


@pytest.mark.parametrize("kind", ["Fortran", "every other column", "reversed rows", "reversed columns", "not aligned"])
def test_out_in_an_unusual_layout_is_right_or_refused(rng, dtype, same_bits, kind):
    q, x = draw(rng, dtype, 5, 6), draw(rng, dtype, 9, 6)
    plain = rc.hopfield.retrieve(q, x, beta=0.7)
    out = {
        "Fortran": np.zeros((5, 6), dtype, order="F"), "every other column": np.zeros((5, 12), dtype)[:, ::2],
        "reversed rows": np.zeros((5, 6), dtype)[::-1], "reversed columns": np.zeros((5, 6), dtype)[:, ::-1],
        "not aligned": np.zeros(1 + q.nbytes, np.uint8)[1:].view(dtype).reshape(5, 6),
    }[kind]  # fmt: skip
    try:
        assert rc.hopfield.retrieve(q, x, beta=0.7, out=out) is out
    except ValueError as error:
        assert "hopfield.retrieve" in str(error) and "out" in str(error)
    else:
        same_bits(out, plain)


@pytest.mark.parametrize("which", ["state", "patterns", "values", "shifted state", "half of the patterns"])
@pytest.mark.parametrize("steps", [1, 3])
def test_out_over_an_operand_is_right_or_refused(rng, dtype, same_bits, which, steps):
    """Never silently wrong: the result of separate memory, or a sentence about out."""
    buffer = draw(rng, dtype, 300, 16)
    q, x, v = buffer[:100].copy(), buffer[100:200].copy(), buffer[200:].copy()
    plain = rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=steps)
    room = np.concatenate([q, x, v])
    q, x, v = room[:100], room[100:200], room[200:]
    out = {"state": q, "patterns": x, "values": v, "shifted state": room[3:103], "half of the patterns": room[150:250]}[
        which
    ]
    try:
        rc.hopfield.retrieve(q, x, beta=0.7, values=v, steps=steps, out=out)
    except ValueError as error:
        assert "hopfield.retrieve" in str(error) and "out" in str(error)
        same_bits(room, buffer)
    else:
        same_bits(out, plain)


def test_out_over_a_broadcast_state_is_right_or_refused(rng, dtype, same_bits):
    """In place with several heads per state: every head must read the state as it was."""
    room = draw(rng, dtype, 3, 50, 8)
    x = draw(rng, dtype, 3, 20, 8)
    plain = rc.hopfield.retrieve(room[1].copy(), x, beta=0.7)
    try:
        rc.hopfield.retrieve(room[1], x, beta=0.7, out=room)
    except ValueError as error:
        assert "out" in str(error)
    else:
        same_bits(room, plain)


# ---------------------------------------------------------------------------------------------------- at random


@given(st.data())
def test_shapes_at_random(data):
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    rng = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3), "lead"))

    def part(name):
        keep = data.draw(st.integers(0, len(lead)), name)
        return tuple(s if data.draw(st.booleans(), name) else 1 for s in lead[len(lead) - keep :])

    n, N, d = (data.draw(st.integers(0 if k < 2 else 1, 30), "nNd"[k]) for k in range(3))
    q, x = draw(rng, dtype, *part("state"), n, d), draw(rng, dtype, *part("patterns"), N, d)
    v = (
        draw(rng, dtype, *part("values"), N, data.draw(st.integers(1, 9), "e"))
        if data.draw(st.booleans(), "values?")
        else None
    )
    full = np.broadcast_shapes(q.shape[:-2], x.shape[:-2], () if v is None else v.shape[:-2])
    beta = rng.uniform(0.1, 3, full[len(full) - data.draw(st.integers(0, len(full)), "beta") :]).astype(dtype)
    mask = rng.random((*full, n, N)) < 0.6 if data.draw(st.booleans(), "mask?") else None
    if mask is not None and data.draw(st.booleans(), "shared mask"):
        mask = rng.random(N) < 0.6
    check(dtype, rc.hopfield.retrieve(q, x, beta=beta, values=v, mask=mask), q, x, beta, v, mask)
