"""Pointer, sampled and structured attention: values and gradients against the oracle, finite differences, statistics, invariants."""

import numpy as np
import pytest
import recollect as rc

from tests.reference import scores as ref
from tests.reference import separations as sep

at = rc.attention
ALL = ["softmax", "sparsemax", "entmax15", ("entmax", 1.3), ("normmax", 2.0), ("top_k_softmax", 2), "hard", "linear"]
TOL = {"float32": 2e-5, "float64": 1e-12}


def operands(rng, n=5, m=8, d=4, batch=(), dtype=np.float64):
    return rng.standard_normal((*batch, n, d)).astype(dtype), rng.standard_normal((*batch, m, d)).astype(dtype)


def additive(rng, d=4, units=3):
    arrays = [rng.standard_normal(s) for s in ((units, d), (units, d), (units,))]
    return at.Additive(*arrays), ref.Additive(*arrays)


def difference(f, x, towards, h=1e-6):
    return (f(x + h * towards) - f(x - h * towards)) / (2 * h)


# ----------------------------------------------------------------------------------------------------- pointer


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_point_against_the_oracle(rng, dtype, separation):
    q, k = operands(rng, batch=(2, 3), dtype=dtype)
    chosen = rng.random((2, 1, 5, 8)) < 0.3
    chosen[:, :, 2] = True
    mask = rng.random(8) < 0.9
    p, pullback = rc.vjp(at.point, q, k, scale=0.8, chosen=chosen, mask=mask, separation=separation)
    z = 0.8 * q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)
    keep = np.broadcast_to(mask & ~chosen, z.shape)
    expected = sep.separate(separation, z, keep).p
    tol = TOL[np.dtype(dtype).name] * 10
    np.testing.assert_allclose(p, expected, atol=tol)
    assert p.dtype == dtype and (p[:, :, 2] == 0).all() and (p[~keep] == 0).all()
    np.testing.assert_array_equal(
        p, at.point(q, k, scale=0.8, chosen=chosen, mask=np.broadcast_to(mask, (5, 8)), separation=separation)
    )
    d_p = rng.standard_normal(p.shape).astype(dtype)
    dz = np.where(keep, sep.pullback(separation, expected, d_p.astype(np.float64)), 0)
    g = pullback(d_p)
    np.testing.assert_allclose(g.query, 0.8 * dz @ k, atol=20 * tol)
    np.testing.assert_allclose(g.key, 0.8 * dz.swapaxes(-1, -2) @ q, atol=20 * tol)
    np.testing.assert_allclose(g.scale, (dz * z / 0.8).sum(), atol=100 * tol)


def test_point_with_any_score_is_what_attend_reads_with(rng):
    q, k = operands(rng, batch=(2,))
    bias = rng.standard_normal((5, 8))
    for score in ("dot", "cosine", "gaussian", at.Bilinear(rng.standard_normal((4, 4))), additive(rng)[0]):
        p, pullback = rc.vjp(at.point, q, k, bias=bias, score=score)
        out, attend_back = rc.vjp(at.attend, q, k, np.eye(8), bias=bias, score=score)
        np.testing.assert_allclose(p, out, atol=1e-13)
        d = rng.standard_normal(p.shape)
        for name in ("query", "key", "bias"):
            np.testing.assert_allclose(getattr(pullback(d), name), getattr(attend_back(d), name), atol=1e-12)


