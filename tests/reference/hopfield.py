"""An oracle for modern Hopfield energy and retrieval, written from the equations alone.

It imports nothing of recollect. It is slow and plain on purpose: every formula is a line, and every
function works in whatever number type it is given, so that np.longdouble judges float64.

    scores    z_i  = x_i . q                                 X: N stored patterns, q: state pattern
    weights   p    = softmax(beta z)                         over the admissible patterns
    lse            = log(sum_i exp(beta z_i)) / beta
    energy    E    = -lse + |q|^2 / 2 + log(N) / beta + M^2 / 2,  M = max_i |x_i|
    update    q'   = sum_i p_i x_i                           the last step may read values instead

Shapes: state (..., n, d), patterns (..., N, d), values (..., N, e), mask (..., n, N) or (N,), beta a
number or an array over the leading axes. N and M count admissible patterns only. A row that admits no
pattern gives zeros, lse = -inf, energy = +inf and zero gradients.

Source: Ramsauer et al., "Hopfield Networks is All You Need", equations 2 to 5 and Lemma A1.
"""

from typing import NamedTuple

import numpy as np

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


class Weights(NamedTuple):
    z: np.ndarray  # (..., n, N) scores
    p: np.ndarray  # (..., n, N) softmax(beta z), zero where not admissible
    keep: np.ndarray  # (..., n, N) admissible?
    count: np.ndarray  # (..., n) how many are admissible: the N of that row
    lse: np.ndarray  # (..., n)
    mean_lse: np.ndarray  # (..., n) lse - log(N) / beta, without the cancellation of the two


def transpose(a):
    return np.swapaxes(a, -1, -2)


def per_row(beta, dtype):
    """beta over the leading axes, made ready to multiply (..., n, N)."""
    return np.asarray(beta, dtype)[..., None, None]


