"""An oracle for Hopfield networks and attention with any separation, and attention with any score.

It imports nothing of recollect: separations.py has the weights, scores.py the scores, attention.py says what operands
mean (broadcasting, masks, causality, grouped queries).

    Hopfield    z = beta X q                     q <- X^T p(z), with values the last step reads Y^T p(z)
                E = |q|^2 / 2 - Omega*(z) / beta;   softmax: + log(N) / beta + M^2 / 2, constants of the patterns
    attention   z = scale score(q, k) + bias     out = sum_j p_j v_j

A row that admits nothing gives zeros, Omega* -inf, energy +inf, zero gradients. What no row admits may hold anything.
"""

from typing import NamedTuple

import numpy as np

from tests.reference import attention as att
from tests.reference import scores
from tests.reference import separations as sep

STEP_LIMIT = 1000
DEFAULT_TOL = {"float32": 1e-4, "float64": 1e-8}


class Info(NamedTuple):
    state: np.ndarray
    energy: np.ndarray
    lse: np.ndarray
    steps: np.ndarray
    converged: np.ndarray


class RetrieveGradients(NamedTuple):
    state: np.ndarray
    patterns: np.ndarray
    beta: np.ndarray
    values: np.ndarray | None


class EnergyGradients(NamedTuple):
    state: np.ndarray
    patterns: np.ndarray
    beta: np.ndarray


