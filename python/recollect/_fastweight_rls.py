# SPDX-License-Identifier: BSD-3-Clause
"""Recursive least squares as a fast weight rule: the gains first, then the scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array
from ._fastweight import FastWeights, Rule
from ._fastweight_parts import Arguments, Parts, problem, require, run, unchanged

__all__ = ["recursive_least_squares", "rls_gains"]


def rls_gains(key: ArrayLike, *, forget: float = 1.0, ridge: float = 1.0) -> NDArray[Any]:
    """Gains of recursive least squares: g_t = P k_t / (gamma + k_t^T P k_t), P <- (P - g_t (P k_t)^T) / gamma, from P = I / ridge.

    Parameters
    ----------
    key : array (..., T, K)
        Keys.
    forget : float
        gamma, in (0, 1]: the weight of a token falls by it with every later one.
    ridge : float
        Weight of the penalty on the solution, above 0.

    Examples
    --------
    >>> import recollect as rc
    >>> rc.fastweight.rls_gains([[1.0], [1.0]])
    array([[0.5       ],
           [0.33333333]])
    """
    return gains_of("fastweight.rls_gains", key, forget, ridge)


def gains_of(op: str, key: ArrayLike, forget: float, ridge: float) -> NDArray[Any]:
    """`rls_gains` for the op that a wrong call is to name."""
    rows = _array.floating(op, "key", key)
    if rows.ndim < 2:
        raise ValueError(f"{op}: key has shape {rows.shape}; expected (..., T, K)")
    if not 0 < forget <= 1:
        raise ValueError(f"{op}: forget is {forget!r}; expected a number above 0 and at most 1")
    if not 0 < ridge < np.inf:
        raise ValueError(f"{op}: ridge is {ridge!r}; expected a positive finite number")
    gains = np.empty(rows.shape, rows.dtype)
    P = np.broadcast_to(np.eye(rows.shape[-1]) / ridge, (*rows.shape[:-2], rows.shape[-1], rows.shape[-1])).copy()
    for t in range(rows.shape[-2]):
        k = rows[..., t, :].astype(np.float64)
        Pk = np.einsum("...ij,...j->...i", P, k)
        g = Pk / (forget + np.einsum("...i,...i->...", k, Pk))[..., None]
        P = (P - g[..., :, None] * Pk[..., None, :]) / forget
        gains[..., t, :] = g
    return gains


def recursive_least_squares(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    forget: float = 1.0,
    ridge: float = 1.0,
    scale: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | FastWeights:
    """The least squares memory: S_t is the ridge regression from all keys so far to their values, S = S + g_t (v_t - S^T k_t)^T.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    forget : float
        gamma of `rls_gains`.
    ridge : float
        Of `rls_gains`.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    chunk : int, optional
        How many tokens are prepared together; results differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.standard_normal((2, 9, 3))
    >>> state = rc.fastweight.recursive_least_squares(k, k, v, ridge=0.5, return_state=True).state
    >>> bool(np.allclose(state, np.linalg.solve(k.T @ k + 0.5 * np.eye(3), k.T @ v)))
    True
    """
    return run(recursive_least_squares_parts, locals())


def recursive_least_squares_parts(given: Arguments) -> Parts:
    op = "fastweight.recursive_least_squares"
    require(op, given, "query", "key", "value")
    key = _array.floating(op, "key", given["key"])
    gains = gains_of(op, key, given["forget"], given["ridge"])
    operands = {"query": given["query"], "key": gains, "value": given["value"], "a": None, "b": -key}
    return problem(Rule(op, "general"), {**given, "state": None}, operands), unchanged
