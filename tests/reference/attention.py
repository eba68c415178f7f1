"""An oracle for attention with softmax weights, written from the equations alone.

It imports nothing of recollect. It is slow and plain on purpose: every formula is a line, and every
function works in whatever number type it is given, so that np.longdouble judges float64.

    scores   s_qj = scale query_q . key_j + bias_qj              over the admissible keys of query q
    weights  p_qj = exp(s_qj) / (sum_k exp(s_qk) + exp(c))       c: the sink, a logit that reads nothing
    output  out_q = sum_j p_qj value_j
             lse_q = log(sum_k exp(s_qk) + exp(c))

Shapes: query (..., n, d), key (..., m, d), value (..., m, e), bias and mask over (..., n, m), scale and sink
over the leading axes. scale=None is 1 / sqrt(d); no sink is c = -inf.

Admissible is a key that the mask keeps, whose bias is not -inf, and that causality allows: j <= i + (m - n) with
causal=True (the last query sees the last key), j <= i with causal="top-left". A row that admits no key gives
zeros, lse = c and zero gradients. What no row admits may hold anything.

Grouped queries: where query has a multiple of the heads (third axis from the end) of key, query head h reads
key head h // (Hq // Hkv); likewise value.
"""

from typing import NamedTuple

import numpy as np


class Attention(NamedTuple):
    out: np.ndarray  # (..., n, e)
    lse: np.ndarray  # (..., n)


