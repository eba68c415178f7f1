"""An oracle for scores, and for what else reads by attention weights: hard, pointer and structured attention.

It imports nothing of recollect. It is slow and plain on purpose: every formula is a line, and every
function works in whatever number type it is given, so that np.longdouble judges float64.

    dot        s = q . k                       gaussian  s = -|q - k|^2 / 2          cosine    s = q . k / (|q| |k|)
    bilinear   s = q^T W k                     additive  s = v^T tanh(W k + U q)

Shapes: query (..., n, dq), key (..., m, dk), s (..., n, m); W of the bilinear score (..., dq, dk); of the additive one
W (..., A, dk), U (..., A, dq), v (..., A). A vector of norm zero has cosine 0 with every other, and zero gradients.
The scale that multiplies a score and the bias added to it are not made here.
"""

from typing import NamedTuple

import numpy as np


class Bilinear(NamedTuple):
    weight: np.ndarray


class Additive(NamedTuple):
    weight: np.ndarray
    query_weight: np.ndarray
    vector: np.ndarray


def transpose(a):
    return np.swapaxes(a, -1, -2)


def norms(a):
    """(..., n, 1), one for a zero vector, which has no direction."""
    size = np.sqrt((a * a).sum(axis=-1, keepdims=True))
    return np.where(size > 0, size, 1)


def hidden(score, query, key):
    """(..., n, m, A): tanh(W k + U q)."""
    k, q = key @ transpose(score.weight), query @ transpose(score.query_weight)
    return np.tanh(k[..., None, :, :] + q[..., :, None, :])


