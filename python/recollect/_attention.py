# SPDX-License-Identifier: BSD-3-Clause
"""Attention: queries read values through their keys. It is one step of Hopfield retrieval with values, on the same fused kernel."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array, _score
from ._core import core
from ._score import Additive, Score
from ._separation import Separation, split

__all__ = ["Attention", "attend"]

Causal = bool | Literal["top-left"]


class Attention(NamedTuple):
    """What `attend` returns with ``return_lse=True``."""

    out: NDArray[Any]
    lse: NDArray[Any]


class Operands(NamedTuple):
    """The operands as the core takes them."""

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any] | None
    scale: NDArray[Any]
    mask: NDArray[np.bool_] | None
    bias: NDArray[Any] | None
    sink: NDArray[Any] | None
    causal: str
    dtype: np.dtype[Any]
    score: Any = "dot"
    vector: NDArray[Any] | None = None  # of the additive score, whose query and key are hidden units


def attend(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    causal: Causal = False,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    separation: Separation = "softmax",
    score: Score = "dot",
    top_k: int | None = None,
    return_lse: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | Attention:
    """Read values through keys: soft attention, key-value attention, self attention and cross attention are all this.

    ::

        out = sum_j p_j v_j,   p = softmax(s),   s_j = scale q.k_j + bias_j        lse = log sum_j exp(s_j)

    Soft attention over inputs x is ``attend(q, x, x)``; key-value attention has values of their own; self attention takes all three
    from one sequence; linear readout, hard and sparse attention are separations.

    Parameters
    ----------
    query : array (..., n, d), float32 or float64
        Queries q, one a row. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`.
    key : array (..., m, d)
        Keys k_j. May be stored as float16 or bfloat16; arithmetic is then float32. Heads are an axis of their own; with fewer key
        than query heads (axis -3), each serves a group of neighbouring query heads.
    value : array (..., m, e)
        Values v_j, stored like keys.
    scale : float or array broadcast to the leading axes, optional
        What scores are multiplied by. If not given, 1/sqrt(d) for dot and gaussian, else 1; an additive score has none. It is the
        inverse temperature beta of a Hopfield network.
    causal : bool or 'top-left'
        True: of n queries and m keys, query i may attend to the first i + 1 + (m - n), so that the last query sees all keys.
        'top-left': to the first i + 1.
    mask : bool array, broadcast to (..., n, m), optional
        True where a query may attend to a key. What no query may attend to can hold anything, NaN too.
    bias : array, broadcast to (..., n, m), optional
        Added to the scores, in their units; -inf leaves a key out. One row (m,) is a bias for each key, and nothing of size n m
        is made from it.
    sink : float or array broadcast to the leading axes, optional
        One more logit, of a key whose value is zero: exp(sink) in the sum, nothing in the output.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names. A sink goes with softmax and top_k_softmax alone.
    score : 'dot', 'cosine', 'gaussian', Bilinear or Additive
        How a query is compared with a key: q.k, q.k / (|q| |k|) (0 where either is 0), -|q - k|^2 / 2, q^T W k or
        v.tanh(W k + U q). The Gaussian one is made of scalar products: take off an offset that is large beside the distances.
    top_k : int, optional
        Attend to the `top_k` keys with the largest scores alone, among equals the lower number first: softmax over them, gradients
        through them. From 1 to m. The same as ``separation=("top_k_softmax", top_k)``.
    return_lse : bool
        Also return lse; with another separation than softmax, Omega*(s).
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.

    Returns
    -------
    array (..., n, e)
        Zeros for a query that may attend to nothing.
    Attention
        With `return_lse`: ``out`` and ``lse`` (..., n), which is -inf for a query that may attend to nothing.

    Raises
    ------
    ValueError
        A shape that does not fit, a scale that is not finite, an unknown causal rule, separation or score, an unusable `out`.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(n m (d + e)) time, half of it if causal, and O(block) memory; with another separation than softmax O(n m d) and the reads of what
    has weight, with its indices of a block of rows in memory. A row's result depends on no other row, and on no number of
    threads, to the last bit; where a score has weights, up to the rounding of NumPy's products with them. Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1; Ramsauer et al. 2020,
    https://arxiv.org/abs/2008.02217, section 3.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> query = key = np.eye(3)
    >>> rc.attention.attend(query, key, [[1.0], [2.0], [3.0]], scale=100.0, causal=True).round(6)
    array([[1.],
           [2.],
           [3.]])
    """
    op = "attention.attend"
    given = operands(op, query, key, value, scale, causal, mask, bias, sink, score)
    compared, _ = compare(op, given)
    ops, heads = grouped(op, compared)
    shape = rows_shape(op, ops)
    full = (*shape, width_of(ops.value))
    result = _array.output(op, out, ungrouped(full, heads, 2), ops.dtype, *given[:7], *_score.parameters(given.score))
    told = {"lse": np.empty(shape, ops.dtype)} if return_lse else {}
    name, parameter = separated(op, separation, top_k, ops)
    read(op, ops, name, parameter, result.reshape(full), **told)
    return Attention(result, told["lse"].reshape(ungrouped(shape, heads, 1))) if told else result


def read(op: str, ops: Operands, name: str, parameter: float, out: NDArray[Any], **told: Any) -> None:
    """One read of grouped operands into `out`, and what is told of every row; by blocks of rows where scores are no scalar products."""
    if ops.vector is None:
        core.attention_attend(*ops[:7], ops.causal, name, parameter, out, **told)
    else:
        from ._score_blocks import Scores, attend_blocks

        attend_blocks(Scores(op, ops), ops.value, ops.sink, (name, parameter), out, **told)


def separated(op: str, separation: Any, top_k: Any, ops: Operands) -> tuple[str, float]:
    """The separation by name and parameter; top_k is another name for one."""
    if top_k is None:
        return split(op, separation)
    if separation != "softmax":
        raise ValueError(f"{op}: top_k is given beside separation {separation!r}; expected one of them")
    keys = ops.key.shape[-2] if ops.key.ndim >= 2 else 0
    k = _array.whole(
        op, "top_k", top_k, 1, keys, expected=f"a number from 1 to m={keys}", kind="a whole number or None"
    )
    return "top_k_softmax", float(k)


def operands(
    op: str, query: Any, key: Any, value: Any, scale: Any, causal: Any, mask: Any, bias: Any, sink: Any, score: Any
) -> Operands:
    """Types; shapes are checked by the core."""
    score = _score.checked(op, score)
    q = _array.floating(op, "query", query)
    k = _array.floating(op, "key", key, halves=True)
    v = None if value is None else _array.floating(op, "value", value, halves=True)
    b = None if bias is None else _array.floating(op, "bias", bias)
    dtype = _array.arithmetic(q, k, v, b, *_score.parameters(score))
    if isinstance(causal, np.bool_):
        causal = bool(causal)
    if not isinstance(causal, bool) and not (isinstance(causal, str) and causal == "top-left"):
        raise ValueError(f"{op}: causal is {causal!r}; expected False, True or 'top-left'")
    if scale is not None and isinstance(score, Additive):
        raise ValueError(f"{op}: scale is given beside an additive score; expected None, as its vector is the scale")
    if scale is None:
        scale = _score.default_scale(score, q.shape[-1] if q.ndim else 0)
    # Keys that are compared as they are may stay in half width.
    in_place = (isinstance(score, str) and score == "dot") or isinstance(score, _score.Bilinear)
    return Operands(
        _array.typed(q, dtype),
        _array.stored(k, dtype) if in_place else _array.typed(k, dtype),
        None if v is None else _array.stored(v, dtype),
        _array.scalars(op, "scale", scale),
        _array.keep_mask(op, mask),
        None if b is None else _array.typed(b, dtype),
        None if sink is None else _array.scalars(op, "sink", sink),
        "none" if causal is False else "top-left" if causal == "top-left" else "bottom-right",
        dtype,
        _score.typed(score, dtype),
    )


def compare(op: str, ops: Operands) -> tuple[Operands, _score.Back]:
    """The operands with query and key as they meet, and the way back for gradients."""
    query, key, vector, back = _score.compare(op, ops.score, ops.query, ops.key)
    return ops._replace(query=query, key=key, vector=vector), back


def width_of(value: NDArray[Any] | None) -> int:
    return value.shape[-1] if value is not None and value.ndim >= 2 else 0


def rows_shape(op: str, ops: Operands) -> tuple[int, ...]:
    """The shape of what has one entry per query."""
    leading = _array.leading_axes(
        op,
        ("query", ops.query, 2),
        ("key", ops.key, 2),
        ("value", ops.value, 2),
        ("scale", ops.scale, 0),
        ("mask", ops.mask, 2),
        ("bias", ops.bias, 2),
        ("sink", ops.sink, 0),
        ("score.vector", ops.vector, 1),
    )
    return (*leading, ops.query.shape[-2] if ops.query.ndim >= 2 else 0)


def grouped(op: str, ops: Operands) -> tuple[Operands, int]:
    """Fewer key heads than query heads: the query heads become (key heads, group), by reshaping views only. Returns the number of
    query heads, or 0 where there is nothing to group."""
    if ops.query.ndim < 3 or ops.key.ndim < 3 or (ops.value is not None and ops.value.ndim < 3):
        return ops, 0
    heads, served = ops.query.shape[-3], ops.key.shape[-3]
    if heads == served or 1 in (heads, served) or (ops.value is not None and ops.value.shape[-3] != served):
        return ops, 0
    if heads % served:
        raise ValueError(
            f"{op}: key has shape {ops.key.shape}; expected a number of heads (axis -3) that divides the {heads} of query"
        )
    split = (served, heads // served)

    def by_group(array: NDArray[Any], own: int) -> NDArray[Any]:
        axis = array.ndim - own - 1
        if axis < 0:
            return array
        middle = split if array.shape[axis] == heads else (1, 1)
        if array.shape[axis] not in (1, heads):
            return array
        return array.reshape(*array.shape[:axis], *middle, *array.shape[axis + 1 :])

    return ops._replace(
        query=by_group(ops.query, 2),
        key=ops.key[..., None, :, :],
        value=None if ops.value is None else ops.value[..., None, :, :],
        scale=by_group(ops.scale, 0),
        mask=None if ops.mask is None else by_group(ops.mask, 2),
        bias=None if ops.bias is None else by_group(ops.bias, 2),
        sink=None if ops.sink is None else by_group(ops.sink, 0),
        vector=None if ops.vector is None else by_group(ops.vector, 1),
    ), heads


def ungrouped(shape: tuple[int, ...], heads: int, own: int) -> tuple[int, ...]:
    """The shape of an output of grouped operands, heads in one axis again."""
    if not heads:
        return shape
    return (*shape[: -own - 2], heads, *shape[len(shape) - own :])
