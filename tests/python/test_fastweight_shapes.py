"""Shapes, strides, sizes and out= of fast weights: whatever the layout, the same numbers."""

import itertools

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import fastweight_checks as fw

WIDTHS = [1, 7, 64, 96, 128, 256]
LENGTHS = [0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 130]


def plain(op, rng, dtype, T, K, V, batch=()):
    """Problems of every width that stay well conditioned: queries of length 1 or so, positive denominators."""
    o = fw.problem(op, rng, dtype, T, K, V, batch, **({"top": 2.0} if op == "delta_rule" else {}))
    return o | {"query": fw.unit(o["query"])}


# ---------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("K", WIDTHS)
def test_every_width(rng, dtype, K, V):
    turn = itertools.count(WIDTHS.index(K) + WIDTHS.index(V))
    for op in fw.OPS:
        for T in (1, 30, 70) if K * V < 4097 else (30,):
            o = plain(op, rng, dtype, T, K, V) | {"decay": None}
            more = ({}, {"decay": fw.decays(rng, dtype, T)}, {"log_decay": -rng.exponential(0.2, (T, K)).astype(dtype)})
            fw.check(op, o | more[next(turn) % 3], dtype)


@pytest.mark.parametrize(
    "K, V", [(1, 1), (1, 64), (64, 1), (7, 96), (96, 7), (64, 64), (128, 96), (256, 128), (33, 17)]
)
def test_gradients_of_every_width(rng, dtype, K, V):
    turn = itertools.count(K)
    for op in fw.OPS:
        for T in (1, 40):
            o = plain(op, rng, dtype, T, K, V) | {"decay": None}
            more = ({}, {"decay": fw.decays(rng, dtype, T)}, {"log_decay": -rng.exponential(0.2, (T, K)).astype(dtype)})
            fw.check_gradients(op, o | more[next(turn) % 3], dtype, rng)


@pytest.mark.parametrize("op", fw.OPS)
def test_every_length(rng, dtype, op):
    for T in LENGTHS:
        o = plain(op, rng, dtype, T, 10, 9)
        out = fw.check(op, o, dtype)
        assert out.shape == (T, 9)
        _, state = fw.call(op, plain(op, rng, dtype, 5, 10, 9), return_state=True)
        fw.check(op, o | {"state": state}, dtype)


@pytest.mark.parametrize("op", fw.OPS)
def test_no_time_at_all_keeps_the_state(rng, dtype, op, same_bits):
    _, state = fw.call(op, plain(op, rng, dtype, 5, 6, 4, (2,)), return_state=True)
    o = plain(op, rng, dtype, 0, 6, 4, (2,))
    out, last = fw.call(op, o, state=state, return_state=True)
    assert out.shape == (2, 0, 4)
    same_bits(last, state)
    _, none = fw.call(op, o, return_state=True)
    assert none.shape == state.shape and (none == 0).all()


@pytest.mark.parametrize("width", ["K", "V"])
@pytest.mark.parametrize("op", fw.OPS)
def test_no_width_at_all(rng, dtype, op, width):
    o = fw.problem(op, rng, dtype, 4, **{width: 0})
    out = fw.call(op, o)
    assert out.shape == (4, 0 if width == "V" else 5) and (out == 0).all()


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_features_wider_than_keys(rng, dtype, nu):
    for K in (7, 16, 64):
        o = plain("linear_attention", rng, dtype, 40, K, 20) | {"feature_map": ("dpfp", nu)}
        fw.check("linear_attention", o, dtype)
        o = plain("delta_rule", rng, dtype, 40, K, 20) | {"feature_map": ("dpfp", nu), "normalize": "sum"}
        _, state = fw.call("delta_rule", o, return_state=True)
        assert state.shape == (2 * nu * K, 20)
        fw.check("delta_rule", o | {"decay": fw.decays(rng, dtype, 40, 2 * nu * K)}, dtype)


# -------------------------------------------------------------------------------------------------- leading axes

LEADS = [  # of query, key, value and of what has no width
    ((), (), (), ()), ((3,), (3,), (3,), (3,)), ((3,), (), (), ()), ((), (3,), (), ()), ((), (), (3,), ()), ((), (), (), (3,)),
    ((2, 3), (3,), (1,), (2, 1)), ((2, 1), (3,), (2, 3), (3,)), ((1, 1), (2, 3), (), (2, 3)), ((5, 1, 3), (2, 1), (1, 1, 1), (2, 3)),
    ((0,), (1,), (), ()), ((2, 0), (1,), (2, 1), (1, 1)), ((), (0, 3), (1,), (3,)),
]  # fmt: skip