def test_a_pointer_network_learns_no_key_twice(rng):
    """The likelihood of an order, one choice after another, and its gradient."""
    q, k = operands(rng, n=8)
    score, judge = additive(rng)
    order = rng.permutation(8)
    chosen = np.zeros((8, 8), bool)
    for t in range(7):
        chosen[t + 1 :, order[t]] = True
    p, pullback = rc.vjp(at.point, q, k, score=score, chosen=chosen)
    likelihood = np.log(p[np.arange(8), order]).sum()
    np.testing.assert_allclose(likelihood, ref.pointed(ref.raw(judge, q, k), order))
    d_p = np.zeros_like(p)
    d_p[np.arange(8), order] = 1 / p[np.arange(8), order]
    g, towards = pullback(d_p), rng.standard_normal((3, 4))
    moved = difference(lambda w: ref.pointed(ref.raw(judge._replace(weight=w), q, k), order), judge.weight, towards)
    np.testing.assert_allclose((g.score.key_weight * towards).sum(), moved, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- sampling


def test_samples_against_the_oracle(rng, dtype):
    q, k = operands(rng, batch=(2,), dtype=dtype)
    v = rng.standard_normal((2, 8, 3)).astype(dtype)
    mask = rng.random((5, 8)) < 0.7
    mask[3] = False
    drawn = at.sample(q, k, v, rng=np.random.default_rng(5), samples=6, scale=0.9, mask=mask)
    z = 0.9 * q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)
    p = ref.softmax(z, mask)
    u = np.random.default_rng(5).random((2, 5, 6))
    np.testing.assert_array_equal(drawn.indices, np.stack([ref.drawn(p, u[..., s]) for s in range(6)], axis=-1))
    assert drawn.value.shape == (2, 5, 6, 3) and drawn.value.dtype == drawn.log_probability.dtype == dtype
    assert (
        (drawn.indices[:, 3] == -1).all()
        and (drawn.value[:, 3] == 0).all()
        and (drawn.log_probability[:, 3] == 0).all()
    )
    some = drawn.indices >= 0
    batch = np.broadcast_to(np.arange(2)[:, None, None], some.shape)
    np.testing.assert_array_equal(drawn.value[some], v[batch[some], drawn.indices[some]])
    row = np.broadcast_to(np.arange(5)[:, None], some.shape)
    expected = np.log(p[batch[some], row[some], drawn.indices[some]])
    np.testing.assert_allclose(drawn.log_probability[some], expected, atol=1e-5)


@pytest.mark.parametrize("separation", ["softmax", "sparsemax", "entmax15", ("top_k_softmax", 3), "hard"], ids=str)
def test_the_mean_of_samples_is_what_attend_reads(rng, separation):
    q, k = operands(rng, n=3)
    v = rng.standard_normal((8, 2))
    drawn = at.sample(q, k, v, rng=rng, samples=20000, separation=separation)
    error = drawn.value.std(axis=1) / np.sqrt(20000)
    expected = at.attend(q, k, v, separation=separation)
    assert (np.abs(drawn.value.mean(axis=1) - expected) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("separation", ["softmax", "entmax15"], ids=str)
def test_the_gradient_of_log_probabilities(rng, separation):
    """The drawn indices are fixed by the numbers as long as they do not change: finite differences of log p see them fixed."""
    q, k = operands(rng, batch=(2, 2))
    k = k[:, :1]
    v = rng.standard_normal((8, 3))
    score, _ = additive(rng)

    def draw(q, k, score=score):
        return at.sample(q, k, v, rng=np.random.default_rng(1), samples=4, score=score, separation=separation)

    drawn, pullback = rc.vjp(
        at.sample, q, k, v, rng=np.random.default_rng(1), samples=4, score=score, separation=separation
    )
    d = rng.standard_normal(drawn.log_probability.shape)
    d_value = rng.standard_normal(drawn.value.shape)
    g = pullback(d, d_value)
    for name, x, f in (
        ("query", q, lambda x: draw(x, k)),
        ("key", k, lambda x: draw(q, x)),
        ("vector", score.vector, lambda x: draw(q, k, at.Additive(score.key_weight, score.query_weight, x))),
    ):
        towards = rng.standard_normal(x.shape)
        for s in (1, -1):
            np.testing.assert_array_equal(f(x + s * 1e-6 * towards).indices, drawn.indices)
        moved = difference(lambda x, f=f: (f(x).log_probability * d).sum(), x, towards)
        gradient = g.score.vector if name == "vector" else getattr(g, name)
        np.testing.assert_allclose((gradient * towards).sum(), moved, rtol=1e-5, atol=1e-7)
    expected = np.zeros_like(v)
    np.add.at(expected, drawn.indices, d_value)
    np.testing.assert_allclose(g.value, expected, atol=1e-13)
    assert (pullback(d).value == 0).all()


def test_the_score_function_gradient_is_unbiased(rng):
    """The mean over many samples of (reward - baseline) grad log p against the gradient of the mean reward, by enumeration."""
    q, k = operands(rng, n=1, m=4)
    reward = rng.standard_normal(4)
    p = ref.softmax(0.5 * q @ k.T)
    count = 40000
    drawn, pullback = rc.vjp(at.sample, q, k, reward[:, None], rng=rng, samples=count)
    for baseline in (0.0, 0.7):
        d = (reward[drawn.indices] - baseline) / count
        got = pullback(d).query[0]
        expected = 0.5 * ref.expected_gradient(p, reward[None], 0.0)[0] @ k
        per_sample = 0.5 * (reward[drawn.indices[0]] - baseline)[:, None] * (k[drawn.indices[0]] - p @ k)
        assert (np.abs(got - expected) <= 4.5 * per_sample.std(axis=0) / np.sqrt(count)).all()


def test_sampling_in_blocks_draws_the_same(rng, monkeypatch):
    q, k = operands(rng, n=30, batch=(2,))
    v = rng.standard_normal((8, 2))
    found = []
    for numbers in (1 << 20, 50):
        monkeypatch.setattr("recollect._score_blocks.NUMBERS_AT_ONCE", numbers)
        drawn, pullback = rc.vjp(at.sample, q, k, v, rng=np.random.default_rng(2), samples=3, causal=True)
        found.append((drawn, pullback(np.ones_like(drawn.log_probability))))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found[0][1].key, found[1][1].key, atol=1e-12)


