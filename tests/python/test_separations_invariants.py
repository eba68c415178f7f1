"""What must hold for every correct implementation of a separation: rows, threads and hidden patterns that change no bit,
weights that are what their definition says they are, symmetries, an energy that never rises."""

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
COUNTS = [1, 2, 3, 7]


def weights(z, separation, dtype, **more):
    """The weights themselves: values that are the unit vectors."""
    key, value = np.zeros((z.shape[1], 1), dtype), np.eye(z.shape[1], dtype=dtype)
    return rc.attention.attend(
        np.zeros((len(z), 1), dtype), key, value, bias=z.astype(dtype), separation=separation, **more
    )


def scores(rng, dtype, n=40, m=60):
    """Of several sizes: supports of all, of some, of one."""
    return (rng.standard_normal((n, m)) * np.resize([1e-4, 0.03, 0.3, 3, 100], n)[:, None]).astype(dtype)


def both(o, separation, **more):
    return rc.attention.attend(**o | more, separation=separation, return_lse=True)


# ------------------------------------------------------------- a row never depends on the rows beside it: bitwise


@each
@pytest.mark.parametrize("size", [(2, 1, 1, 1), (9, 7, 3, 2), (50, 49, 16, 16), (65, 193, 16, 33), (130, 1200, 8, 8), (30, 5000, 16, 8)], ids=str)  # fmt: skip
def test_a_row_alone_is_the_row_in_a_batch(rng, dtype, same_bits, separation, size):
    n, m = size[:2]
    if sep.PARAMETERS[sep.parse(separation)[0]] == "k":
        separation = (separation[0], min(separation[1], m))
    for scale in (1e-5, 0.4):
        o = check.operands(rng, dtype, *size, scale=scale)
        together = both(o, separation)
        for k in sorted({0, 1, 23, n // 2, n - 1} & set(range(n))):
            alone = both(o, separation, query=o["query"][k : k + 1])
            same_bits(alone.out[0], together.out[k])
            same_bits(alone.lse[0], together.lse[k])
        some = slice(n // 3, n // 3 + 5)
        same_bits(both(o, separation, query=o["query"][some]).out, together.out[some])
        same_bits(both(o, separation, query=o["query"][::-1].copy()).out[::-1], together.out)


@each
def test_a_row_alone_with_masks_and_biases(rng, dtype, same_bits, separation):
    n, m = 60, 193
    mask, bias = rng.random((n, m)) < 0.5, rng.standard_normal((n, m)).astype(dtype)
    mask[3] = False
    o = check.operands(rng, dtype, n, m, scale=0.3)
    for more in ({"mask": mask}, {"bias": bias}, {"mask": mask, "bias": bias}):
        together = both(o, separation, **more)
        for k in (0, 3, 41, 59):
            alone = both(o, separation, query=o["query"][k : k + 1], **{name: a[k : k + 1] for name, a in more.items()})
            same_bits(alone.out[0], together.out[k])
            same_bits(alone.lse[0], together.lse[k])


@each
def test_retrieval_of_a_row_alone(rng, dtype, same_bits, separation):
    h = check.memory(rng, dtype, 30, 200, 12, beta=0.1, steps=3)
    together = rc.hopfield.retrieve(**h, separation=separation, return_info=True)
    rest = (
        rc.hopfield.retrieve(**h | {"steps": None}, separation=separation, return_info=True)
        if separation != "linear"
        else None
    )
    for k in (0, 17, 29):
        one = h | {"state": h["state"][k : k + 1]}
        for many, steps in ((together, 3), (rest, None)):
            if many is not None:
                alone = rc.hopfield.retrieve(**one | {"steps": steps}, separation=separation, return_info=True)
                for a, b in zip(alone, many, strict=True):
                    same_bits(a[0], b[k])


# ------------------------------------------------------------------------------- the same bits for any threads


def everything(o, h, separation):
    """Forward and backward results of every kind, as a flat list of arrays."""
    u, dtype = np.random.default_rng(0), h["state"].dtype
    found = [*both(o, separation), *rc.hopfield.retrieve(**h, steps=2, separation=separation, return_info=True)]
    for op, given in (
        (rc.attention.attend, o), (rc.attention.attend, o | {"causal": True}), (rc.hopfield.energy, h), (rc.hopfield.retrieve, h | {"steps": 2}),
    ):  # fmt: skip
        out, pullback = rc.vjp(op, **given, separation=separation)
        found += [out, *pullback(u.standard_normal(out.shape).astype(dtype))]
    return found


@each
@pytest.mark.parametrize("n, m, d", [(1, 5000, 8), (5, 3000, 16), (200, 300, 8), (500, 50, 4), (0, 5, 4), (1, 3, 1)])
def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, separation, n, m, d):
    o, h = check.operands(rng, dtype, n, m, d, scale=0.2), check.memory(rng, dtype, n, m, d, beta=0.02)
    rc.set_num_threads(1)
    one = everything(o, h, separation)
    for count in COUNTS[1:]:
        rc.set_num_threads(count)
        for a, b in zip(everything(o, h, separation), one, strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("separation", SOME, ids=str)
def test_the_same_bits_at_rest(rng, dtype, same_bits, separation):
    if separation == "linear":
        return
    h = check.memory(rng, dtype, 30, 20, 5, beta=0.3)
    found = []
    for count in COUNTS:
        rc.set_num_threads(count)
        out, pullback = rc.vjp(rc.hopfield.retrieve, **h, separation=separation, steps=None)
        found.append([out, *pullback(np.ones_like(out))])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


# --------------------------------------------------------------------------------------- masked patterns do not exist


@pytest.mark.parametrize("separation", EVERY, ids=str)
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("hide", ["mask", "bias", "dense"])
def test_what_is_hidden_from_all_may_hold_anything(rng, dtype, separation, junk, hide):
    for n, m in ((5, 11), (30, 500)):
        keep = rng.random(m) < 0.6
        keep[:5] = False, True, True, True, False
        o = check.operands(rng, dtype, n, m, scale=0.5)
        o["key"][~keep], o["value"][~keep] = junk, junk
        less = (
            check.operands(rng, dtype, n, m, scale=0.5)
            | {k: o[k][keep] for k in ("key", "value")}
            | {"query": o["query"]}
        )
        full = np.broadcast_to(keep, (n, m)) if hide == "dense" else keep
        o |= {"bias": np.where(keep, 0, -np.inf).astype(dtype)} if hide == "bias" else {"mask": full}
        got, bare = check.check_attend(rc, dtype, separation, o, judge=m < 100), both(less, separation)
        assert np.isfinite(got.out).all()
        x = att.pose(**check.widen(dtype, less))
        assert (np.abs(got.out - bare.out) <= 2 * check.read_bound(dtype, x, separation)).all()
        if hide != "bias":
            h = {"state": o["query"], "patterns": o["key"], "beta": 0.3, "mask": full}
            for steps in (1, 2):
                info = rc.hopfield.retrieve(**h, steps=steps, separation=separation, return_info=True)
                assert all(np.isfinite(a).all() for a in info)


# ------------------------------------------------------------------------------------------ what weights are


@pytest.mark.parametrize("separation", EVERY, ids=str)
def test_weights_sum_to_what_they_should(rng, dtype, separation):
    z = scores(rng, dtype)
    p = weights(z, separation, dtype)
    if separation == "linear":
        return np.testing.assert_array_equal(p, z)
    total = separation[1] if sep.parse(separation)[0] == "k_subset" else 1
    assert (p >= 0).all() and (p <= 1 + 8 * acc.eps(dtype)).all()
    # a row of weights may be off by what one weight is off, times how many there are
    wide = z.astype(acc.judge(dtype))
    unit = acc.C_READ * acc.eps(dtype) * (1 + np.abs(wide).max(-1))
    bound = sep.spread(separation, wide, unit).sum(-1) + unit
    return np.testing.assert_array_less(np.abs(p.astype(wide.dtype).sum(-1) - total), bound)


@pytest.mark.parametrize("separation", [s for s in OTHERS if s != "linear"], ids=str)
def test_supports(rng, dtype, separation):
    """Exactly the patterns that the definition weighs have weight, where no score is at a threshold."""
    z = scores(rng, dtype, n=100)
    wide = z.astype(acc.judge(dtype))
    room = 32 * acc.eps(dtype) * (np.abs(wide).max(-1) + sep.reach(separation, wide))
    clear = sep.gap(separation, wide) > room
    p, expected = weights(z, separation, dtype)[clear], sep.separate(separation, wide[clear]).p
    assert clear.sum() >= 60
    subnormal = (expected > 0) & (expected < np.finfo(dtype).tiny)  # may be 0 as well
    np.testing.assert_array_equal((p > 0) | subnormal, expected > 0)
    if separation == "hard":
        np.testing.assert_array_equal(p, expected)
    if separation == ("top_k_softmax", 3):
        assert ((p > 0).sum(-1) <= 3).all()
    if sep.parse(separation)[0] == "k_subset":
        np.testing.assert_array_equal(p == 1, expected.astype(dtype) == 1)


def test_supports_grow_from_one_to_all(rng, dtype):
    z = np.sort(rng.standard_normal((1, 300)), axis=-1)
    for separation in ("sparsemax", "entmax15", ("entmax", 1.3), ("normmax", 2), ("k_subset", 1)):
        sizes = [int((weights(z * scale, separation, dtype) > 0).sum()) for scale in (1e-6, 1e-2, 0.3, 3.0, 1e3, 1e6)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == 300 and sizes[-1] == 1
        p = weights(z * 0.3, separation, dtype)
        assert (np.diff(p) >= -4 * acc.eps(dtype)).all()  # the larger the score, the larger the weight


@each
def test_equal_scores(dtype, separation):
    """Equal patterns share; hard and top_k_softmax take the lowest indices, whatever the size of the memory."""
    name, parameter = sep.parse(separation)
    for m in (3, 8, 33, 500, 5000):
        for level in (0.0, -3.0, 1e6):
            o = {
                "query": np.ones((2, 1), dtype),
                "key": np.full((m, 1), level, dtype),
                "value": np.eye(m, dtype=dtype)[:, :6],
                "scale": 1.0,
            }
            out = rc.attention.attend(**o, separation=separation)
            width = min(m, 6)
            expected = np.full((2, width), (parameter if name == "k_subset" else 1) / m)
            if name == "linear":
                expected[:] = level
            if name in ("hard", "top_k_softmax"):
                taken = 1 if name == "hard" else parameter
                expected[:] = np.where(np.arange(width) < taken, 1 / taken, 0)
            np.testing.assert_allclose(out[:, :width], expected, rtol=256 * acc.eps(dtype), atol=8 * acc.eps(dtype))


@pytest.mark.parametrize("separation", ["hard", ("top_k_softmax", 1), ("top_k_softmax", 4)], ids=str)
@pytest.mark.parametrize("m", [20, 700, 3000])
def test_ties_go_to_the_lowest_index(rng, dtype, same_bits, separation, m):
    """Scores that are small whole numbers tie often; they are exact."""
    o = {
        "query": np.ones((30, 1), dtype),
        "key": np.zeros((m, 1), dtype),
        "value": rng.standard_normal((m, 3)).astype(dtype),
    }
    bias = rng.integers(-2, 3, (30, m)).astype(dtype)
    count = 1 if separation == "hard" else separation[1]
    p = rc.attention.attend(**o | {"value": np.eye(m, dtype=dtype)}, bias=bias, separation=separation)
    order = np.argsort(-bias, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(np.sort(order, axis=-1), [np.nonzero(row)[0] for row in p])
    if separation == ("top_k_softmax", 1):
        same_bits(p, rc.attention.attend(**o | {"value": np.eye(m, dtype=dtype)}, bias=bias, separation="hard"))


# -------------------------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("separation", EVERY, ids=str)
def test_the_order_of_patterns_does_not_matter(rng, dtype, separation):
    for scale in (1e-4, 0.5):
        o = check.operands(rng, dtype, 12, 300, scale=scale)
        order = rng.permutation(300)
        bias, mask = rng.standard_normal(300).astype(dtype), rng.random((12, 300)) < 0.7
        for more in ({}, {"mask": mask}, {"bias": bias}):
            moved = {k: a[..., order] for k, a in more.items()} | {k: o[k][order] for k in ("key", "value")}
            a, b = both(o, separation, **more), both(o, separation, **moved)
            x = att.pose(**check.widen(dtype, o | more, judge=False))
            assert (np.abs(a.out - b.out) <= 2 * check.read_bound(dtype, x, separation)).all()
            assert (np.abs(a.lse - b.lse) <= 2 * check.potential_bound(dtype, x, separation)).all()
    h = check.memory(rng, dtype, 12, 300, beta=0.2 if separation != "linear" else 0.01)
    x = separated.pose(**check.widen(dtype, h, judge=False))
    for given in ({}, {"patterns": h["patterns"][rng.permutation(300)]}):
        step = rc.hopfield.retrieve(**h | given, separation=separation)
        assert (
            np.abs(step - rc.hopfield.retrieve(**h, separation=separation))
            <= 2 * check.read_bound(dtype, x, separation)
        ).all()


@pytest.mark.parametrize("separation", [s for s in EVERY if s != "linear"], ids=str)
def test_a_common_shift_of_scores_changes_nothing(rng, dtype, separation):
    """Omega* rises by the shift times the sum of the weights."""
    o = check.operands(rng, dtype, 12, 200, scale=0.5, bias=np.linspace(-1, 1, 200).astype(dtype))
    moved = o | {"bias": o["bias"] + dtype(8)}
    a, b, x = both(o, separation), both(moved, separation), att.pose(**check.widen(dtype, moved, judge=False))
    total = separation[1] if sep.parse(separation)[0] == "k_subset" else 1
    assert (np.abs(a.out - b.out) <= 2 * check.read_bound(dtype, x, separation)).all()
    assert (np.abs(a.lse + dtype(8 * total) - b.lse) <= 3 * check.potential_bound(dtype, x, separation)).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [(("k_subset", 1), "sparsemax"), (("entmax", 2), "sparsemax"), (("entmax", 1.5), "entmax15"), (("top_k_softmax", 1), "hard"), (("top_k_softmax", 300), "softmax")],
    ids=str,
)  # fmt: skip
def test_two_names_of_one_separation(rng, dtype, one, other):
    for scale in (1e-4, 0.05, 0.5, 5.0):
        o = check.operands(rng, dtype, 12, 300, scale=scale)
        a, b, x = both(o, one), both(o, other), att.pose(**check.widen(dtype, o, judge=False))
        assert (np.abs(a.out - b.out) <= 2 * check.read_bound(dtype, x, other)).all()
        assert (np.abs(a.lse - b.lse) <= 2 * check.potential_bound(dtype, x, other)).all()


def test_top_k_softmax_is_attention_with_top_k(rng, dtype):
    o = check.operands(rng, dtype, 12, 300, scale=0.5)
    for k in (1, 4, 32):
        a, b = both(o, ("top_k_softmax", k)), rc.attention.attend(**o, top_k=k, return_lse=True)
        x = att.pose(**check.widen(dtype, o, judge=False))
        assert (np.abs(a.out - b.out) <= 2 * check.read_bound(dtype, x, ("top_k_softmax", k))).all()


def test_linear_is_a_product_of_matrices(rng, dtype):
    o = check.operands(rng, dtype, 12, 300, scale=0.5)
    q, k, v = (o[name].astype(acc.judge(dtype)) for name in ("query", "key", "value"))
    size = np.linalg.norm(q, axis=-1)[:, None] * np.linalg.norm(k, axis=-1) @ np.abs(v)
    out = rc.attention.attend(**o, separation="linear")
    assert (np.abs(out - q @ k.T @ v / 2) <= 4 * acc.C_READ * acc.eps(dtype) * size).all()


@each
def test_attention_is_hopfield_retrieval_of_values(rng, dtype, separation):
    o = check.operands(rng, dtype, 12, 200, scale=0.5)
    info = rc.hopfield.retrieve(
        o["query"], o["key"], beta=0.5, values=o["value"], separation=separation, return_info=True
    )
    a, x = both(o, separation), att.pose(**check.widen(dtype, o, judge=False))
    assert (np.abs(a.out - info.state) <= 2 * check.read_bound(dtype, x, separation)).all()
    assert (np.abs(a.lse - info.lse * dtype(0.5)) <= 3 * check.potential_bound(dtype, x, separation)).all()


@pytest.mark.parametrize("separation", check.NORMALISED, ids=str)
def test_the_result_lies_in_the_hull_of_the_values(rng, dtype, separation):
    for scale in (1e-4, 0.5, 50.0):
        o = check.operands(rng, dtype, 30, 60, scale=scale)
        out, room = (
            rc.attention.attend(**o, separation=separation),
            check.read_bound(dtype, att.pose(**check.widen(dtype, o)), separation),
        )
        assert (out >= o["value"].min(0) - room).all() and (out <= o["value"].max(0) + room).all()


# ------------------------------------------------------------------------------------------------------ energy


@pytest.mark.parametrize("separation", [s for s in EVERY if s != "linear"], ids=str)
@pytest.mark.parametrize("beta", [1e-3, 0.1, 0.5, 2.0, 30.0])
def test_energy_never_rises(rng, dtype, separation, beta):
    """Omega* is convex for all of them: a step minimises |q|^2 / 2 minus its tangent."""
    h = check.memory(rng, dtype, 20, 40, 8, beta=beta)
    before, x = rc.hopfield.energy(**h, separation=separation), separated.pose(**check.widen(dtype, h, judge=False))
    state = h["state"]
    for _ in range(6):
        state = rc.hopfield.retrieve(**h | {"state": state}, separation=separation)
        after = rc.hopfield.energy(**h | {"state": state}, separation=separation)
        y = separated.pose(**check.widen(dtype, h | {"state": state}, judge=False))
        room = sum(
            check.potential_bound(dtype, p, separation) / beta
            + acc.C_ENERGY * acc.eps(dtype) * ((p.query**2).sum(-1) + 30)
            for p in (x, y)
        )
        assert (after <= before + room).all()
        before, x = after, y
