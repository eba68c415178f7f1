"""attend(top_k=k): softmax over the k best keys alone, and gradients through them alone."""

import numpy as np
import pytest
import recollect as rc

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def reference(q, k, v, top_k, scale, bias=None, sink=None, keep=None):
    """The definition in float64, one row at a time: out, lse and the weights (n, m)."""
    s = scale * (q.astype(np.float64) @ k.astype(np.float64).T)
    s = s if bias is None else s + bias
    s = s if keep is None else np.where(keep, s, -np.inf)
    p, lse = np.zeros_like(s), np.full(len(q), -np.inf)
    for row, scores in enumerate(s):
        best = np.argsort(-scores, kind="stable")[:top_k]
        best = best[scores[best] > -np.inf]
        parts = np.append(scores[best], [] if sink is None else sink)
        if len(parts):
            lse[row] = parts.max() + np.log(np.exp(parts - parts.max()).sum())
            p[row, best] = np.exp(scores[best] - lse[row])
    return p @ v.astype(np.float64), lse, p


def draw(rng, dtype, n, m, d, e):
    return (rng.standard_normal(shape).astype(dtype) for shape in ((n, d), (m, d), (m, e)))


@DTYPES
@pytest.mark.parametrize(("n", "m", "d", "e"), [(1, 1, 1, 1), (5, 7, 8, 3), (30, 193, 16, 16), (400, 2500, 33, 9)])
@pytest.mark.parametrize("top_k", [1, 3, 32])
def test_values_and_lse(rng, dtype, n, m, d, e, top_k):
    q, k, v = draw(rng, dtype, n, m, d, e)
    k_of = min(top_k, m)
    found = rc.attention.attend(q, k, v, top_k=k_of, return_lse=True)
    out, lse, _ = reference(q, k, v, k_of, 1 / np.sqrt(d))
    close = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(found.out, out, rtol=0, atol=close * max(1, np.abs(v).max()))
    np.testing.assert_allclose(found.lse, lse, rtol=close, atol=close)


@DTYPES
def test_masks_bias_sink_and_causal(rng, dtype):
    n, m, d = 40, 60, 8
    q, k, v = draw(rng, dtype, n, m, d, 5)
    bias, keep = rng.standard_normal((n, m)).astype(dtype), rng.random((n, m)) < 0.5
    keep[3] = False
    causal = np.arange(m) <= np.arange(n)[:, None] + (m - n)
    got = rc.attention.attend(q, k, v, top_k=4, mask=keep, bias=bias, sink=0.5, causal=True)
    want = reference(q, k, v, 4, 1 / np.sqrt(d), bias.astype(float), 0.5, keep & causal)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=300 * np.finfo(dtype).eps)
    assert not rc.attention.attend(q, k, v, top_k=4, mask=keep)[3].any()


def test_all_keys_are_plain_attention(rng):
    q, k, v = draw(rng, np.float64, 20, 30, 8, 4)
    np.testing.assert_allclose(
        rc.attention.attend(q, k, v, top_k=30), rc.attention.attend(q, k, v), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("sink", [None, 0.3])
def test_every_gradient_against_the_closed_form(rng, sink):
    n, m, d, scale, top_k = 12, 40, 6, 0.7, 5
    q, k, v = draw(rng, np.float64, n, m, d, 3)
    bias = rng.standard_normal((n, m))
    options = {} if sink is None else {"sink": sink}
    out, pullback = rc.vjp(rc.attention.attend, q, k, v, scale=scale, bias=bias, top_k=top_k, **options)
    g = rng.standard_normal(out.shape)
    _, _, p = reference(q, k, v, top_k, scale, bias, sink)
    d_s = p * (g @ v.T - (g * (p @ v)).sum(1, keepdims=True))
    want = {
        "query": scale * d_s @ k,
        "key": scale * d_s.T @ q,
        "value": p.T @ g,
        "scale": ((q @ k.T) * d_s).sum(),
        "bias": d_s,
    }
    if sink is not None:
        want["sink"] = -((1 - p.sum(1)) * (g * (p @ v)).sum(1)).sum()
    found = pullback(g)
    assert list(found._fields) == list(want)
    for name, gradient in want.items():
        np.testing.assert_allclose(getattr(found, name), gradient, rtol=1e-11, atol=1e-12, err_msg=name)


def test_finite_differences_in_float64(rng):
    q, k, v = draw(rng, np.float64, 4, 9, 3, 2)
    out, pullback = rc.vjp(rc.attention.attend, q, k, v, top_k=3)
    g = rng.standard_normal(out.shape)
    found, step = pullback(g), 1e-6
    for name, array in (("query", q), ("key", k), ("value", v)):
        direction = rng.standard_normal(array.shape)
        moved = [{"query": q, "key": k, "value": v} | {name: array + sign * step * direction} for sign in (1, -1)]
        up, down = (rc.attention.attend(**operands, top_k=3) for operands in moved)
        slope = ((up - down) * g).sum() / (2 * step)
        assert abs(slope - (getattr(found, name) * direction).sum()) < 1e-7, name


def test_heads_groups_and_threads(rng, same_bits):
    q = rng.standard_normal((2, 4, 30, 8)).astype(np.float32)
    k, v = (rng.standard_normal((2, 2, 50, 8)).astype(np.float32) for _ in range(2))
    out, pullback = rc.vjp(rc.attention.attend, q, k, v, top_k=6, causal=True)
    gradients = pullback(out)
    before = rc.get_num_threads()
    try:
        for threads in (1, 3, 7):
            rc.set_num_threads(threads)
            again, pull = rc.vjp(rc.attention.attend, q, k, v, top_k=6, causal=True)
            same_bits(again, out)
            for a, b in zip(pull(out), gradients, strict=True):
                same_bits(a, b)
    finally:
        rc.set_num_threads(before)
    for b in range(2):
        for h in range(4):
            same_bits(rc.attention.attend(q[b, h], k[b, h // 2], v[b, h // 2], top_k=6, causal=True), out[b, h])


def test_among_equals_the_lower_number(rng):
    key = np.zeros((5, 2))
    value = np.arange(5.0)[:, None]
    assert rc.attention.attend(np.ones((1, 2)), key, value, top_k=2)[0, 0] == 0.5


@pytest.mark.parametrize("top_k", [0, -1, 8])
def test_top_k_outside_its_range(top_k):
    with pytest.raises(ValueError, match=rf"attention\.attend: top_k is {top_k}; expected a number from 1 to m=7"):
        rc.attention.attend(np.ones((2, 3)), np.ones((7, 3)), np.ones((7, 3)), top_k=top_k)


@pytest.mark.parametrize("top_k", [1.5, "3"])
def test_top_k_is_a_whole_number(top_k):
    with pytest.raises(TypeError, match=r"attention\.attend: top_k is"):
        rc.attention.attend(np.ones((2, 3)), np.ones((7, 3)), np.ones((7, 3)), top_k=top_k)