# -------------------------------------------------------------------------------------------------- structured


def expected_scores(inner, segments, keep, G):
    """S_g = sum_(j in g) p_j s_j."""
    member = (segments == np.arange(G)[:, None]) & np.broadcast_to(keep, inner.shape)[..., None, :]
    within = ref.softmax(np.broadcast_to(inner[..., None, :], member.shape), member)
    return (within * inner[..., None, :]).sum(-1)


@pytest.mark.parametrize("own_keys", [True, False])
@pytest.mark.parametrize("kind", ["dot", "additive"])
def test_structured_against_the_oracle(rng, dtype, own_keys, kind):
    G, m = 4, 9
    q, k = operands(rng, m=m, batch=(2,), dtype=dtype)
    v, top = rng.standard_normal((2, m, 3)).astype(dtype), rng.standard_normal((G, 4)).astype(dtype)
    segments = rng.permutation([0, 0, 0, 1, 1, 3, 3, 3, 3])
    keep = rng.random((5, m)) < 0.8
    keep[1], keep[2, segments == 1] = False, False
    score, judge = additive(rng) if kind == "additive" else ("dot", "dot")
    more = {"segment_key": top} if own_keys else {}
    out = at.attend_structured(q, k, v, segments, mask=keep, score=score, **more)
    scale = 0.5 if kind == "dot" else 1.0
    wide = [a.astype(np.float64) for a in (q, k, top)]
    inner = scale * ref.raw(judge, *wide[:2])
    outer = scale * ref.raw(judge, wide[0], wide[2]) if own_keys else expected_scores(inner, segments, keep, G)
    p = ref.structured(inner, outer, segments, np.broadcast_to(keep, inner.shape))
    np.testing.assert_allclose(out, p @ v, atol=TOL[np.dtype(dtype).name] if kind == "dot" else 1e-4)
    assert (out[:, 1] == 0).all()


