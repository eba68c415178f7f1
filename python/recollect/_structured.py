# SPDX-License-Identifier: BSD-3-Clause
"""Structured attention: to segments, and to keys within each segment."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array
from . import _attention_operands as attention
from ._attention_vjp import collected
from ._score import Score
from ._score_blocks import Scores, attend_blocks, attend_blocks_backward, in_full
from ._vjp import pullback_of

Array = NDArray[Any]
SOFTMAX = ("softmax", float("nan"))


def attend_structured(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    segments: ArrayLike,
    *,
    segment_key: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    score: Score = "dot",
) -> Array:
    """Attention at two levels: words within sentences, and sentences.

    ::

        out = sum_g P_g sum_(j in g) p_j v_j,    p = softmax of s within each segment g,    P = softmax of S over segments
        s_j = scale q.k_j + bias_j,    S_g = scale q.K_g  or, without segment keys,  sum_(j in g) p_j s_j

    Parameters
    ----------
    query : array (..., n, d), float32 or float64
        Queries q, one a row.
    key : array (..., m, d)
        Keys k_j.
    value : array (..., m, e)
        Values v_j.
    segments : int array (m,)
        The number g of each key's segment, from 0 on, in any order.
    segment_key : array (..., G, d), optional
        Keys K_g of the segments. Without them a query is compared with what it reads of a segment's own keys.
    scale : float or array broadcast to the leading axes, optional
        What scores of both levels are multiplied by; as in `attend`.
    mask : bool array, broadcast to (..., n, m), optional
        True where a query may attend to a key. A segment without such keys does not exist.
    bias : array, broadcast to (..., n, m), optional
        Added to the scores s; -inf leaves a key out.
    score : 'dot', 'cosine', 'gaussian', Bilinear or Additive
        How a query is compared with a key, of either level; as in `attend`.

    Returns
    -------
    array (..., n, e)
        Zeros for a query that may attend to nothing.

    Raises
    ------
    ValueError
        A shape that does not fit, a segment number that is negative or has no segment key, an unknown score.
    TypeError
        A dtype that is no number, segments that are no integers.

    Notes
    -----
    A key's weight is the product of the two probabilities, so that this is one softmax of s_j - lse_g + S_g, which the kernel of
    `attend` reads with. O(n m (d + e)) time; memory holds some million scores at a time. In `recollect.vjp` gradients are those of
    query, key, value, segment_key, scale, bias and score. Yang et al. 2016, https://aclanthology.org/N16-1174, section 2.2.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> keys, values = np.zeros((4, 2)), np.array([[0.0], [0.0], [0.0], [1.0]])
    >>> rc.attention.attend_structured(np.zeros((1, 2)), keys, values, [0, 0, 0, 1])
    array([[0.5]])
    """
    return _structured(query, key, value, segments, segment_key, scale, mask, bias, score)[0]


@pullback_of(attend_structured, "attention")
def _structured_rule(
    query: Any,
    key: Any,
    value: Any,
    segments: Any,
    *,
    segment_key: Any = None,
    scale: Any = None,
    mask: Any = None,
    bias: Any = None,
    score: Any = "dot",
) -> tuple[Array, Callable[[Any], Any]]:
    return _structured(query, key, value, segments, segment_key, scale, mask, bias, score)


class TwoLevels:
    """Scores whose softmax is the product of both levels' probabilities; like `Scores`, block by block."""

    def __init__(self, inner: Scores, outer: Scores | None, segments: NDArray[np.int64]) -> None:
        self.inner, self.outer, self.shape = inner, outer, inner.shape
        self._order = np.argsort(segments, kind="stable")
        self._back = np.argsort(self._order)
        self._present, self._starts, at = np.unique(segments[self._order], return_index=True, return_inverse=True)
        self._at = at.reshape(-1)  # of each key, in order: which of the present segments

    def _levels(self, rows: slice) -> tuple[Array, Array, Array, Array]:
        """In the order of segments: scores of keys, their weights within segments, log-sum-exp and score of each segment."""
        z = self.inner.of(rows)[..., self._order]
        top = np.maximum.reduceat(z, self._starts, axis=-1)
        top = np.where(top > -np.inf, top, 0)
        with np.errstate(under="ignore"):
            weight = np.exp(z - top[..., self._at])
        total = np.add.reduceat(weight, self._starts, axis=-1)
        weight /= np.where(total > 0, total, 1)[..., self._at]
        with np.errstate(divide="ignore"):
            lse = top + np.log(total)
        if self.outer is None:
            score = np.add.reduceat(np.where(weight > 0, weight, 0) * np.where(weight > 0, z, 0), self._starts, axis=-1)
        else:
            score = self.outer.of(rows)[..., self._present]
        return z, weight, lse, np.where(total == 0, -np.inf, score)

    def of(self, rows: slice) -> Array:
        if self.shape[-1] == 0:
            return self.inner.of(rows)
        z, _, lse, score = self._levels(rows)
        with np.errstate(invalid="ignore"):
            both = np.where(z == -np.inf, z, z - lse[..., self._at] + score[..., self._at])
        return np.ascontiguousarray(both[..., self._back], self.inner.ops.dtype)

    def pull(self, rows: slice, d_both: Array) -> None:
        if self.shape[-1] == 0:
            self.inner.pull(rows, d_both)
            return
        z, weight, _, score = self._levels(rows)
        d = d_both[..., self._order]
        d_score = np.add.reduceat(d, self._starts, axis=-1)
        d_z = d - weight * d_score[..., self._at]
        if self.outer is None:
            there = weight > 0
            lead = np.where(there, z, 0) - np.where(there, score[..., self._at], 0)
            d_z += weight * d_score[..., self._at] * (1 + lead)
        else:
            d_outer = np.zeros((*d.shape[:-1], self.outer.shape[-1]), d.dtype)
            d_outer[..., self._present] = d_score
            self.outer.pull(rows, d_outer)
        self.inner.pull(rows, np.ascontiguousarray(d_z[..., self._back]))


