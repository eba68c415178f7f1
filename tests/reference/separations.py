"""An oracle for separations: how scores become weights. separated.py has the networks that are made with them.

It imports nothing of recollect. It is slow and plain on purpose: every formula is a line, and every
function works in whatever number type it is given, so that np.longdouble judges float64.

    weights  p(z) = argmax_p p . z - Omega(p)        potential  Omega*(z) = p . z - Omega(p)        grad Omega* = p

    softmax           p = exp(z - lse z)                                        Omega = sum p log p
    sparsemax         p = relu(z - tau), sum p = 1                              Omega = (|p|^2 - 1) / 2
    entmax, a         p = relu((a - 1) z - tau)^(1 / (a - 1)), sum p = 1        Omega = (sum p^a - 1) / (a (a - 1))
    entmax15          entmax with a = 1.5
    normmax, a        y = relu(z - tau)^(1 / (a - 1)), sum y^a = 1, p = y / sum y        Omega = |p|_a - 1
    k_subset, k       p = clip(z - tau, 0, 1), sum p = k                        Omega = (|p|^2 - k) / 2
    hard              one at the largest, the lowest index among equals         Omega = 0 on the simplex
    top_k_softmax, k  softmax over the k largest, the lowest indices among equals
    linear            p = z                                                     Omega = |p|^2 / 2

A separation is a name, or (name, parameter). z and keep are (..., m); where keep is False z may be anything, and
that entry does not exist: its weight is zero, k_subset takes min(k, those that exist). No entry: weights zero, Omega* -inf.

Sources: Santos et al., "Hopfield-Fenchel-Young networks", arXiv 2411.08590; Martins and Astudillo 2016 (sparsemax, by
sorting); Peters et al. 2019 (1.5-entmax, by sorting); Ramsauer et al. 2020.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BISECTIONS = 80  # the largest weight lies between 1 / m and 1: more than the digits of any number type here

# name -> name of its parameter
PARAMETERS = {
    "softmax": None, "sparsemax": None, "entmax15": None, "entmax": "alpha", "normmax": "alpha",
    "k_subset": "k", "hard": None, "top_k_softmax": "k", "linear": None,
}  # fmt: skip


class Weights(NamedTuple):
    p: np.ndarray  # (..., m)
    potential: np.ndarray  # (...): Omega*(z)


def parse(separation):
    return (separation, None) if isinstance(separation, str) else tuple(separation)


def tsallis(separation):
    """alpha of entmax, however it is called; None of the others."""
    name, parameter = parse(separation)
    return {"sparsemax": 2, "entmax15": 1.5, "entmax": parameter}.get(name)


def margin(separation):
    """m: x_i is what one step retrieves, exactly, if and only if beta (x_i - x_j) . q >= m for all j."""
    name, parameter = parse(separation)
    if tsallis(separation) is not None:
        return 1 / (tsallis(separation) - 1)
    if name == "normmax" or (name == "k_subset" and parameter == 1):
        return 1.0
    return 0.0 if name == "hard" or (name == "top_k_softmax" and parameter == 1) else np.inf


# -------------------------------------------------------------------------------------------------- thresholds


def existing(z, keep):
    return np.ones(z.shape, bool) if keep is None else np.broadcast_to(keep, z.shape)


def from_top(z, keep):
    """Scores minus the largest of their row, -inf where there is nothing, and the largest."""
    top = np.where(keep, z, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(over="ignore"):  # so far below that it counts as -inf
        return np.where(keep, np.where(keep, z, 0) - top, -np.inf), top


def sorted_sparsemax(z):
    """tau from scores whose largest is 0: nothing at or below -1 has weight."""
    s = -np.sort(-np.maximum(z, -2), axis=-1)
    total, rank = np.cumsum(s, axis=-1), np.arange(1, z.shape[-1] + 1)
    size = (1 + rank * s > total).sum(axis=-1, keepdims=True)
    return (np.take_along_axis(total, size - 1, -1) - 1) / size


def sorted_entmax15(z):
    """The threshold of z: (z / 2 - tau)^2 sums to 1 over the largest r of them, r as large as leaves all above tau."""
    s = -np.sort(-np.maximum(z / 2, -2), axis=-1)
    rank = np.arange(1, z.shape[-1] + 1)
    mean = np.cumsum(s, axis=-1) / rank
    spare = (1 - (np.cumsum(s * s, axis=-1) - rank * mean * mean)) / rank
    tau = mean - np.sqrt(np.maximum(spare, 0))
    size = np.maximum(((tau <= s) & (spare >= 0)).sum(axis=-1, keepdims=True), 1)
    return 2 * np.take_along_axis(tau, size - 1, -1)


def bisected(u, alpha, power):
    """tau in sum relu(u - tau)^(power / (alpha - 1)) = 1, for u whose largest is 0.

    The largest term is y^power, y = (-tau)^(1 / (alpha - 1)): y is what is halved, since tau itself may be tiny.
    """
    low, high = np.full((*u.shape[:-1], 1), 1 / u.shape[-1], u.dtype), np.ones((*u.shape[:-1], 1), u.dtype)
    for _ in range(BISECTIONS):
        y = (low + high) / 2
        with np.errstate(under="ignore"):
            small = (np.maximum(u + y ** (alpha - 1), 0) ** (power / (u.dtype.type(alpha) - 1))).sum(
                -1, keepdims=True
            ) < 1
        low, high = np.where(small, y, low), np.where(small, high, y)
    return -(high ** (alpha - 1))


def sorted_k_subset(z, k):
    """z - tau of one row. Where the k-th largest score is one above the next, k have weight 1 at every tau between: the middle.
    Else sum clip(z - tau, 0, 1) falls through k between the k-th largest less 1 and that score, linear between corners z_i - 1, z_i.
    """
    if k >= len(z):
        return np.full(len(z), np.inf, z.dtype)
    order = np.sort(z)[::-1]
    with np.errstate(over="ignore"):
        offset, following = z - order[k - 1], order[k] - order[k - 1]
    if following <= -1:
        return offset - (following - 1) / 2
    s = np.sort(np.clip(offset, -1, 1))
    before = np.concatenate([np.zeros(1, s.dtype), np.cumsum(s)])
    corners = np.unique(np.concatenate([s - 1, s]))
    corners = corners[(corners >= -1) & (corners <= 0)]
    low, high = np.searchsorted(s, corners, "right"), np.searchsorted(s, corners + 1, "left")
    sums = len(s) - high + before[high] - before[low] - corners * (high - low)
    # A corner whose sum is k but for rounding may lie on either side: tau comes out the same.
    i = min(int(np.nonzero(sums >= k)[0][-1]), len(corners) - 2)
    middle = (corners[i] + corners[i + 1]) / 2
    inside = (s > middle) & (s < middle + 1)
    return offset - (s[inside].sum() - (k - (s >= middle + 1).sum())) / inside.sum()


def levels(separation, z, keep=None):
    """w = z - threshold: how far above the score at which weights begin, -inf where nothing is. None where there is no threshold."""
    if tsallis(separation) is None and parse(separation)[0] not in ("normmax", "k_subset"):
        return None
    z = np.ascontiguousarray(z)
    return found_levels(separation, z.dtype, z.shape, z.tobytes(), existing(z, keep).tobytes())


@lru_cache(maxsize=16)
def found_levels(separation, dtype, shape, scores, kept):
    """A problem is asked for its levels several times, and bisection is slow: it remembers the last ones."""
    z, keep = np.frombuffer(scores, dtype).reshape(shape), np.frombuffer(kept, bool).reshape(shape)
    w = find_levels(separation, z, keep)
    w.setflags(write=False)
    return w


def find_levels(separation, z, keep):
    name, parameter = parse(separation)
    shifted, _ = from_top(z, keep)
    if z.shape[-1] == 0:
        return shifted
    if name == "k_subset":
        w = np.full(z.shape, -np.inf, z.dtype)
        for row in np.ndindex(z.shape[:-1]):
            there = keep[row]
            if there.any():
                w[row][there] = sorted_k_subset(z[row][there], parameter)
        return w
    if name == "sparsemax":
        return shifted - sorted_sparsemax(shifted)
    if name == "entmax15":
        return shifted - sorted_entmax15(shifted)
    if name == "normmax":
        return shifted - bisected(np.maximum(shifted, -2), parameter, parameter)
    rate = z.dtype.type(parameter) - 1
    return shifted - bisected(np.maximum(rate * shifted, -2), parameter, 1) / rate


def law(separation, w):
    """The weight of a level, before normmax divides by the sum."""
    name, parameter = parse(separation)
    if name == "k_subset":
        return np.clip(w, 0, 1)
    alpha = w.dtype.type(parameter if name == "normmax" else tsallis(separation))
    rate = 1 if name == "normmax" else alpha - 1
    with np.errstate(under="ignore"):
        return np.maximum(rate * w, 0) ** (1 / (alpha - 1))


def chosen(separation, z, keep):
    """The entries that hard and top_k_softmax look at: the largest, the lowest index among equals."""
    name, parameter = parse(separation)
    order = np.argsort(-np.where(keep, z, -np.inf), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    return keep & (rank < (1 if name == "hard" else parameter))


# -------------------------------------------------------------------------------------- weights and potential


def omega(separation, p):
    """Omega of weights that lie where it is finite."""
    name, parameter = parse(separation)
    alpha = tsallis(separation)
    if alpha is not None:  # sum p (p^(a - 1) - 1): where a is near 1 it forgives a sum that is off by rounding
        rate = p.dtype.type(alpha) - 1
        return (p * np.expm1(rate * np.log(np.where(p > 0, p, 1)))).sum(axis=-1) / (rate * (rate + 1))
    if name == "normmax":
        return (p**parameter).sum(axis=-1) ** (1 / p.dtype.type(parameter)) - 1
    if name in ("softmax", "top_k_softmax"):
        return (p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    squares = (p * p).sum(axis=-1)
    # fewer than k: all of them, and then min(k, how many) is what they sum to
    return {"k_subset": (squares - p.sum(axis=-1)) / 2, "linear": squares / 2, "hard": 0 * squares}[name]


def exponentials(shifted):
    with np.errstate(under="ignore"):
        e = np.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def separate(separation, z, keep=None):
    """Weights and potential of every row."""
    keep = existing(z, keep)
    name, parameter = parse(separation)
    some = keep.any(axis=-1)
    if name == "linear":
        p = np.where(keep, z, 0)
        return Weights(p, np.where(some, (p * p).sum(axis=-1) / 2, -np.inf))
    shifted, top = from_top(z, keep)
    if name == "softmax":
        p = exponentials(shifted)
    elif name in ("hard", "top_k_softmax"):
        p = exponentials(np.where(chosen(separation, z, keep), shifted, -np.inf))
    else:
        p = np.where(keep, law(separation, levels(separation, z, keep)), 0)
        total = p.sum(axis=-1, keepdims=True)
        p = p / np.where(total > 0, total, 1) if name == "normmax" else p
    below = (p * np.where(p > 0, shifted, 0)).sum(axis=-1)
    whole = np.minimum(parameter, keep.sum(axis=-1)) if name == "k_subset" else 1
    return Weights(p, np.where(some, top[..., 0] * whole + below - omega(separation, p), -np.inf))


def pullback(separation, p, g, absolute=False):
    """dz of sum(g * p), from the weights alone and over their support alone.

    With absolute=True every difference becomes a sum of magnitudes: the size that rounding errors scale with.
    """
    name, parameter = parse(separation)
    sign = 1 if absolute else -1
    if name in ("hard", "linear"):
        return g * (name == "linear") + 0 * p
    if name == "k_subset":
        inside = (p > 0) & (p < 1)
        count = np.maximum(inside.sum(axis=-1, keepdims=True), 1)
        return np.where(inside, g + sign * np.where(inside, g, 0).sum(axis=-1, keepdims=True) / count, 0)
    there, alpha = p > 0, p.dtype.type(1 if name in ("softmax", "top_k_softmax") else tsallis(separation) or parameter)
    if name == "normmax":
        y = p / np.maximum((p**alpha).sum(axis=-1, keepdims=True) ** (1 / alpha), np.finfo(p.dtype).tiny)
        s = np.where(there, np.where(there, y, 1) ** (2 - alpha) / (alpha - 1), 0)
        total = np.where(there.any(axis=-1, keepdims=True), y.sum(axis=-1, keepdims=True), 1)
        gy = (g + sign * (g * p).sum(axis=-1, keepdims=True)) / total
        return s * gy + sign * p * (s * gy).sum(axis=-1, keepdims=True)
    s = np.where(there, np.where(there, p, 1) ** (2 - alpha), 0)
    total = s.sum(axis=-1, keepdims=True)
    return s * (g + sign * (s * g).sum(axis=-1, keepdims=True) / np.where(total > 0, total, 1))


# ------------------------------------------------------------------------------ what rounding of scores may do


def gap(separation, z, keep=None):
    """(...): how far the scores are from where a weight changes its law; inf where none does."""
    keep = existing(z, keep)
    name, parameter = parse(separation)
    if name in ("softmax", "linear"):
        return np.full(z.shape[:-1], np.inf)
    if name in ("hard", "top_k_softmax"):
        first = chosen(separation, z, keep)
        worst = np.where(first, z, np.inf).min(axis=-1, initial=np.inf)
        return worst - np.where(keep & ~first, z, -np.inf).max(axis=-1, initial=-np.inf)
    w = levels(separation, z, keep)
    near = np.minimum(np.abs(w), np.abs(w - 1)) if name == "k_subset" else np.abs(w)
    return np.where(keep, near, np.inf).min(axis=-1, initial=np.inf)


def reach(separation, z, keep=None):
    """(...): the size of the numbers that weights are made from, in the units of scores, once the largest is taken off."""
    keep = existing(z, keep)
    w = levels(separation, z, keep)
    if w is None:
        return np.ones(z.shape[:-1])
    largest = np.where(keep, w, 0).max(axis=-1, initial=0)
    return np.minimum(largest, 1) if parse(separation)[0] == "k_subset" else largest


def spread(separation, z, delta, keep=None):
    """(..., m): how far a weight may move where no score of its row moves by more than delta (...).

    The threshold moves by no more than delta then, and a weight rises with its score and falls with the threshold.
    """
    keep, delta = existing(z, keep), np.asarray(delta)[..., None]
    name, _ = parse(separation)
    p = separate(separation, z, keep).p
    if name == "linear":
        return keep * delta
    if name == "softmax":
        return np.minimum(p * np.expm1(2 * delta), 1)
    if name in ("hard", "top_k_softmax"):
        unsure = (gap(separation, z, keep)[..., None] <= 2 * delta) & keep
        least = np.where(chosen(separation, z, keep), z, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
        return np.where(unsure & (z >= least - 2 * delta), 1, np.minimum(p * np.expm1(2 * delta), 1))
    w = levels(separation, z, keep)
    moved = np.where(keep, law(separation, w + 2 * delta) - law(separation, w - 2 * delta), 0)
    if name != "normmax":
        return moved
    total = np.maximum(np.where(keep, law(separation, w), 0).sum(axis=-1, keepdims=True), 1)
    return np.minimum((moved + p * moved.sum(axis=-1, keepdims=True)) / total, 1)