def raw(score, query, key):
    """(..., n, m): the scores of all pairs."""
    if isinstance(score, Bilinear):
        return query @ score.weight @ transpose(key)
    if isinstance(score, Additive):
        return (hidden(score, query, key) * score.vector[..., None, None, :]).sum(axis=-1)
    if score == "cosine":
        return (query / norms(query)) @ transpose(key / norms(key))
    if score == "gaussian":
        return -((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(axis=-1) / 2
    return query @ transpose(key)


def pullback(score, query, key, ds):
    """Gradients of sum(ds * raw) for query, key and, by name, the parameters; nothing is summed over broadcast axes.

    bilinear  dW = sum ds q k^T;  dq = ds W k;  dk = ds W^T q
    additive  t = tanh(.), da = ds v (1 - t^2);  dv = sum ds t;  dW = sum da k^T;  dU = sum da q^T;  dk = W^T sum_q da;  dq = U^T sum_k da
    cosine    dq = (ds k/|k| - s ds q/|q|) / |q|, likewise dk
    gaussian  dq = ds (k - q), dk = ds (q - k)
    """
    across = transpose(ds)
    if isinstance(score, Bilinear):
        d_weight = transpose(query) @ ds @ key
        return ds @ key @ transpose(score.weight), across @ query @ score.weight, {"weight": d_weight}
    if isinstance(score, Additive):
        t = hidden(score, query, key)
        da = ds[..., None] * score.vector[..., None, None, :] * (1 - t * t)
        of_key, of_query = da.sum(axis=-3), da.sum(axis=-2)
        parameters = {"weight": transpose(of_key) @ key, "query_weight": transpose(of_query) @ query}
        parameters["vector"] = (ds[..., None] * t).sum(axis=(-2, -3))
        return of_query @ score.query_weight, of_key @ score.weight, parameters
    if score == "cosine":
        q, k = query / norms(query), key / norms(key)
        towards = ds * (q @ transpose(k))
        d_query = (ds @ k - towards.sum(axis=-1, keepdims=True) * q) / norms(query)
        d_key = (across @ q - towards.sum(axis=-2)[..., None] * k) / norms(key)
        return (
            np.where((query != 0).any(-1, keepdims=True), d_query, 0),
            np.where((key != 0).any(-1, keepdims=True), d_key, 0),
            {},
        )
    if score == "gaussian":
        return (
            ds @ key - ds.sum(axis=-1, keepdims=True) * query,
            across @ query - across.sum(axis=-1, keepdims=True) * key,
            {},
        )
    return ds @ key, across @ query, {}


# ------------------------------------------------------------------------------------------------- hard attention


def softmax(z, keep=None):
    """(..., m), zero where keep is False, and everywhere if it is False everywhere."""
    keep = np.ones(z.shape, bool) if keep is None else np.broadcast_to(keep, z.shape)
    top = np.where(keep, z, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(under="ignore"):
        e = np.where(keep, np.exp(np.where(keep, z - np.where(np.isfinite(top), top, 0), 0)), 0)
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def softmax_pullback(p, g):
    return p * (g - (p * g).sum(axis=-1, keepdims=True))


def drawn(p, uniform):
    """The index that a number of [0, 1) picks: the first whose cumulative weight exceeds it. -1 where no index has any."""
    total = np.cumsum(p, axis=-1)
    index = (total <= np.asarray(uniform)[..., None] * total[..., -1:]).sum(axis=-1)
    return np.where(total[..., -1] > 0, index, -1)


def score_function_gradient(p, index, reward, baseline=0.0):
    """(reward - baseline) d log p_index / dz = (reward - baseline) (e_index - p): one sample's unbiased gradient of the mean reward."""
    one = np.arange(p.shape[-1]) == np.asarray(index)[..., None]
    return np.asarray(reward - baseline)[..., None] * np.where(np.asarray(index)[..., None] >= 0, one - p, 0)


def expected_gradient(p, rewards, baseline=0.0):
    """The mean of the above over all indices, by enumeration: no baseline changes it."""
    return sum(
        p[..., j, None] * score_function_gradient(p, np.full(p.shape[:-1], j), rewards[..., j], baseline)
        for j in range(p.shape[-1])
    )


# ---------------------------------------------------------------------------------------------- pointer, structured


def pointer(z, taken=None, mask=None):
    """The distribution over what may be pointed at: not what was taken already, nothing that the mask leaves out."""
    keep = np.ones(z.shape, bool) if mask is None else np.broadcast_to(mask, z.shape)
    return softmax(z, keep if taken is None else keep & ~taken)


def pointed(z, order):
    """Log-likelihood of pointing at order[0], order[1], ..., each once; row t of z (T, m) are the scores of step t."""
    taken, total = np.zeros(z.shape[-1], bool), z.dtype.type(0)
    for row, j in zip(z, order, strict=True):
        total, taken = total + np.log(pointer(row, taken)[j]), taken | (np.arange(z.shape[-1]) == j)
    return total


def structured(inner, outer, segment, keep=None):
    """(..., m): softmax of outer (..., G) over segments times softmax of inner (..., m) inside each.

    segment (m,) tells the segment of every key; one without a key that is kept does not exist.
    """
    keep = np.ones(inner.shape, bool) if keep is None else np.broadcast_to(keep, inner.shape)
    member = segment == np.arange(outer.shape[-1])[:, None]  # (G, m)
    there = keep[..., None, :] & member
    between = softmax(outer, there.any(axis=-1))
    within = softmax(np.broadcast_to(inner[..., None, :], there.shape), there)
    return (between[..., None] * within).sum(axis=-2)


def structured_pullback(inner, outer, segment, g, keep=None):
    """d_inner and d_outer of sum(g * structured)."""
    keep = np.ones(inner.shape, bool) if keep is None else np.broadcast_to(keep, inner.shape)
    there = keep[..., None, :] & (segment == np.arange(outer.shape[-1])[:, None])
    between = softmax(outer, there.any(axis=-1))
    within = softmax(np.broadcast_to(inner[..., None, :], there.shape), there)
    read = (within * g[..., None, :]).sum(axis=-1)  # what each segment contributes
    d_inner = (between[..., None] * softmax_pullback(within, np.broadcast_to(g[..., None, :], within.shape))).sum(
        axis=-2
    )
    return d_inner, softmax_pullback(between, read)