def spread(rng, dtype, op, leads, T=11, K=6, V=5):
    q, k, v, b = leads
    o = {
        "query": fw.draw(rng, dtype, *q, T, K),
        "key": fw.unit(fw.draw(rng, dtype, *k, T, K)),
        "value": fw.draw(rng, dtype, *v, T, V),
    }
    if op == "linear_attention":
        return o | {"feature_map": "elu1", "normalize": True}
    if op == "delta_rule":
        return o | {"beta": rng.uniform(0, 2, (*b, T)).astype(dtype)}
    return o | {"a": fw.unit(fw.draw(rng, dtype, *b, T, K)) / 2, "b": fw.unit(fw.draw(rng, dtype, *k, T, K))}


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_leading_axes_broadcast(rng, dtype, op, leads):
    o = spread(rng, dtype, op, leads)
    full = np.broadcast_shapes(*leads[: 4 if op != "linear_attention" else 3])
    assert fw.check(op, o, dtype).shape == (*full, 11, 5)
    fw.check(op, o | {"decay": fw.decays(rng, dtype, 11)}, dtype)
    fw.check(op, o | {"decay": fw.decays(rng, dtype, *leads[3], 11, 6)}, dtype)
    fw.check(op, o | {"log_decay": -rng.exponential(1, (*full, 11)).astype(dtype)}, dtype)
    fw.check_gradients(op, o | {"decay": fw.decays(rng, dtype, *leads[1], 11)}, dtype, rng)
    _, state = fw.call(op, spread(rng, dtype, op, ((), (), (), ())), return_state=True)
    fw.check(op, o | {"state": state}, dtype)


@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_leading_axes_of_the_full_sum(rng, dtype, leads):
    o = spread(rng, dtype, "linear_attention", leads) | {"causal": False}
    fw.check("linear_attention", o, dtype)
    fw.check("linear_attention", o | {"query": o["query"][..., :4, :]}, dtype)
    fw.check_gradients("linear_attention", o, dtype, rng)


def test_many_small_problems(rng, dtype):
    for op in fw.OPS:
        fw.check(op, fw.problem(op, rng, dtype, 3, 2, 2, (500,)), dtype)


# ------------------------------------------------------------------------------------------------------- strides


def layouts(a):
    """The same numbers in every layout NumPy makes."""
    big = np.zeros(tuple(3 * s + 2 for s in a.shape), a.dtype)
    every_third = big[tuple(slice(1, 1 + 3 * s, 3) for s in a.shape)]
    every_third[...] = a
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    last = tuple([slice(None)] * (a.ndim - 1) + [slice(None, None, -1)])
    return {
        "Fortran": np.asfortranarray(a), "reversed last axis": a[last].copy()[last], "reversed first axis": a[::-1].copy()[::-1],
        "every third": every_third, "not aligned": raw, "read-only": frozen, "other byte order": a.astype(a.dtype.newbyteorder()),
        "batch last": np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0), "heads inside": np.swapaxes(np.swapaxes(a, 0, 1).copy(), 0, 1),
    }  # fmt: skip


@pytest.mark.parametrize("layout", list(layouts(np.zeros((1, 1, 1)))))
@pytest.mark.parametrize("op", fw.OPS)
def test_strides(rng, dtype, op, layout, same_bits):
    o = fw.problem(op, rng, dtype, 37, 21, 10, (4,)) | {"decay": fw.decays(rng, dtype, 4, 37, 21)}
    arrays = {k: layouts(a)[layout] for k, a in o.items() if isinstance(a, np.ndarray)}
    out = fw.call(op, o)
    for name, a in arrays.items():
        same_bits(fw.call(op, o | {name: a}), out)
    same_bits(fw.call(op, o | arrays), out)
    _, pullback = fw.vjp(op, o)
    _, strided = fw.vjp(op, o | arrays)
    u = fw.draw(rng, dtype, *out.shape)
    same_bits(strided(layouts(u)[layout]), pullback(u))
    _, state = fw.call(op, o, return_state=True)
    same_bits(fw.call(op, o, state=layouts(state)[layout]), fw.call(op, o, state=state))


@pytest.mark.parametrize("op", fw.OPS)
def test_stretched_axes_are_not_copies(rng, dtype, op, same_bits):
    o = fw.problem(op, rng, dtype, 30)
    wide = {k: np.broadcast_to(a, (4, *a.shape)) if isinstance(a, np.ndarray) else a for k, a in o.items()}
    for out in fw.call(op, wide):
        same_bits(out, fw.call(op, o))


@pytest.mark.parametrize("op", fw.OPS)
def test_the_result_is_fresh_and_contiguous(rng, dtype, op):
    o = fw.problem(op, rng, dtype)
    out, state = fw.call(op, o, return_state=True)
    _, again = fw.call(op, o, state=state, return_state=True)
    made = [out, state, again]
    for a, b in itertools.combinations(made, 2):
        assert not np.shares_memory(a, b)
    for a in made:
        assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
        assert not any(np.shares_memory(a, b) for b in o.values() if isinstance(b, np.ndarray))