class AttendGradients(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None
    parameters: dict  # of the score, by name


class Partial(NamedTuple):
    """Gradients of one read, not yet summed over broadcast axes."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: np.ndarray
    z: np.ndarray
    parameters: dict


def raw(x, score="dot"):
    return np.where(x.keep, scores.raw(score, x.query, x.key), 0)


def logits(x, score="dot"):
    return x.scale * raw(x, score) + x.bias


def weigh(x, separation, score="dot"):
    """Weights and potential of every query of an attention.Problem."""
    return sep.separate(separation, logits(x, score), x.keep)


def read_gradients(x, separation, d_out, score="dot", absolute=False):
    """dp = g . v;  dz = J_p dp;  d_value = p^T g;  d_scale = sum dz s;  the rest is the score's.

    With absolute=True every difference becomes a sum of magnitudes: the size that rounding errors scale with (dot only).
    """
    p, s = weigh(x, separation, score).p, raw(x, score)
    if absolute:
        d_out = np.abs(d_out)
        x = x._replace(**{k: np.abs(getattr(x, k)) for k in ("query", "key", "value", "scale", "bias")})
        s = raw(x, score)
        p = np.where(x.keep, logits(x, score), 0) if separation == "linear" else p
    dz = np.where(x.keep, sep.pullback(separation, p, d_out @ att.transpose(x.value), absolute), 0)
    d_query, d_key, parameters = scores.pullback(score, x.query, x.key, x.scale * dz)
    return Partial(d_query, d_key, att.transpose(p) @ d_out, (s * dz).sum(axis=(-1, -2)), dz, parameters)


# --------------------------------------------------------------------------------------------------- attention


def attend(query, key, value, *, separation="softmax", score="dot", **more):
    """Output and Omega*(z); the other keywords are those of attention.pose, but for the sink."""
    x = att.pose(query, key, value, **more)
    w = weigh(x, separation, score)
    return att.Attention(w.p @ x.value, w.potential)


def attend_gradients(query, key, value, d_out, *, separation="softmax", score="dot", absolute=False, **more):
    """Gradients of sum(d_out * out) for the operands that were given."""
    x = att.pose(query, key, value, **more)
    g = read_gradients(x, separation, d_out, score, absolute)
    scale, bias = more.get("scale"), more.get("bias")
    return AttendGradients(
        att.sum_to(g.query, query.shape),
        att.sum_heads(g.key, key, query),
        att.sum_heads(g.value, value, query),
        None if scale is None else att.sum_to(g.scale, np.shape(scale)),
        None if bias is None else att.sum_to(g.z, np.shape(bias)),
        {name: att.sum_to(a, getattr(score, name).shape) for name, a in g.parameters.items()},
    )


# ---------------------------------------------------------------------------------------------------- Hopfield


def pose(state, patterns, beta, values=None, mask=None):
    return att.pose(state, patterns, patterns if values is None else values, scale=beta, mask=mask)


def lse(state, patterns, beta, separation="softmax", mask=None):
    """(..., n): Omega*(beta X q) / beta."""
    x = pose(state, patterns, beta, mask=mask)
    return weigh(x, separation).potential / x.scale[..., 0]


def energy(state, patterns, beta, separation="softmax", mask=None):
    """(..., n), +inf where nothing is admissible."""
    x = pose(state, patterns, beta, mask=mask)
    e = (x.query * x.query).sum(axis=-1) / 2 - weigh(x, separation).potential / x.scale[..., 0]
    if separation != "softmax":
        return e
    squares = np.where(x.keep, (x.key * x.key).sum(axis=-1)[..., None, :], 0).max(axis=-1, initial=0)
    return e + np.log(np.maximum(x.keep.sum(axis=-1), 1).astype(e.dtype)) / x.scale[..., 0] + squares / 2


def energy_gradients(state, patterns, beta, d_out, separation="softmax", mask=None):
    """d_state = g (q - X^T p),  d_x_i = -g p_i q,  d_beta = -g Omega(p) / beta^2, softmax: - g log(N) / beta^2 more."""
    x = pose(state, patterns, beta, mask=mask)
    p = weigh(x, separation).p
    count = x.keep.sum(axis=-1)
    g = np.where(count > 0, d_out, 0)[..., None]
    size = sep.omega(separation, p) + (np.log(np.maximum(count, 1).astype(p.dtype)) if separation == "softmax" else 0)
    d_beta = -(g[..., 0] * size / x.scale[..., 0] ** 2).sum(axis=-1)
    return EnergyGradients(
        att.sum_to(g * (x.query - p @ x.key), state.shape),
        att.sum_to(-att.transpose(p * g) @ x.query, patterns.shape),
        att.sum_to(d_beta, np.shape(beta)),
    )


def update(x, separation):
    """The problem one step later: the state has become X^T p."""
    return x._replace(query=weigh(x, separation).p @ x.key)


def visited(state, patterns, beta, values=None, *, separation="softmax", steps=1, mask=None):
    """The problems that the steps see: their states are q_0, ..., q_(steps - 1)."""
    path = [pose(state, patterns, beta, values, mask)]
    for _ in range(steps - 1):
        path.append(update(path[-1], separation))
    return path


def retrieve(
    state, patterns, beta, values=None, *, separation="softmax", steps=1, tol=None, mask=None, default_tol=None
):
    """At most `steps` separations, the last of which reads the values if there are any; everything known at the end.

    With tol, or with steps=None, a row stands still once its state moved no more than tol.
    """
    default = DEFAULT_TOL["float32" if state.dtype == np.float32 else "float64"] if default_tol is None else default_tol
    x = pose(state, patterns, beta, values, mask)
    reads = 0 if values is None else 1
    stop = default if steps is None and tol is None else tol
    used, moved = np.zeros(x.query.shape[:-1], np.int64), np.full(x.query.shape[:-1], np.inf)
    running = np.ones(used.shape, bool)
    for _ in range((STEP_LIMIT if steps is None else steps) - reads):
        new = update(x, separation).query
        change = np.sqrt(((new - x.query) ** 2).sum(axis=-1))
        x = x._replace(query=np.where(running[..., None], new, x.query))
        moved, used = np.where(running, change, moved), used + running
        if stop is not None:
            running = running & ~(moved <= stop)
    out = x.query if values is None else weigh(x, separation).p @ x.value
    last = x.query, patterns, beta, separation, mask
    return Info(out, energy(*last), lse(*last), used + reads, moved <= (default if stop is None else stop))


def retrieve_gradients(
    state, patterns, beta, d_out, values=None, *, separation="softmax", steps=1, mask=None, absolute=False
):
    """Gradients of sum(d_out * retrieve), unrolled over the steps and taken in reverse."""
    g, d_patterns, d_beta, d_values = d_out, 0, 0, None
    path = visited(state, patterns, beta, values, separation=separation, steps=steps, mask=mask)
    for t, x in reversed(list(enumerate(path))):
        reads_values = values is not None and t == steps - 1
        d = read_gradients(x if reads_values else x._replace(value=x.key), separation, g, "dot", absolute)
        g, d_beta = d.query, d_beta + d.scale
        d_patterns = d_patterns + d.key + (0 if reads_values else d.value)
        d_values = att.sum_to(d.value, values.shape) if reads_values else d_values
    return RetrieveGradients(
        att.sum_to(g, state.shape), att.sum_to(d_patterns, patterns.shape), att.sum_to(d_beta, np.shape(beta)), d_values
    )


def jacobian(x, separation):
    """(..., n, d, d): J_ab = d(update_a) / d(state_b), one row from each cotangent e_a."""
    d, x = x.query.shape[-1], x._replace(value=x.key)
    rows = [
        read_gradients(x, separation, np.broadcast_to(e, x.query.shape)).query for e in np.eye(d, dtype=x.query.dtype)
    ]
    return np.stack(rows, axis=-2)


def implicit_gradients(fixed, patterns, beta, d_out, values=None, *, separation="softmax", mask=None):
    """Gradients of retrieve(steps=None), where q = f(q): those of one update with the cotangent (I - J)^-T g, and zero for
    the state, which only chooses the fixed point. With values g comes through the last read."""
    x = pose(fixed, patterns, beta, values, mask)
    g, d_patterns, d_beta, d_values = d_out, 0, 0, None
    if values is not None:
        d = read_gradients(x, separation, d_out)
        g, d_patterns, d_beta, d_values = d.query, d.key, d.scale, att.sum_to(d.value, values.shape)
    system = np.eye(fixed.shape[-1]) - att.transpose(jacobian(x, separation)).astype(np.float64)
    adjoint = np.linalg.solve(system, np.asarray(g, np.float64)[..., None])[..., 0].astype(x.query.dtype)
    d = read_gradients(x._replace(value=x.key), separation, adjoint)
    return RetrieveGradients(
        np.zeros_like(fixed),
        att.sum_to(d_patterns + d.key + d.value, patterns.shape),
        att.sum_to(d_beta + d.scale, np.shape(beta)),
        d_values,
    )