class Gradients(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None
    sink: np.ndarray | None


class Problem(NamedTuple):
    """The operands, all over the same leading axes."""

    query: np.ndarray  # (..., n, d)
    key: np.ndarray  # (..., m, d), zero where no row admits the key
    value: np.ndarray  # (..., m, e), likewise
    scale: np.ndarray  # (..., 1, 1)
    keep: np.ndarray  # (..., n, m) admissible?
    bias: np.ndarray  # (..., n, m), zero where not admissible
    sink: np.ndarray  # (..., 1, 1), -inf without one


class Weights(NamedTuple):
    z: np.ndarray  # (..., n, m) query . key, zero where not admissible
    p: np.ndarray  # (..., n, m) zero where not admissible
    rest: np.ndarray  # (..., n, 1) the weight of the sink
    lse: np.ndarray  # (..., n)


def transpose(a):
    return np.swapaxes(a, -1, -2)


def grouped(a, query):
    """Do several query heads read one head of a?"""
    if min(a.ndim, query.ndim) < 3 or a.shape[-3] <= 1 or a.shape[-3] >= query.shape[-3]:
        return False
    return query.shape[-3] % a.shape[-3] == 0


def repeat_heads(a, query):
    """Every head of a as often as query heads read it."""
    return np.repeat(a, query.shape[-3] // a.shape[-3], axis=-3) if grouped(a, query) else a


def sum_to(gradient, shape):
    """Sums a gradient over the axes along which its operand was broadcast."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=stretched, keepdims=True).reshape(shape)


def sum_heads(gradient, a, query):
    """The gradient of a: summed over the query heads that read the same head, then over broadcast axes."""
    if grouped(a, query):
        heads, times = a.shape[-3], query.shape[-3] // a.shape[-3]
        gradient = gradient.reshape(*gradient.shape[:-3], heads, times, *gradient.shape[-2:]).sum(axis=-3)
    return sum_to(gradient, a.shape)


def allowed(n, m, causal):
    """(n, m): which keys causality lets each query see."""
    i, j = np.arange(n)[:, None], np.arange(m)
    if causal is False:
        return np.ones((n, m), bool)
    return j <= (i if causal == "top-left" else i + (m - n))


def pose(query, key, value, scale=None, causal=False, mask=None, bias=None, sink=None):
    """Broadcasts all operands to common leading axes and clears what no row admits."""
    kind = np.result_type(query, key, value)
    n, m = query.shape[-2], key.shape[-2]
    key, value = repeat_heads(key, query), repeat_heads(value, query)
    scale = 1 / np.sqrt(np.asarray(query.shape[-1], kind)) if scale is None else np.asarray(scale, kind)
    sink = np.asarray(-np.inf if sink is None else sink, kind)
    bias = np.zeros((), kind) if bias is None else np.asarray(bias, kind)
    keep = allowed(n, m, causal) & (True if mask is None else np.asarray(mask, bool)) & (bias != -np.inf)
    leads = [a.shape[:-2] for a in (query, key, value, keep)]
    batch = np.broadcast_shapes(*leads, scale.shape, sink.shape)

    def spread(a, *own):
        return np.broadcast_to(a, batch + own)

    keep = spread(keep, n, m)
    seen = keep.any(axis=-2)[..., None]
    return Problem(
        spread(query, *query.shape[-2:]),
        np.where(seen, spread(key, *key.shape[-2:]), 0),
        np.where(seen, spread(value, *value.shape[-2:]), 0),
        spread(scale[..., None, None], 1, 1),
        keep,
        np.where(keep, spread(bias, n, m), 0),
        spread(sink[..., None, None], 1, 1),
    )


def weigh(x):
    """Scores, weights and log-sum-exp of every query of a Problem."""
    z = np.where(x.keep, x.query @ transpose(x.key), 0)
    s = np.where(x.keep, x.scale * z + x.bias, -np.inf)
    top = np.maximum(s.max(axis=-1, keepdims=True, initial=-np.inf), x.sink)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(under="ignore", divide="ignore"):
        e, rest = np.exp(s - top), np.exp(x.sink - top)
        total = e.sum(axis=-1, keepdims=True) + rest
        lse = (top + np.log(total))[..., 0]
    some = np.where(total > 0, total, 1)
    return Weights(z, e / some, rest / some, lse)


def attend(query, key, value, **more):
    """Output and log-sum-exp; the keywords are those of pose."""
    x = pose(query, key, value, **more)
    w = weigh(x)
    return Attention(w.p @ x.value, w.lse)


def gradients(query, key, value, d_out, *, absolute=False, **more):
    """Gradients of sum(d_out * out), for the operands that were given.

    dp_j = g . value_j;  mean = sum_j p_j dp_j = g . out;  ds_j = p_j (dp_j - mean);  d_bias_j = ds_j;
    d_query = scale sum_j ds_j key_j;  d_key_j = scale ds_j query;  d_value_j = p_j g;  d_scale = sum_j ds_j (query . key_j);
    d_sink = -rest mean, since d p_j / d c = -p_j rest

    With absolute=True every difference becomes a sum of magnitudes, and every row counts 1 + S times, S its largest
    score: the size that rounding errors scale with.
    """
    x = pose(query, key, value, **more)
    w = weigh(x)
    z, g = w.z, d_out
    if absolute:
        g = np.abs(d_out) * (1 + largest_score(x, w))[..., None]
        x = x._replace(query=np.abs(x.query), key=np.abs(x.key), value=np.abs(x.value), scale=np.abs(x.scale))
        z = np.where(x.keep, x.query @ transpose(x.key), 0)
    dp = g @ transpose(x.value)
    mean = (w.p * dp).sum(axis=-1, keepdims=True)
    ds = w.p * (dp + mean if absolute else dp - mean)
    d_sink = w.rest * (mean if absolute else -mean)
    scale, bias, sink = (more.get(name) for name in ("scale", "bias", "sink"))
    return Gradients(
        sum_to(x.scale * (ds @ x.key), query.shape),
        sum_heads(x.scale * (transpose(ds) @ x.query), key, query),
        sum_heads(transpose(w.p) @ g, value, query),
        None if scale is None else sum_to((z * ds).sum(axis=(-1, -2)), np.shape(scale)),
        None if bias is None else sum_to(ds, np.shape(bias)),
        None if sink is None else sum_to(d_sink.sum(axis=(-1, -2)), np.shape(sink)),
    )


# ------------------------------------------------------------------------------- what rounding errors scale with


def largest_score(x, w):
    """S of every row, (..., n): the largest sum of magnitudes that makes a score, or the sink.

    Partial sums of query . key are as large as |query| |key| / sqrt(d) where the products themselves happen to cancel.
    """
    norms = [np.sqrt((a * a).sum(axis=-1)) for a in (x.query, x.key)]
    partial = norms[0][..., :, None] * norms[1][..., None, :] / np.sqrt(x.query.shape[-1]).astype(w.z.dtype)
    s = np.where(x.keep, np.abs(x.scale) * (np.abs(w.z) + partial) + np.abs(x.bias), 0).max(axis=-1, initial=0)
    return np.maximum(s, np.where(np.isfinite(x.sink), np.abs(x.sink), 0)[..., 0])


def sizes(query, key, value, **more):
    """Where a score is off by eps * s, its weight is off by the factor eps * s: one read errs by some
    eps * (1 + S) * max|value|, and lse by some eps * (1 + S + log(1 + m))."""
    x = pose(query, key, value, **more)
    S = largest_score(x, weigh(x))
    size = np.abs(x.value).max(axis=(-1, -2), initial=0)[..., None]
    out = np.broadcast_to(((1 + S) * size)[..., None], (*S.shape, value.shape[-1]))
    return Attention(out, 1 + S + np.log1p(x.keep.sum(axis=-1)))
