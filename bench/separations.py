"""Retrieval through separations that give weight to few patterns, against softmax on the same work: retrieve_sparsemax, ..."""

from __future__ import annotations

import numpy as np

from . import oracle
from .peers import peer

# op -> (separation, c, power, norm): p ~ relu(c z - tau)^power with sum relu(c z - tau)^norm = 1
SEPARATIONS = {
    "retrieve_sparsemax": ("sparsemax", 1.0, 1.0, 1.0),
    "retrieve_entmax15": ("entmax15", 0.5, 2.0, 2.0),
    "retrieve_normmax": (("normmax", 2.0), 1.0, 1.0, 2.0),
}


def ours(rc, case, x):
    retrieve, separation = rc.hopfield.retrieve, SEPARATIONS[case.op][0]
    return lambda: retrieve(x.state, x.patterns, beta=x.beta, separation=separation)


def truth(case, x):
    """tau by bisection, on a few rows."""
    _, c, power, norm = SEPARATIONS[case.op]
    rows, dtype = oracle.some(case.shape["n"]), oracle.above(case.dtype)
    patterns = x.patterns.astype(dtype)
    scores = dtype(x.beta) * (x.state[rows].astype(dtype) @ patterns.T)
    z = dtype(c) * (scores - scores.max(axis=1, keepdims=True))
    low, high = np.full((len(rows), 1), -1, dtype), np.zeros((len(rows), 1), dtype)
    for _ in range(80):
        middle = (low + high) / 2
        above = (np.maximum(z - middle, 0) ** dtype(norm)).sum(axis=1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    weights = np.maximum(z - low, 0) ** dtype(power)
    out = (weights / weights.sum(axis=1, keepdims=True)) @ patterns
    return oracle.Truth(((rows, out),), float(np.abs(scores).max()))


def _softmax(case, x):
    import recollect as rc

    return lambda: rc.hopfield.retrieve(x.state, x.patterns, beta=x.beta)


for _op in SEPARATIONS:
    peer(_op, "ours-softmax", same_job=False)(_softmax)