def sum_to(gradient, shape):
    """Sums a gradient over the axes along which its operand was broadcast."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=stretched, keepdims=True).reshape(shape)


def spread(state, patterns, beta, values=None, mask=None):
    """The state patterns over the leading axes that all operands make together."""
    leads = [a.shape[:-2] for a in (state, patterns, values) if a is not None]
    batch = np.broadcast_shapes(*leads, np.shape(beta), np.shape(mask)[:-2])
    return np.broadcast_to(state, batch + state.shape[-2:])


def weigh(state, patterns, beta, mask=None):
    """Scores, softmax weights and log-sum-exp of every state pattern."""
    z = state @ transpose(patterns)
    b = per_row(beta, z.dtype)
    keep = np.ones((), bool) if mask is None else np.asarray(mask, bool)
    z, b, keep = np.broadcast_arrays(z, b, np.broadcast_to(keep, np.broadcast_shapes(keep.shape, z.shape)))
    count = keep.sum(axis=-1)
    if z.shape[-1] == 0:
        lowest = np.full(z.shape[:-1], -np.inf, z.dtype)
        return Weights(z, z, keep, count, lowest, lowest)
    b = b[..., :1]
    top = np.where(keep, z, -np.inf).max(axis=-1, keepdims=True)
    top = np.where(count[..., None] > 0, top, 0)
    # A difference that leaves the number range still has the right limit: exp(-inf) = 0.
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        gap = np.where(keep, b * np.where(keep, z - top, 0), -np.inf)
        e = np.exp(gap)
        total = e.sum(axis=-1, keepdims=True)
        p = e / np.where(total > 0, total, 1)
        n = np.maximum(count, 1)[..., None].astype(z.dtype)
        # log of the mean of exp(gap): log1p(mean(expm1)) is exact where beta is tiny
        small = np.where(keep, np.expm1(gap), 0).sum(axis=-1, keepdims=True) / n
        log_mean = np.where(small > -0.5, np.log1p(np.maximum(small, -0.5)), np.log(total / n))
        lse = (top + np.log(total) / b)[..., 0]
        mean_lse = (top + log_mean / b)[..., 0]
    empty = count == 0
    return Weights(z, p, keep, count, np.where(empty, -np.inf, lse), np.where(empty, -np.inf, mean_lse))


def lse(state, patterns, beta, mask=None):
    """(..., n): log(sum_i exp(beta x_i . q)) / beta."""
    return weigh(state, patterns, beta, mask).lse


def energy(state, patterns, beta, mask=None):
    """(..., n): -lse + |q|^2 / 2 + log(N) / beta + M^2 / 2, and +inf where nothing is admissible."""
    w = weigh(state, patterns, beta, mask)
    squares = np.where(w.keep, (patterns * patterns).sum(axis=-1)[..., None, :], 0)
    largest = squares.max(axis=-1, initial=0)
    return (state * state).sum(axis=-1) / 2 + largest / 2 - w.mean_lse


def step(state, patterns, beta, values=None, mask=None):
    """One softmax: softmax(beta X q) applied to the values, or to the patterns if there are none."""
    return weigh(state, patterns, beta, mask).p @ (patterns if values is None else values)


def retrieve(state, patterns, beta, values=None, steps=1, tol=None, mask=None, default_tol=None):
    """Iterates the update row by row; returns everything that is known at the end, as Info.

    steps softmaxes at most, the last of which reads the values if there are any. With tol, or with
    steps=None, a row stands still once its state moved no more than tol. default_tol is the tol that
    stands for None (steps=None, and `converged` of a fixed number of steps).
    """
    if default_tol is None:
        default_tol = DEFAULT_TOL["float32" if state.dtype == np.float32 else "float64"]
    state = spread(state, patterns, beta, values, mask)
    reads = 0 if values is None else 1
    updates = (STEP_LIMIT if steps is None else steps) - reads
    stop = default_tol if steps is None and tol is None else tol

    rows = state.shape[:-1]
    used = np.zeros(rows, np.int64)
    moved = np.full(rows, np.inf)
    running = np.ones(rows, bool)
    for _ in range(updates):
        new = step(state, patterns, beta, mask=mask)
        change = np.sqrt(((new - state) ** 2).sum(axis=-1))
        state = np.where(running[..., None], new, state)
        moved = np.where(running, change, moved)
        used = used + running
        if stop is not None:
            running = running & ~(moved <= stop)
            if not running.any():
                break

    out = state if values is None else step(state, patterns, beta, values, mask)
    converged = moved <= (default_tol if stop is None else stop)
    return Info(out, energy(state, patterns, beta, mask), lse(state, patterns, beta, mask), used + reads, converged)


def jacobian(state, patterns, beta, mask=None):
    """(..., n, d, d): d(update)/d(state) = beta X (diag(p) - p p^T) X^T = beta Cov_p[x]."""
    w = weigh(state, patterns, beta, mask)
    centred = patterns[..., None, :, :] - (w.p @ patterns)[..., None, :]
    return per_row(beta, w.z.dtype)[..., None] * (transpose(centred) @ (w.p[..., None] * centred))


def energy_gradients(state, patterns, beta, d_out, mask=None):
    """Gradients of sum(d_out * energy); log(N) / beta and M^2 / 2 are constants of the patterns.

    d_state = g (q - X p),  d_x_i = -g p_i q,  d_beta = g ((lse - sum_i p_i z_i) / beta - log(N) / beta^2)
    """
    w = weigh(state, patterns, beta, mask)
    some = w.count > 0
    g = np.where(some, d_out, 0)[..., None]
    d_state = g * (state - w.p @ patterns)
    d_patterns = -transpose(w.p * g) @ state
    free = np.where(some, w.mean_lse, 0) - (w.p * w.z).sum(axis=-1)
    d_beta = (g[..., 0] * free / per_row(beta, w.z.dtype)[..., 0]).sum(axis=-1)
    return EnergyGradients(
        sum_to(d_state, state.shape), sum_to(d_patterns, patterns.shape), sum_to(d_beta, np.shape(beta))
    )


def step_gradients(state, patterns, beta, d_out, values=None, mask=None, absolute=False):
    """Gradients of one softmax, not yet summed over broadcast axes: state, keys, beta, values.

    dp_i = g . v_i;  dz = beta p (dp - p . dp);  d_state = X dz;  d_x_i = dz_i q;  d_v_i = p_i g;
    d_beta = sum_i z_i p_i (dp_i - p . dp)

    With absolute=True every difference becomes a sum of magnitudes: the size that rounding errors scale with.
    """
    w = weigh(state, patterns, beta, mask)
    read = patterns if values is None else values
    if absolute:
        state, patterns, read, d_out = (np.abs(a) for a in (state, patterns, read, d_out))
    dp = d_out @ transpose(read)
    mean = (w.p * dp).sum(axis=-1, keepdims=True)
    centred = w.p * (dp + mean if absolute else dp - mean)
    dz = per_row(beta, w.z.dtype) * centred
    z = state @ transpose(patterns) if absolute else w.z
    return dz @ patterns, transpose(dz) @ state, (z * centred).sum(axis=(-1, -2)), transpose(w.p) @ d_out


def retrieve_gradients(state, patterns, beta, d_out, values=None, steps=1, mask=None, absolute=False):
    """Gradients of sum(d_out * retrieve), unrolled over the steps and taken in reverse."""
    visited = [spread(state, patterns, beta, values, mask)]
    for _ in range(steps - 1):
        visited.append(step(visited[-1], patterns, beta, mask=mask))

    g, d_patterns, d_beta, d_values = d_out, 0, 0, None
    for t in reversed(range(steps)):
        read = values if t == steps - 1 else None
        g, d_keys, d_b, d_read = step_gradients(visited[t], patterns, beta, g, read, mask, absolute)
        d_patterns, d_beta = d_patterns + d_keys, d_beta + d_b
        if read is None:
            d_patterns = d_patterns + d_read
        else:
            d_values = sum_to(d_read, values.shape)
    return RetrieveGradients(
        sum_to(g, state.shape), sum_to(d_patterns, patterns.shape), sum_to(np.asarray(d_beta), np.shape(beta)), d_values
    )
