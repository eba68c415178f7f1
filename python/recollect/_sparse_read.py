# SPDX-License-Identifier: BSD-3-Clause
"""The sparse read of sparse attentive backtracking, usable over any memory."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class SparseRead(NamedTuple):
    """What `sparse_read` returns."""

    value: NDArray[Any]
    indices: NDArray[np.int64]
    weights: NDArray[Any]


def project(memory: ArrayLike, w1: ArrayLike) -> NDArray[Any]:
    """W1 m for every memory, to be computed once, when it is stored: memory (..., N, d), w1 (A, d) -> keys (..., N, A)."""
    raise NotImplementedError


def sparse_read(
    query: ArrayLike,
    memory: ArrayLike,
    *,
    k_top: int | None,
    score: Literal["additive", "dot", "bilinear"] = "additive",
    w1: ArrayLike | None = None,
    w2: ArrayLike | None = None,
    w3: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> SparseRead:
    """Read a few memories: those with the largest scores, weighted by how far they are above the next one.

    ::

        a_i = w3 . tanh(w1 m_i + w2 q)  (additive),   q . m_i  (dot),   q . weight m_i  (bilinear)
        u_i = max(0, a_i - the (k_top + 1)-th largest),   w_i = u_i / sum_j u_j,   value = sum_i w_i m_i

    With at most `k_top` memories w is the softmax of a over all of them; if all that are kept tie with the threshold w is uniform over
    them; without memories the value is 0. Among equal scores the lower index comes first.

    Parameters
    ----------
    query : array (..., n, e), float32 or float64
        Queries, one a row. Leading axes broadcast as in `numpy.matmul`.
    memory : array (..., N, d)
        Memories, one a row.
    k_top : int or None
        How many memories are read, 1 or more; None: all.
    score : 'additive', 'dot' or 'bilinear'
        How a query is compared with a memory.
    w1 : array (A, d)
        Of the additive score; not needed if `keys` is given.
    w2 : array (A, e)
        Of the additive score.
    w3 : array (A,)
        Of the additive score.
    weight : array (e, d)
        Of the bilinear score.
    keys : array (..., N, A), optional
        ``project(memory, w1)``, if it was computed when the memories were stored.
    lengths : int array broadcast to the leading axes, optional
        Only the first so many memories are read.

    Returns
    -------
    SparseRead
        A named tuple: value (..., n, d); indices (..., n, k), int64, and weights (..., n, k), k = min(k_top, N). Memories are listed in
        falling order of their score, or in the order of their index where all are read; -1 and 0 fill places beyond `lengths`.

    Raises
    ------
    ValueError
        Shapes that do not fit, k_top below 1, a parameter that the score needs and that is not given or the other way round.
    TypeError
        A dtype that is no number, `lengths` that are no whole numbers.

    Notes
    -----
    Cost: O(n N A) for the additive score and O(n N d) for the others, O(k d) for what is read; the pullback of `recollect.vjp`, a function of
    d_value, costs O(n k (A + d)) and touches only the memories that were read and the one that gave the threshold. It returns gradients
    of query, memory and the parameters that were given (of keys instead of w1, if they were). Where softmax or equal scores leave no
    threshold it has none. Ke et al. 2018, https://arxiv.org/abs/1809.03702, algorithm 1.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> read = rc.backtracking.sparse_read(np.ones((1, 1)), [[1.0], [2.0], [4.0]], k_top=2, score="dot")
    >>> read.value, read.indices, read.weights
    (array([[3.5]]), array([[2, 1]]), array([[0.75, 0.25]]))
    """
    raise NotImplementedError
