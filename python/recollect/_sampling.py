# SPDX-License-Identifier: BSD-3-Clause
"""Hard attention by sampling: each query reads single values, drawn with the weights as probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array
from . import _attention_operands as attention
from ._attention_operands import Causal
from ._attention_vjp import collected
from ._core import core
from ._pointer import scores_back
from ._score import Score
from ._score_blocks import Scores, blocks, in_full
from ._separation import Separation, split
from ._vjp import pullback_of

Array = NDArray[Any]


class Sample(NamedTuple):
    """What `sample` returns."""

    value: Array
    indices: NDArray[np.int64]
    log_probability: Array


def sample(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    rng: np.random.Generator,
    samples: int = 1,
    scale: ArrayLike | None = None,
    causal: Causal = False,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    separation: Separation = "softmax",
    score: Score = "dot",
) -> Sample:
    """Hard attention: read single values, drawn with probability p_j.

    ::

        j ~ p,   p = softmax(s),   s_j = scale q.k_j + bias_j        the mean of v_j over many draws is what `attend` reads

    Parameters
    ----------
    query : array (..., n, d), float32 or float64
        Queries q, one a row.
    key : array (..., m, d)
        Keys k_j.
    value : array (..., m, e)
        Values v_j.
    rng : numpy.random.Generator
        Draws one number for each sample; with the same numbers, the samples are the same.
    samples : int
        How many are drawn for each query, with replacement; S.
    scale : float or array broadcast to the leading axes, optional
        What scores are multiplied by; as in `attend`.
    causal : bool or 'top-left'
        As in `attend`.
    mask : bool array, broadcast to (..., n, m), optional
        True where a query may attend to a key.
    bias : array, broadcast to (..., n, m), optional
        Added to the scores; -inf leaves a key out.
    separation : str or (str, number)
        How scores become probabilities; all that sum to one: not linear and k_subset.
    score : 'dot', 'cosine', 'gaussian', Bilinear or Additive
        How a query is compared with a key; as in `attend`.

    Returns
    -------
    Sample
        ``value`` (..., n, S, e), ``indices`` (..., n, S), int64, and ``log_probability`` (..., n, S), log p_j. For a query that may
        attend to nothing: zeros, index -1, and 0, since that is certain.

    Raises
    ------
    ValueError
        A shape that does not fit, samples below 1, a separation that is no distribution, an unknown name.
    TypeError
        A dtype that is no number, an `rng` that is no Generator.

    Notes
    -----
    O(n m d) time; memory holds some million scores at a time. What was drawn has no derivative, but its probability has: with reward R
    of a sample and any baseline b that does not depend on it, (R - b) grad log p_j is an unbiased estimate of the gradient of the mean
    reward (Williams 1992, https://doi.org/10.1007/BF00992696). So the pullback of `recollect.vjp` takes the cotangent of
    ``log_probability``, R - b, and optionally as a second argument that of ``value``, which goes to the values that were read. Xu et
    al. 2015, https://arxiv.org/abs/1502.03044, section 4.1.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> drawn, pullback = rc.vjp(
    ...     rc.attention.sample, np.zeros((1, 2)), np.eye(2), [[0.0], [1.0]], rng=np.random.default_rng(0), samples=1000)
    >>> drawn.value.shape, bool(abs(drawn.value.mean() - 0.5) < 0.05)
    ((1, 1000, 1), True)
    >>> reward = drawn.value[..., 0]
    >>> ascent = pullback((reward - 0.5) / 1000).key        # raises the mean reward: towards more of the second key
    >>> ascent.shape
    (2, 2)
    """
    return _sample(query, key, value, rng, samples, scale, causal, mask, bias, separation, score)[0]


@pullback_of(sample, "attention")
def _sample_rule(
    query: Any,
    key: Any,
    value: Any,
    *,
    rng: Any,
    samples: Any = 1,
    scale: Any = None,
    causal: Any = False,
    mask: Any = None,
    bias: Any = None,
    separation: Any = "softmax",
    score: Any = "dot",
) -> tuple[Any, Callable[..., Any]]:
    return _sample(query, key, value, rng, samples, scale, causal, mask, bias, separation, score)


def _sample(
    query: Any, key: Any, value: Any, rng: Any, samples: Any, scale: Any, causal: Any, mask: Any, bias: Any,
    separation: Any, score: Any,
) -> tuple[Sample, Callable[..., Any]]:  # fmt: skip
    op = "attention.sample"
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{op}: rng is a {type(rng).__name__}; expected a numpy.random.Generator")
    count = _array.whole(op, "samples", samples, 1, expected="at least 1")
    named = split(op, separation)
    if named[0] in ("linear", "k_subset"):
        raise ValueError(f"{op}: separation is {separation!r}; expected one whose weights sum to one")
    k, v = in_full(op, "key", key), in_full(op, "value", value)
    given = attention.operands(op, query, k, v, scale, causal, mask, bias, None, score)
    compared, back = attention.compare(op, given)
    ops, heads = attention.grouped(op, compared)
    _check_values(op, ops)
    scores = Scores(op, ops)
    drawn = rng.random((*scores.shape[:-1], count))
    indices = np.empty(drawn.shape, np.int64)
    probability: Array = np.empty(drawn.shape, ops.dtype)
    for rows in blocks(scores.shape):
        weights = _weights(scores, rows, named)
        indices[..., rows, :], probability[..., rows, :] = _draw(weights, drawn[..., rows, :])
    read = _read(ops.value, indices)
    outside = attention.ungrouped(drawn.shape, heads, 2)
    result = Sample(
        read.reshape(*outside, read.shape[-1]), indices.reshape(outside).copy(), np.log(probability).reshape(outside)
    )

    def pullback(d_log_probability: Any, d_value: Any = None) -> Any:
        d_log = _array.cotangent(op, d_log_probability, outside, ops.dtype).reshape(drawn.shape)
        again = Scores(op, ops)
        for rows in blocks(scores.shape):
            weights = _weights(again, rows, named)
            g = _spread(indices[..., rows, :], d_log[..., rows, :] / probability[..., rows, :], weights.shape)
            again.pull(rows, scores_back(again, rows, named, weights, g))
        gradients = again.gradients()
        gradients["value"] = np.zeros(ops.value.shape, ops.dtype)
        if d_value is not None:
            towards = _array.cotangent(op, d_value, result.value.shape, ops.dtype).reshape(read.shape)
            gradients["value"] += _unread(indices, towards, ops.value.shape)
        return collected("SampleGradients", given, compared, back, gradients, scale is not None)

    return result, pullback


def _check_values(op: str, ops: attention.Operands) -> None:
    """The core is not asked to read them, so it does not check them."""
    v, m = ops.value, ops.key.shape[-2] if ops.key.ndim >= 2 else 0
    if v is None or v.ndim < 2 or v.shape[-2] != m:
        raise ValueError(f"{op}: value has shape {None if v is None else v.shape}; expected (..., m={m}, e)")


def _weights(scores: Scores, rows: slice, named: tuple[str, float]) -> Array:
    z = scores.of(rows)
    core.weights(scores.op, z, *named, z)
    return z


def _draw(weights: Array, drawn: Array) -> tuple[NDArray[np.int64], Array]:
    """For each number of [0, 1) the first index whose cumulative weight exceeds it, and that weight; -1 and 1 where nothing has any."""
    m, count = weights.shape[-1], drawn.shape[-1]
    indices, probability = np.full(drawn.shape, -1, np.int64), np.ones(drawn.shape, weights.dtype)
    if m == 0:
        return indices, probability
    rows, found, told = weights.reshape(-1, m), indices.reshape(-1, count), probability.reshape(-1, count)
    for p, u, j, own in zip(rows, drawn.reshape(-1, count), found, told, strict=True):
        total = np.cumsum(p, dtype=np.float64)
        if total[-1] == 0:
            continue
        j[:] = np.minimum(np.searchsorted(total, u * total[-1], side="right"), m - 1)
        own[:] = p[j]
    return indices, probability


def _read(value: Array, indices: NDArray[np.int64]) -> Array:
    """(..., n, S, e) of values (..., m, e); zeros for an index of -1."""
    lead, (n, count), width = indices.shape[:-2], indices.shape[-2:], value.shape[-1]
    if value.shape[-2] == 0:
        return np.zeros((*lead, n, count, width), value.dtype)
    flat = indices.reshape(*lead, n * count, 1)
    read = np.take_along_axis(np.broadcast_to(value, (*lead, *value.shape[-2:])), np.maximum(flat, 0), axis=-2)
    return np.where(flat >= 0, read, value.dtype.type(0)).reshape(*lead, n, count, width)


def _spread(indices: NDArray[np.int64], numbers: Array, shape: tuple[int, ...]) -> Array:
    """(..., n, m): the numbers added up where their indices point."""
    into = np.zeros((int(np.prod(shape[:-1])), shape[-1]), numbers.dtype)
    if shape[-1]:
        there = indices.reshape(len(into), -1)
        np.add.at(
            into,
            (np.arange(len(into))[:, None], np.maximum(there, 0)),
            np.where(there >= 0, numbers.reshape(there.shape), 0),
        )
    return into.reshape(shape)


def _unread(indices: NDArray[np.int64], d_read: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of values of that shape from that of what was read."""
    lead = indices.shape[:-2]
    full = np.zeros((int(np.prod(lead)), *shape[-2:]), d_read.dtype)
    there = indices.reshape(len(full), indices.shape[-2] * indices.shape[-1])
    some = there >= 0
    entry = np.broadcast_to(np.arange(len(full))[:, None], there.shape)
    np.add.at(full, (entry[some], there[some]), d_read.reshape(*there.shape, shape[-1])[some])
    return _array.sum_to_shape(full.reshape(*lead, *shape[-2:]), shape)
