# SPDX-License-Identifier: BSD-3-Clause
"""Attention: queries read values through their keys. It is one step of Hopfield retrieval with values, on the same fused kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array, _device, _score
from ._attention_operands import (
    Causal,
    Operands,
    compare,
    grouped,
    operands,
    rows_shape,
    separated,
    ungrouped,
    width_of,
)
from ._core import core
from ._device_ops import attend as attend_on_device
from ._score import Score
from ._score_blocks import Scores, attend_blocks
from ._separation import Separation

__all__ = ["Attention", "attend"]


class Attention(NamedTuple):
    """What `attend` returns with ``return_lse=True``."""

    out: NDArray[Any]
    lse: NDArray[Any]


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
    stream: int | None = None,
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
        through them. From 1 to m, of a device up to 128. The same as ``separation=("top_k_softmax", top_k)``.
    return_lse : bool
        Also return lse; with another separation than softmax, Omega*(s).
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.
    stream : int, optional
        The CUDA stream to queue the work on, as a number (PyTorch: ``torch.cuda.current_stream().cuda_stream``), where the arrays
        are on a CUDA device; the default stream if not given. Nothing waits for it.

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
    if _device.found(query, key, value):
        options: dict[str, Any] = {"scale": scale, "causal": causal, "mask": mask, "bias": bias, "stream": stream}
        options |= {"sink": sink, "separation": separation, "top_k": top_k, "score": (score, "dot")}
        read_out, lse = attend_on_device(op, query, key, value, **options, return_lse=return_lse, out=out)
        return Attention(read_out, lse) if return_lse else read_out
    _device.refuse_stream(op, stream)
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
        core.attention_attend(**ops.for_core(), separation=name, parameter=parameter, out=out, **told)
    else:
        attend_blocks(Scores(op, ops), ops.value, ops.sink, (name, parameter), out, **told)
