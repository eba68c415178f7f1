# SPDX-License-Identifier: BSD-3-Clause
"""Pointer attention: the weights themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array
from . import _attention_operands as attention
from ._attention_vjp import collected
from ._core import core
from ._score import Score
from ._score_blocks import Scores, blocks, in_full
from ._separation import Separation, split
from ._vjp import pullback_of

Array = NDArray[Any]
Pullback = Callable[[Any], Any]


def point(
    query: ArrayLike,
    key: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    chosen: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    separation: Separation = "softmax",
    score: Score = "dot",
) -> Array:
    """The distribution of each query over keys: what a pointer network answers with.

    ::

        p = softmax(s),   s_j = scale q.k_j + bias_j,   over the keys that are admissible and not chosen yet

    Parameters
    ----------
    query : array (..., n, d), float32 or float64
        Queries q, one a row.
    key : array (..., m, d)
        Keys k_j.
    scale : float or array broadcast to the leading axes, optional
        What scores are multiplied by; as in `attend`.
    chosen : bool array, broadcast to (..., n, m), optional
        True where a key has been pointed at already; it gets no weight.
    mask : bool array, broadcast to (..., n, m), optional
        True where a query may attend to a key.
    bias : array, broadcast to (..., n, m), optional
        Added to the scores; -inf leaves a key out.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names.
    score : 'dot', 'cosine', 'gaussian', Bilinear or Additive
        How a query is compared with a key; as in `attend`. A pointer network has an additive score.

    Returns
    -------
    array (..., n, m)
        The weights p; zeros for a query that may attend to nothing.

    Raises
    ------
    ValueError
        A shape that does not fit, a scale that is not finite, an unknown separation or score.
    TypeError
        A dtype that is no number, a mask that is not bool, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(n m d) time; beyond the result, memory holds some million scores at a time. In `recollect.vjp` gradients are those of query, key,
    scale, bias and score. Vinyals et al. 2015, https://arxiv.org/abs/1506.03134, eq. 3.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> keys = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> rc.attention.point([[2.0, 2.0]], keys, scale=10.0, chosen=[False, False, True]).round(3)
    array([[0.5, 0.5, 0. ]])
    """
    return _point(query, key, scale, chosen, mask, bias, separation, score)[0]


@pullback_of(point, "attention")
def _point_rule(
    query: Any,
    key: Any,
    *,
    scale: Any = None,
    chosen: Any = None,
    mask: Any = None,
    bias: Any = None,
    separation: Any = "softmax",
    score: Any = "dot",
) -> tuple[Array, Pullback]:
    return _point(query, key, scale, chosen, mask, bias, separation, score)


def _point(
    query: Any, key: Any, scale: Any, chosen: Any, mask: Any, bias: Any, separation: Any, score: Any
) -> tuple[Array, Pullback]:
    op = "attention.point"
    given = attention.operands(op, query, in_full(op, "key", key), None, scale, False, mask, bias, None, score)
    if chosen is not None:
        given = given._replace(mask=_left(op, chosen, given.mask))
    compared, back = attention.compare(op, given)
    ops, heads = attention.grouped(op, compared)
    scores, named = Scores(op, ops), split(op, separation)
    weights: Array = np.empty(scores.shape, ops.dtype)
    for rows in blocks(scores.shape):
        core.weights(op, scores.of(rows), *named, weights[..., rows, :])
    outside = attention.ungrouped(scores.shape, heads, 2)

    def pullback(d_out: Any) -> Any:
        cotangent = _array.cotangent(op, d_out, outside, ops.dtype).reshape(scores.shape)
        again = Scores(op, ops)
        for rows in blocks(scores.shape):
            again.pull(rows, scores_back(again, rows, named, weights[..., rows, :], cotangent[..., rows, :]))
        return collected("PointGradients", given, compared, back, again.gradients(), scale is not None)

    return weights.reshape(outside).copy(), pullback


def scores_back(scores: Scores, rows: slice, named: tuple[str, float], weights: Array, d_weights: Array) -> Array:
    """d_z of a block of rows from its weights and their cotangents."""
    d_z: Array = np.empty(weights.shape, weights.dtype)
    core.weights_backward(scores.op, weights, *named, d_weights, d_z)
    # Only where weights are scores does a weight of zero not tell what was left out.
    return np.where(scores.of(rows) == -np.inf, weights.dtype.type(0), d_z) if named[0] == "linear" else d_z


def _left(op: str, chosen: Any, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    taken = _array.plain(op, "chosen", chosen)
    if taken.dtype != np.bool_:
        raise TypeError(f"{op}: chosen has dtype {taken.dtype}; expected bool, True where a key has been chosen")
    if mask is None:
        return ~taken
    try:
        left: NDArray[np.bool_] = mask & ~taken
    except ValueError:
        raise ValueError(
            f"{op}: chosen has shape {taken.shape}; expected one that broadcasts with mask {mask.shape}"
        ) from None
    return left
