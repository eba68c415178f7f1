# SPDX-License-Identifier: BSD-3-Clause
"""Fast weights: a matrix that is written to and read from, token after token. Linear attention, the delta rule and their family are one
recurrence with different things written, on one kernel.

    S_t = D_t S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T,     o_t = scale S_t^T q_t
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array, _feature_map
from . import _fastweight as core
from ._fastweight import FastWeights
from ._fastweight_memory import FastWeightMemory
from ._fastweight_parts import (
    delta_rule_parts,
    fast_weight_parts,
    linear_attention_parts,
    linear_attention_sides,
    run,
)
from ._fastweight_rls import recursive_least_squares, rls_gains
from ._fastweight_rules import (
    comba,
    delta_product,
    gated_delta_rule,
    gated_delta_rule_2,
    kimi_delta_attention,
    rwkv7,
)
from ._feature_map import FeatureMap, dpfp, favor, feature_map, feature_maps

__all__ = [
    "FastWeightMemory",
    "FastWeights",
    "FeatureMap",
    "Stability",
    "comba",
    "delta_product",
    "delta_rule",
    "dpfp",
    "fast_weight",
    "favor",
    "feature_map",
    "feature_maps",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "kimi_delta_attention",
    "linear_attention",
    "recursive_least_squares",
    "rls_gains",
    "rwkv7",
    "stability",
]

Normalize = Literal["none", "sum", "l2", "attention"]


def linear_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    feature_map: str | FeatureMap | None = "elu1",
    causal: bool = True,
    normalize: bool = True,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
    out_state: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | FastWeights:
    """Attention whose weights are phi(q).phi(k), so that a matrix of fixed size holds all keys and values: the sum rule.

    ::

        S_t = D_t S_{t-1} + phi(k_t) v_t^T,   z_t = D_t z_{t-1} + phi(k_t),   o_t = scale S_t^T phi(q_t) / (z_t . phi(q_t))

    A decay for each token makes it RetNet or Mamba-2, one for each channel gated linear attention.

    Parameters
    ----------
    query : array (..., T, d), float32 or float64
        Queries, one a token. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`; any strides are taken
        as they are. Not causal, their number may differ from that of the keys.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    feature_map : str, FeatureMap or None
        phi, a name of `feature_maps()` or a FeatureMap; None is the identity. Its width is K.
    causal : bool
        Token t sees tokens up to t. False: every query sees all keys; decay and state are then refused.
    normalize : bool
        Divide by z . phi(q); where that is 0 the output is zeros, and so are its gradients; these are zeros below 1e-31 (float32)
        or 1e-292 (float64) already, as they would be divided by it once more.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel of phi.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V, or V + 1 with the normaliser z in the last column. For a
        normalised favor W is V + 2: rows of S and z are held divided by e^c, and c, the largest log phi(k) that was written there
        (fading as D says), is the last column. It cancels, and counts as a constant in gradients.
    chunk : int, optional
        How many tokens are prepared together, and how far apart the checkpoints of the gradient are; 64 if not given. Results
        differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.
    out_state : array (..., K, W), optional
        Where to write the state after the last token; it may be `state` itself, which is then changed in place.
    stream : int, optional
        The CUDA stream to queue the work on, as a number (PyTorch: ``torch.cuda.current_stream().cuda_stream``), where the arrays
        are on a CUDA device; the default stream if not given. Nothing waits for it.

    Returns
    -------
    array (..., T, V)
    FastWeights
        With `return_state`: ``out`` and ``state``.

    Raises
    ------
    ValueError
        A shape that does not fit, a decay outside (0, 1] or NaN, a state of another rule, an unknown feature map.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(T K V) time and O(chunk) memory. Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, eq. 9 to 12 and 18 to 20.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> values = np.array([[1.0], [3.0], [7.0]])
    >>> rc.fastweight.linear_attention(keys, keys, values, feature_map="relu")
    array([[1.],
           [2.],
           [7.]])
    """
    given = locals()
    if causal:
        return run(linear_attention_parts, given)
    writing, reading = linear_attention_sides(given)
    whole = core.room_for_state(writing, out_state)
    core.run(writing, None, whole)
    read: NDArray[Any] = core.apply(reading(whole), out, False)
    return FastWeights(read, whole) if return_state else read


def delta_rule(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    beta: ArrayLike,
    *,
    feature_map: str | FeatureMap | None = None,
    normalize: Normalize = "none",
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
    out_state: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | FastWeights:
    """A fast weight memory that edits what it holds: what a key retrieves is moved towards the new value.

    ::

        S <- D_t S,   S <- S + beta_t phi(k_t) (v_t - S^T phi(k_t))^T,   o_t = scale S^T phi(q_t)

    Without decay it is DeltaNet, with one for each token Gated DeltaNet, with one for each channel Kimi delta attention.

    Parameters
    ----------
    query : array (..., T, d), float32 or float64
        Queries, one a token. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`; any strides are taken
        as they are.
    key : array (..., T, d)
        Keys. Updates do not grow while beta |phi(k)|^2 <= 2; `stability` tells.
    value : array (..., T, V)
        Values.
    beta : array (..., T)
        Write strengths.
    feature_map : str, FeatureMap or None
        phi of keys and queries, a name of `feature_maps()` or a FeatureMap; None is the identity. Its width is K.
    normalize : {'none', 'sum', 'l2', 'attention'}
        Divide phi by its sum or by its length, or divide what is read by z.phi(q) and what is removed by z.phi(k), with
        z_t = D_t z_{t-1} + phi(k_t). A divisor of 0 makes zeros; one below 1e-31 (float32) or 1e-292 (float64) has no gradient.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel of phi. The state fades before it is read.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V, or V + 1 with z in the last column.
    chunk : int, optional
        How many tokens are prepared together, and how far apart the checkpoints of the gradient are; 64 if not given. Results
        differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.
    out_state : array (..., K, W), optional
        Where to write the state after the last token; it may be `state` itself, which is then changed in place.
    stream : int, optional
        The CUDA stream to queue the work on, as a number (PyTorch: ``torch.cuda.current_stream().cuda_stream``), where the arrays
        are on a CUDA device; the default stream if not given. Nothing waits for it.

    Returns
    -------
    array (..., T, V)
    FastWeights
        With `return_state`: ``out`` and ``state``.

    Raises
    ------
    ValueError
        A shape that does not fit, a decay outside (0, 1] or NaN, a state of another rule, an unknown feature map or normalisation.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(T K V) time, 6 K V floating point operations a token, and O(chunk) memory. Schlag et al. 2021,
    https://arxiv.org/abs/2102.11174, eq. 17 to 20 and 23 to 26; Yang et al. 2024, https://arxiv.org/abs/2412.06464.

    Examples
    --------
    The same unit key written twice returns the second value:

    >>> import numpy as np, recollect as rc
    >>> keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> values = np.array([[1.0], [3.0], [7.0]])
    >>> rc.fastweight.delta_rule(keys, keys, values, np.ones(3))
    array([[1.],
           [3.],
           [7.]])
    """
    return run(delta_rule_parts, locals())


def fast_weight(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    a: ArrayLike | None,
    b: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
    out_state: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | FastWeights:
    """The general recurrence, diagonal plus low rank, of which the named rules are special cases.

    ::

        S_t = D_t S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T,     o_t = scale S_t^T q_t

    b reads the state before it fades; a rule that reads after it has b_t = D_t times its key.

    Parameters
    ----------
    query : array (..., T, d), float32 or float64
        Queries, one a token; d is K. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`; any strides
        are taken as they are.
    key : array (..., T, d)
        Where values are written.
    value : array (..., T, V)
        Values.
    a : array (..., T, K) or None
        Where what b reads is written. None: where the value is written, S_t = D_t S_{t-1} + k_t (v_t + S_{t-1}^T b_t)^T, which
        costs a quarter less.
    b : array (..., T, K)
        What is read to be erased or moved.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
    chunk : int, optional
        How many tokens are prepared together, and how far apart the checkpoints of the gradient are; 64 if not given. Results
        differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.
    out_state : array (..., K, W), optional
        Where to write the state after the last token; it may be `state` itself, which is then changed in place.
    stream : int, optional
        The CUDA stream to queue the work on, as a number (PyTorch: ``torch.cuda.current_stream().cuda_stream``), where the arrays
        are on a CUDA device; the default stream if not given. Nothing waits for it.

    Returns
    -------
    array (..., T, V)
    FastWeights
        With `return_state`: ``out`` and ``state``.

    Raises
    ------
    ValueError
        A shape that does not fit, a decay outside (0, 1] or NaN, a state of another rule.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(T K V) time, 8 K V floating point operations a token, and O(chunk) memory. The adjoint is the same recurrence backwards with a
    and b exchanged.

    Examples
    --------
    The delta rule, by its definition:

    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, beta = *rng.standard_normal((3, 5, 4)), rng.random(5)
    >>> out = rc.fastweight.fast_weight(q, beta[:, None] * k, v, -beta[:, None] * k, k)
    >>> bool(np.allclose(out, rc.fastweight.delta_rule(q, k, v, beta)))
    True
    """
    return run(fast_weight_parts, locals())


class Stability(NamedTuple):
    """What `stability` returns: the largest beta |phi(k)|^2 and the index of its token. Above 2 an update can grow what it erases."""

    largest: float
    where: tuple[int, ...]


def stability(
    key: ArrayLike, beta: ArrayLike, *, feature_map: str | FeatureMap | None = None, normalize: str | None = None
) -> Stability:
    """The largest beta |phi(k)|^2 of a delta rule and where it is: at most 2, no update grows the state (1 erases exactly).

    Parameters
    ----------
    key : array (..., T, d)
    beta : array (..., T)
    feature_map : str, FeatureMap or None
    normalize : {'none', 'sum', 'l2'}, optional

    Examples
    --------
    >>> import recollect as rc
    >>> rc.fastweight.stability([[1.0, 0.0], [2.0, 1.0]], [1.0, 0.5])
    Stability(largest=2.5, where=(1,))
    """
    op = "fastweight.stability"
    array, phi = _feature_map.rows(op, key, feature_map, normalize)
    strength = _array.floating(op, "beta", beta)
    features = _feature_map.feature_map(array, phi)
    squares = np.einsum("...k,...k->...", features, features)
    try:
        sizes = np.asarray(strength * squares)
    except ValueError:
        raise ValueError(
            f"{op}: beta has shape {strength.shape}; expected one that broadcasts to {squares.shape}"
        ) from None
    if sizes.size == 0:
        return Stability(0.0, ())
    place = np.unravel_index(int(np.argmax(sizes)), sizes.shape)
    return Stability(float(sizes[place]), tuple(int(i) for i in place))