@pytest.mark.parametrize("own_keys", [True, False])
@pytest.mark.parametrize("kind", ["dot", "gaussian", "additive"])
def test_structured_finite_differences(rng, own_keys, kind):
    G, m = 3, 8
    q, k = operands(rng, m=m, batch=(2,))
    score = additive(rng)[0] if kind == "additive" else kind
    o = {"query": q, "key": k, "value": rng.standard_normal((m, 3)), "bias": rng.standard_normal((5, m))}
    if own_keys:
        o["segment_key"] = rng.standard_normal((G, 4))
    if kind != "additive":
        o["scale"] = np.array(0.6)
    segments = rng.integers(0, G, m)
    keep = rng.random(m) < 0.8
    keep[0] = True
    out, pullback = rc.vjp(at.attend_structured, segments=segments, mask=keep, score=score, **o)
    d = rng.standard_normal(out.shape)
    g = pullback(d)
    assert set(g._fields) == set(o) | ({"score"} if kind == "additive" else set())
    for name, x in o.items():
        towards = rng.standard_normal(x.shape)

        def value(x, name=name):
            return (at.attend_structured(**o | {name: x}, segments=segments, mask=keep, score=score) * d).sum()

        np.testing.assert_allclose(
            (getattr(g, name) * towards).sum(), difference(value, x, towards), rtol=1e-6, atol=1e-8, err_msg=name
        )
    if kind == "additive":
        towards = rng.standard_normal((3, 4))
        moved = difference(
            lambda w: (
                at.attend_structured(
                    **o, segments=segments, mask=keep, score=at.Additive(w, score.query_weight, score.vector)
                )
                * d
            ).sum(),
            score.key_weight,
            towards,
        )
        np.testing.assert_allclose((g.score.key_weight * towards).sum(), moved, rtol=1e-6)


def test_structured_in_one_segment_or_in_single_ones(rng):
    """One segment is plain attention; segments of one key each, without keys of their own, too."""
    q, k = operands(rng)
    v = rng.standard_normal((8, 3))
    plain = at.attend(q, k, v)
    np.testing.assert_allclose(at.attend_structured(q, k, v, np.zeros(8, int)), plain, atol=1e-13)
    np.testing.assert_allclose(at.attend_structured(q, k, v, np.arange(8)), plain, atol=1e-13)
    order = rng.permutation(8)
    segments = rng.integers(0, 3, 8)
    np.testing.assert_allclose(
        at.attend_structured(q, k[order], v[order], segments[order]),
        at.attend_structured(q, k, v, segments),
        atol=1e-13,
    )


def test_grouped_heads(rng):
    q = rng.standard_normal((2, 4, 5, 3))
    k, v, top = (rng.standard_normal((2, 2, n, 3)) for n in (7, 7, 3))
    segments = np.array([0, 1, 1, 2, 2, 2, 0])
    full = [np.repeat(a, 2, axis=1) for a in (k, v, top)]
    out, pullback = rc.vjp(at.attend_structured, q, k, v, segments, segment_key=top)
    expected, whole = rc.vjp(at.attend_structured, q, full[0], full[1], segments, segment_key=full[2])
    np.testing.assert_allclose(out, expected, atol=1e-13)
    d = rng.standard_normal(out.shape)
    for name in ("key", "value", "segment_key"):
        theirs = getattr(whole(d), name)
        theirs = theirs.reshape(2, 2, 2, *theirs.shape[2:]).sum(axis=2)
        np.testing.assert_allclose(getattr(pullback(d), name), theirs, atol=1e-12)
    np.testing.assert_allclose(at.point(q, k), at.point(q, full[0]), atol=1e-13)
    one, two = (at.sample(q, *a, rng=np.random.default_rng(0), samples=2) for a in ((k, v), full[:2]))
    np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(one.indices, two.indices)


# --------------------------------------------------------------------------------------------- what holds for all


