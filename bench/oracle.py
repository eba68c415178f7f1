"""What is right, written from the equations in plain NumPy and blockwise, so that it fits in memory.

Nothing here imports the library. Arithmetic is one precision above the case: float64 for float32 and
extended precision for float64. Only a few rows are computed, because rows do not depend on each other;
the stored patterns are always all of them.

    retrieve   q <- sum_i p_i x_i,  p = softmax_i(beta q . x_i)      (Ramsauer et al. 2021, eq. 3)
    energy     E = -lse(beta, X q) + |q|^2 / 2 + log(N) / beta + max_i |x_i|^2 / 2      (eq. 2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_BLOCK = 16384  # stored patterns at a time


@dataclass(frozen=True)
class Truth:
    """What was computed here, and where it lies in the results: parts[i] = (index into result i, values)."""

    parts: tuple[tuple[Any, np.ndarray], ...]
    largest_score: float

    def error_of(self, results: tuple[np.ndarray, ...]) -> float:
        """The largest relative error over the results; each keeps its own norm."""
        pairs = zip(results, self.parts, strict=True)
        return max(relative_error(result[index], values) for result, (index, values) in pairs)


def above(dtype: str) -> type:
    """The precision in which a result of this dtype is judged."""
    return np.longdouble if dtype == "float64" else np.float64


def some(count: int, wanted: int = 8) -> np.ndarray:
    """A few indices, evenly spread, with both ends: edges are where blocked kernels go wrong."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))


def relative_error(result: np.ndarray, truth: np.ndarray) -> float:
    """|result - truth| / |truth| over everything that was compared; infinite where anything is not finite."""
    difference = np.linalg.norm((np.asarray(result, truth.dtype) - truth).ravel().astype(np.float64))
    size = np.linalg.norm(truth.ravel().astype(np.float64))
    error = float(difference / size) if size else float(difference)
    return error if np.isfinite(error) else float("inf")


def read(queries, patterns, values, beta, dtype):
    """One softmax over all patterns, with a running maximum. -> (read-out, lse of the scores, largest |score|)"""
    q = queries.astype(dtype)
    peak = np.full((len(q), 1), -np.inf, dtype)
    total = np.zeros((len(q), 1), dtype)
    out = np.zeros((len(q), values.shape[1]), dtype)
    largest = 0.0
    for start in range(0, len(patterns), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = dtype(beta) * (q @ patterns[block].astype(dtype).T)
        largest = max(largest, float(np.abs(scores).max()))
        new_peak = np.maximum(peak, scores.max(axis=1, keepdims=True))
        weights = np.exp(scores - new_peak)
        shrink = np.exp(peak - new_peak)
        total = total * shrink + weights.sum(axis=1, keepdims=True)
        out = out * shrink + weights @ values[block].astype(dtype)
        peak = new_peak
    return out / total, (peak + np.log(total))[:, 0], largest


def retrieve(queries, patterns, values, beta, steps, dtype):
    """`steps` softmaxes; all but the last read the patterns themselves. -> (read-out, largest |score|)"""
    state, largest = queries, 0.0
    for step in range(steps):
        read_from = values if step == steps - 1 else patterns
        state, _, size = read(state, patterns, read_from, beta, dtype)
        largest = max(largest, size)
    return state, largest


def energy(queries, patterns, beta, dtype):
    """-> (energy of each query, largest |score|)"""
    _, lse, largest = read(queries, patterns, patterns[:, :1], beta, dtype)
    q = queries.astype(dtype)
    blocks = (patterns[start : start + _BLOCK] for start in range(0, len(patterns), _BLOCK))
    longest = max(np.square(block.astype(dtype)).sum(axis=1).max() for block in blocks)
    constant = np.log(dtype(len(patterns))) / dtype(beta) + longest / 2
    return -lse / dtype(beta) + np.square(q).sum(axis=1) / 2 + constant, largest


def retrieve_backward(queries, patterns, beta, d_out, rows, columns, dtype):
    """Gradients of one softmax with keys = values: rows of d_state and of d_patterns. -> (.., .., largest |score|)

    With s = beta q . x, p = softmax(s), dp_i = g . x_i:   ds_i = p_i (dp_i - p . dp),
    d_q = beta sum_i ds_i x_i,   d_x_i = sum_q (p_i g + beta ds_i q).
    """
    q, g = queries.astype(dtype), d_out.astype(dtype)
    out, lse, largest = read(q, patterns, patterns, beta, dtype)
    mean = np.sum(g * out, axis=1, keepdims=True)  # p . dp, because sum_i p_i x_i is the read-out

    def weights_and_ds(which_queries, which_patterns):
        x = patterns[which_patterns].astype(dtype)
        p = np.exp(dtype(beta) * (q[which_queries] @ x.T) - lse[which_queries][:, None])
        return p, p * (g[which_queries] @ x.T - mean[which_queries]), x

    d_state = np.zeros((len(rows), q.shape[1]), dtype)
    for start in range(0, len(patterns), _BLOCK):
        _, ds, x = weights_and_ds(rows, slice(start, start + _BLOCK))
        d_state += dtype(beta) * (ds @ x)
    p, ds, _ = weights_and_ds(slice(None), columns)
    return d_state, p.T @ g + dtype(beta) * (ds.T @ q), largest
