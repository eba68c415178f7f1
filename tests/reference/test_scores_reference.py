"""The scores oracle's own witnesses: loops over the definition, finite differences, enumeration."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import scores  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
STEP = EPS ** (1 / 3)
DIFFERENCE_TOL = 1e3 * STEP**2
NAMES = ["dot", "cosine", "gaussian", "bilinear", "additive"]


def long(rng, *shape):
    return LONG(rng.standard_normal(shape))


def problem(name, seed, n=3, m=5, d=4, batch=()):
    """The score, query and key; bilinear and additive scores compare vectors of different widths."""
    rng = np.random.default_rng(seed)
    width = d + 2 if name in ("bilinear", "additive") else d
    score = {
        "bilinear": scores.Bilinear(long(rng, d, width)),
        "additive": scores.Additive(long(rng, 6, width), long(rng, 6, d), long(rng, 6)),
    }.get(name, name)
    return score, long(rng, *batch, n, d), long(rng, *batch, m, width), rng


def agree(a, b, tol=64 * EPS):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b).max(initial=0))))


def difference(function, a):
    """Central differences of a scalar function with respect to every entry of a."""
    gradient = np.zeros(a.shape, LONG)
    for i in np.ndindex(a.shape):
        ends = []
        for sign in (1, -1):
            moved = a.copy()
            moved[i] += sign * LONG(STEP)
            ends.append(function(moved))
        gradient[i] = (ends[0] - ends[1]) / (2 * LONG(STEP))
    return gradient


def one_by_one(name, score, q, k):
    if name == "bilinear":
        return sum(q[i] * score.weight[i, j] * k[j] for i in range(len(q)) for j in range(len(k)))
    if name == "additive":
        return sum(v * np.tanh(w @ k + u @ q) for w, u, v in zip(*score, strict=True))
    if name == "cosine":
        return (q @ k) / np.sqrt((q @ q) * (k @ k))
    return -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / 2 if name == "gaussian" else sum(q * k)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_their_definitions(name):
    score, query, key, _ = problem(name, 0)
    agree(scores.raw(score, query, key), LONG([[one_by_one(name, score, q, k) for k in key] for q in query]))


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_batch(name):
    score, query, key, _ = problem(name, 1, batch=(2, 3))
    got = scores.raw(score, query, key)
    for b, h in itertools.product(range(2), range(3)):
        agree(got[b, h], scores.raw(score, query[b, h], key[b, h]))


def test_parameters_of_every_head():
    score, query, key, rng = problem("additive", 2, batch=(2, 3))
    heads = scores.Additive(long(rng, 3, 6, 6), long(rng, 3, 6, 4), long(rng, 3, 6))
    matrices = scores.Bilinear(long(rng, 3, 4, 6))
    for h in range(3):
        own = scores.Additive(*(a[h] for a in heads))
        agree(scores.raw(heads, query, key)[1, h], scores.raw(own, query[1, h], key[1, h]))
        agree(
            scores.raw(matrices, query, key)[1, h],
            scores.raw(scores.Bilinear(matrices.weight[h]), query[1, h], key[1, h]),
        )


@pytest.mark.parametrize("name", NAMES)
def test_pullbacks_are_finite_differences(name):
    score, query, key, rng = problem(name, 3)
    ds = long(rng, 3, 5)
    d_query, d_key, parameters = scores.pullback(score, query, key, ds)
    agree(d_query, difference(lambda a: (ds * scores.raw(score, a, key)).sum(), query), DIFFERENCE_TOL)
    agree(d_key, difference(lambda a: (ds * scores.raw(score, query, a)).sum(), key), DIFFERENCE_TOL)
    assert set(parameters) == set(getattr(score, "_fields", ()))
    for field, g in parameters.items():
        expected = difference(
            lambda a, f=field: (ds * scores.raw(score._replace(**{f: a}), query, key)).sum(), getattr(score, field)
        )
        agree(g, expected, DIFFERENCE_TOL)


def test_a_gaussian_score_of_keys_of_one_norm_is_the_dot_product():
    _, query, key, _ = problem("gaussian", 4)
    key /= scores.norms(key)
    agree(scores.softmax(scores.raw("gaussian", query, key)), scores.softmax(scores.raw("dot", query, key)))


def test_a_zero_vector_has_cosine_zero_and_no_gradient():
    _, query, key, rng = problem("cosine", 5)
    query[1], key[2] = 0, 0
    s = scores.raw("cosine", query, key)
    assert (s[1] == 0).all() and (s[:, 2] == 0).all() and (np.abs(s) <= 1).all()
    d_query, d_key, _ = scores.pullback("cosine", query, key, long(rng, 3, 5))
    assert (d_query[1] == 0).all() and (d_key[2] == 0).all() and (d_query[0] != 0).all()


# ------------------------------------------------------------------------------------------------- hard attention


def test_the_mean_of_hard_attention_is_soft_attention():
    rng = np.random.default_rng(6)
    z, values = rng.standard_normal((2, 5)), rng.standard_normal((5, 3))
    p = scores.softmax(z)
    u = (np.arange(200_000) + 0.5) / 200_000  # evenly over [0, 1): the mean of what they draw is that of all draws
    index = scores.drawn(p[:, None, :], np.broadcast_to(u, (2, u.size)))
    np.testing.assert_allclose(values[index].mean(axis=1), p @ values, rtol=0, atol=1e-4)


def test_the_edges_of_a_draw():
    p = np.array([[0.0, 0.25, 0.0, 0.75, 0.0], [0, 0, 0, 0, 0]])
    for u, first in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.999999, 3), (np.nextafter(1, 0), 3)):
        np.testing.assert_array_equal(scores.drawn(p, np.full(2, u)), [first, -1])


@pytest.mark.parametrize("baseline", [0.0, 0.7, -3.0])
def test_the_score_function_gradient_is_unbiased(baseline):
    """By enumeration: the mean over all draws is the gradient of the mean reward, whatever the baseline."""
    rng = np.random.default_rng(7)
    z, rewards = long(rng, 2, 5), long(rng, 2, 5)
    expected = difference(lambda a: (scores.softmax(a) * rewards).sum(), z)
    p = scores.softmax(z)
    agree(scores.expected_gradient(p, rewards, baseline), expected, DIFFERENCE_TOL)
    agree(scores.softmax_pullback(p, rewards), expected, DIFFERENCE_TOL)
    one = scores.score_function_gradient(p, np.array([3, -1]), rewards[:, 3], baseline)
    agree(
        one[0],
        difference(lambda a: (rewards[0, 3] - LONG(baseline)) * np.log(scores.softmax(a)[3]), z[0]),
        DIFFERENCE_TOL,
    )
    assert (one[1] == 0).all()  # nothing was drawn


# ---------------------------------------------------------------------------------------------- pointer, structured


def test_pointing_at_all_orders_has_total_probability_one():
    z = long(np.random.default_rng(8), 4, 4)
    total = sum(np.exp(scores.pointed(z, order)) for order in itertools.permutations(range(4)))
    agree(total, LONG(1))


def test_what_was_taken_is_not_pointed_at():
    z, mask = long(np.random.default_rng(9), 5), np.array([True, True, True, False, True])
    p = scores.pointer(z, np.array([False, True, False, False, False]), mask)
    e = np.exp(z) * [1, 0, 1, 0, 1]
    agree(p, e / e.sum())
    assert (scores.pointer(z, ~mask, mask & ~mask) == 0).all()


def nested(inner, outer, segment, keep):
    """Structured attention one key at a time."""
    there = [any(k and s == g for k, s in zip(keep, segment, strict=True)) for g in range(len(outer))]
    between = [np.exp(o) * t for o, t in zip(outer, there, strict=True)]
    total = sum(between)
    p = np.zeros(len(inner), LONG)
    for j, g in enumerate(segment):
        if keep[j]:
            own = sum(np.exp(inner[i]) for i in range(len(inner)) if keep[i] and segment[i] == g)
            p[j] = between[g] / total * np.exp(inner[j]) / own
    return p


SEGMENT = np.array([0, 0, 1, 1, 1, 3, 3])  # segment 2 has no keys


@pytest.mark.parametrize("keep", [np.ones(7, bool), np.arange(7) != 3, SEGMENT != 1, np.zeros(7, bool)], ids=str)
def test_structured_attention_is_nested(keep):
    rng = np.random.default_rng(10)
    inner, outer, g = long(rng, 7), long(rng, 4), long(rng, 7)
    p = scores.structured(inner, outer, SEGMENT, keep)
    agree(p, nested(inner, outer, SEGMENT, keep) if keep.any() else np.zeros(7, LONG))
    d_inner, d_outer = scores.structured_pullback(inner, outer, SEGMENT, g, keep)
    agree(d_inner, difference(lambda a: (g * scores.structured(a, outer, SEGMENT, keep)).sum(), inner), DIFFERENCE_TOL)
    agree(d_outer, difference(lambda a: (g * scores.structured(inner, a, SEGMENT, keep)).sum(), outer), DIFFERENCE_TOL)
    assert (p[~keep] == 0).all() and (d_inner[~keep] == 0).all() and d_outer[2] == 0


def test_one_segment_and_segments_of_one_are_softmax():
    z, g = long(np.random.default_rng(11), 2, 7)
    one = np.zeros(7, int)
    agree(scores.structured(z, LONG([0.3]), one), scores.softmax(z))
    agree(scores.structured(z, g, np.arange(7)), scores.softmax(g))
    order = np.array([1, 0, 4, 2, 3, 6, 5])  # within segments
    agree(scores.structured(z[order], g[:4], SEGMENT), scores.structured(z, g[:4], SEGMENT)[order])