def test_what_nothing_attends_to_may_hold_anything(rng):
    q, k = operands(rng)
    v = rng.standard_normal((8, 3))
    keep = np.arange(8) != 3
    calls = [
        lambda k, v: rc.vjp(at.point, q, k, mask=keep),
        lambda k, v: rc.vjp(at.attend_structured, q, k, v, np.arange(8) // 3, mask=keep),
    ]
    dirty, filled = k.copy(), v.copy()
    dirty[3], filled[3] = np.nan, np.inf
    for call in calls:
        (a, back_a), (b, back_b) = call(k, v), call(dirty, filled)
        np.testing.assert_allclose(a, b, atol=1e-14)
        d = rng.standard_normal(a.shape)
        for x, y in zip(back_a(d), back_b(d), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-13)
    drawn, pullback = rc.vjp(at.sample, q, dirty, filled, rng=rng, mask=keep, samples=50)
    assert all(np.isfinite(a).all() for a in (*drawn, *pullback(np.ones_like(drawn.log_probability))))


def test_the_same_bits_for_every_number_of_threads_and_any_company(rng, dtype, same_bits):
    q, k = operands(rng, n=60, m=500, d=20, dtype=dtype)
    v = rng.standard_normal((500, 7)).astype(dtype)
    segments = np.arange(500) // 60
    found = []
    for count in (1, 3):
        rc.set_num_threads(count)
        found.append((at.point(q, k, separation="entmax15"), at.attend_structured(q, k, v, segments), at.point(q, k)))
    for a, b in zip(*found, strict=True):
        same_bits(a, b)
    same_bits(at.point(q[9:10], k)[0], found[0][2][9])
    same_bits(at.attend_structured(q[9:10], k, v, segments)[0], found[0][1][9])


@pytest.mark.parametrize("n, m", [(0, 4), (3, 0), (1, 1)])
def test_empty_and_single(rng, n, m):
    q, k = operands(rng, n=n, m=m)
    v = rng.standard_normal((m, 2))
    p, back = rc.vjp(at.point, q, k)
    assert p.shape == (n, m) and back(p).key.shape == k.shape
    out, back = rc.vjp(at.attend_structured, q, k, v, np.zeros(m, int))
    assert out.shape == (n, 2) and back(out).value.shape == v.shape
    drawn, back = rc.vjp(at.sample, q, k, v, rng=rng, samples=2)
    assert drawn.value.shape == (n, 2, 2) and back(drawn.log_probability).key.shape == k.shape


def test_wrong_calls(rng):
    q, k = operands(rng)
    v = rng.standard_normal((8, 3))
    segments = np.zeros(8, int)
    for error, words, call in [
        (TypeError, "attention.sample: rng is a int; expected a numpy.random.Generator", lambda: at.sample(q, k, v, rng=3)),
        (ValueError, "attention.sample: samples is 0; expected at least 1", lambda: at.sample(q, k, v, rng=rng, samples=0)),
        (ValueError, "attention.sample: separation is 'linear'", lambda: at.sample(q, k, v, rng=rng, separation="linear")),
        (ValueError, r"attention.sample: value has shape \(7, 3\)", lambda: at.sample(q, k, v[:7], rng=rng)),
        (ValueError, r"attention.sample: key has shape \(8, 3\)", lambda: at.sample(q, k[:, :3], v, rng=rng)),
        (TypeError, "attention.point: chosen has dtype float64; expected bool", lambda: at.point(q, k, chosen=np.ones(8))),
        (ValueError, r"attention.point: mask has shape \(7,\)", lambda: at.point(q, k, chosen=np.ones(7, bool))),
        (ValueError, "attention.point: separation is 'max'", lambda: at.point(q, k, separation="max")),
        (ValueError, "attention.point: score is 'max'", lambda: at.point(q, k, score="max")),
        (ValueError, r"attention.point: chosen has shape \(4,\)", lambda: at.point(q, k, chosen=[True] * 4, mask=[True] * 8)),
        (ValueError, r"attention.attend_structured: segments has shape \(7,\); expected \(m=8,\)", lambda: at.attend_structured(q, k, v, segments[:7])),
        (TypeError, "attention.attend_structured: segments has dtype float64", lambda: at.attend_structured(q, k, v, segments * 1.0)),
        (ValueError, "attention.attend_structured: segments holds -1", lambda: at.attend_structured(q, k, v, segments - 1)),
        (ValueError, "attention.attend_structured: segments holds 2; expected numbers below G=2", lambda: at.attend_structured(q, k, v, segments + 2, segment_key=k[:2])),
        (ValueError, r"attention.attend_structured: d_out has shape \(5, 2\)", lambda: rc.vjp(at.attend_structured, q, k, v, segments)[1](v[:5, :2])),
    ]:  # fmt: skip
        with pytest.raises(error, match=words):
            call()