def _structured(
    query: Any, key: Any, value: Any, segments: Any, segment_key: Any, scale: Any, mask: Any, bias: Any, score: Any
) -> tuple[Array, Callable[[Any], Any]]:
    op = "attention.attend_structured"
    keys = in_full(op, "key", key)
    of_segments = None if segment_key is None else in_full(op, "segment_key", segment_key)
    given = attention.operands(op, query, keys, value, scale, False, mask, bias, None, score)
    numbers = _numbers(op, segments, given.key, of_segments)
    compared, back = attention.compare(op, given)
    ops, heads = attention.grouped(op, compared)
    outer = None
    if of_segments is not None:
        outer = given._replace(key=_array.typed(of_segments, given.dtype), mask=None, bias=None)
        outer_met, outer_back = attention.compare(op, outer)
        outer_ops, outer_heads = attention.grouped(op, outer_met)
        if outer_heads != heads:
            raise ValueError(f"{op}: segment_key has shape {of_segments.shape}; expected as many heads as key has")

    def levels() -> TwoLevels:
        return TwoLevels(Scores(op, ops), None if outer is None else Scores(op, outer_ops), numbers)

    shape = attention.rows_shape(op, ops)
    result: Array = np.empty((*shape, attention.width_of(ops.value)), ops.dtype)
    kept = np.empty(shape, ops.dtype), np.empty(shape, ops.dtype)
    attend_blocks(levels(), ops.value, None, SOFTMAX, result, largest=kept[0], log_sum=kept[1])
    outside = attention.ungrouped(result.shape, heads, 2)

    def pullback(d_out: Any) -> Any:
        cotangent = _array.cotangent(op, d_out, outside, ops.dtype).reshape(result.shape)
        scores = levels()
        room = attend_blocks_backward(scores, ops.value, None, SOFTMAX, kept, result, cotangent)
        room |= scores.inner.gradients()
        inner = collected("Inner", given, compared, back, room, scale is not None)
        if scores.outer is None or outer is None:
            return _named(inner, None)
        return _named(
            inner, collected("Outer", outer, outer_met, outer_back, scores.outer.gradients(), scale is not None)
        )

    return result.reshape(outside).copy(), pullback


def _numbers(op: str, segments: Any, key: Array, segment_key: Array | None) -> NDArray[np.int64]:
    numbers = _array.plain(op, "segments", segments)
    m = key.shape[-2] if key.ndim >= 2 else 0
    if numbers.dtype.kind not in "iu" and numbers.size:
        raise TypeError(f"{op}: segments has dtype {numbers.dtype}; expected integers")
    if numbers.shape != (m,):
        raise ValueError(f"{op}: segments has shape {numbers.shape}; expected (m={m},)")
    if numbers.size and int(numbers.min()) < 0:
        raise ValueError(f"{op}: segments holds {numbers.min()}; expected numbers from 0 on")
    if segment_key is not None and numbers.size and int(numbers.max()) >= segment_key.shape[-2]:
        raise ValueError(f"{op}: segments holds {numbers.max()}; expected numbers below G={segment_key.shape[-2]}")
    return numbers.astype(np.int64)


def _named(inner: Any, outer: Any) -> Any:
    """Both levels' gradients in one; what both had a part in is added up."""
    found = inner._asdict()
    if outer is not None:
        other = outer._asdict()
        for name in ("query", "scale"):
            if name in found:
                found[name] = found[name] + other[name]
        if "score" in found:
            kind = type(found["score"])
            found["score"] = kind(
                **{f.name: getattr(found["score"], f.name) + getattr(other["score"], f.name) for f in fields(kind)}
            )
        names = list(found)
        after = names.index("value") + 1
        found = (
            {n: found[n] for n in names[:after]} | {"segment_key": other["key"]} | {n: found[n] for n in names[after:]}
        )
    return namedtuple("AttendStructuredGradients", found)(**found)