# ----------------------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("op", fw.OPS)
def test_out(rng, dtype, op, same_bits):
    o = fw.problem(op, rng, dtype, 30, batch=(2,))
    plain = fw.call(op, o)
    out = np.full(plain.shape, np.nan, dtype)
    assert fw.call(op, o, out=out) is out
    same_bits(out, plain)
    out[...] = np.nan
    both = fw.call(op, o, out=out, return_state=True)
    assert both.out is out
    same_bits(out, plain)
    wide = np.full((2, 62, 9), 7, dtype)
    gaps = wide[:, 1:61:2, 2:7]
    fw.call(op, o, out=gaps)
    same_bits(gaps, plain)
    gaps[...] = 7
    assert (wide == 7).all()


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("T", [0, 1, 30, 70])
def test_out_state(rng, dtype, op, T, same_bits):
    """The last state in a caller's array, which may be that of the first."""
    first, o = fw.problem(op, rng, dtype, 5, batch=(2,)), fw.problem(op, rng, dtype, T, batch=(2,))
    _, state = fw.call(op, first, return_state=True)
    before = state.copy()
    plain, last = fw.call(op, o, state=state, return_state=True)
    room = np.full(last.shape, np.nan, dtype)
    both = fw.call(op, o, state=state, return_state=True, out_state=room)
    assert both.state is room
    same_bits(both.out, plain)
    same_bits(room, last)
    same_bits(state, before)
    room[...] = np.nan
    fw.call(op, o, state=state, out_state=room)
    same_bits(room, last)
    same_bits(fw.call(op, o, state=state, out_state=state), plain)
    same_bits(state, last)


@pytest.mark.parametrize("op", fw.OPS)
def test_out_state_that_is_wrong(rng, op):
    o = fw.problem(op, rng, np.float64, 5)
    _, state = fw.call(op, o, return_state=True)
    frozen = state.copy()
    frozen.flags.writeable = False
    for bad, kind in (
        (np.zeros((9, 9)), ValueError), (state.astype(np.float32), TypeError), ([[1.0]], TypeError), (frozen, ValueError),
        (o["value"][:, :1], ValueError),
    ):  # fmt: skip
        with pytest.raises(kind, match=rf"fastweight\.{op}: .*\bout_state\b"):
            fw.call(op, o, out_state=bad)


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("kind", ["Fortran", "every other column", "reversed rows", "reversed columns", "not aligned"])
def test_out_in_an_unusual_layout_is_right_or_refused(rng, dtype, op, same_bits, kind):
    o = fw.problem(op, rng, dtype, 5, 6, 4)
    plain = fw.call(op, o)
    out = {
        "Fortran": np.zeros((5, 4), dtype, order="F"), "every other column": np.zeros((5, 8), dtype)[:, ::2],
        "reversed rows": np.zeros((5, 4), dtype)[::-1], "reversed columns": np.zeros((5, 4), dtype)[:, ::-1],
        "not aligned": np.zeros(1 + plain.nbytes, np.uint8)[1:].view(dtype).reshape(5, 4),
    }[kind]  # fmt: skip
    try:
        assert fw.call(op, o, out=out) is out
    except ValueError as error:
        assert f"fastweight.{op}" in str(error) and "out" in str(error)
    else:
        same_bits(out, plain)


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_out_over_an_operand_is_right_or_refused(rng, dtype, op, name, same_bits):
    o = fw.problem(op, rng, dtype, 30, 5, 5)
    plain, before = fw.call(op, o), o[name].copy()
    try:
        fw.call(op, o, out=o[name])
    except ValueError as error:
        assert f"fastweight.{op}" in str(error) and "out" in str(error)
        same_bits(o[name], before)
    else:
        same_bits(o[name], plain)


# ------------------------------------------------------------------------------------------------------ at random


@given(st.data())
def test_shapes_at_random(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    op = data.draw(st.sampled_from(fw.OPS), "op")
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3), "lead"))

    def some(name):
        """Some of the leading axes, each stretched or not."""
        keep = data.draw(st.integers(0, len(lead)), name)
        return tuple(s if data.draw(st.booleans(), name) else 1 for s in lead[len(lead) - keep :])

    T = data.draw(st.integers(0, 90), "T")
    K, V = (data.draw(st.integers(1, 30), name) for name in "KV")
    o = spread(rng, dtype, op, (lead, some("key"), some("value"), some("rest")), T, K, V)
    form = data.draw(st.sampled_from(["none", "per head", "per channel"]), "decay")
    if form != "none":
        own = (T,) if form == "per head" else (T, K)
        rate = rng.exponential(data.draw(st.sampled_from([0.01, 1, 20]), "strength"), own).astype(dtype)
        o |= {"log_decay": -rate}
    if data.draw(st.booleans(), "chunk"):
        o |= {"chunk": data.draw(st.integers(1, 100), "chunk")}
    fw.check(op, o, dtype)
    fw.check_gradients(op, o, dtype, rng)


def test_a_tensor_is_an_array(rng):
    torch = pytest.importorskip("torch")
    o = fw.delta(rng, np.float32, 9)
    tensors = {k: torch.from_numpy(a) for k, a in o.items()}
    np.testing.assert_array_equal(np.asarray(rc.fastweight.delta_rule(**tensors)), fw.call("delta_rule", o))
