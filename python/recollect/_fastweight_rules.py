# SPDX-License-Identifier: BSD-3-Clause
"""Named rules: the recurrence of `fast_weight` with what each of them writes. All are differentiable by `recollect.vjp`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._fastweight import FastWeights, apply
from ._fastweight_parts import (
    comba_parts,
    delta_product_parts,
    gated_delta_rule_2_parts,
    gated_delta_rule_parts,
    kimi_delta_attention_parts,
    run,
    rwkv7_parts,
    strided,
)

__all__ = [
    "comba",
    "delta_product",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "kimi_delta_attention",
    "rwkv7",
]


def gated_delta_rule(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    beta: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | FastWeights:
    """Gated DeltaNet: X = D_t S, S = X + beta_t k_t (v_t - X^T k_t)^T, with a decay for each token (Yang et al. 2024,
    https://arxiv.org/abs/2412.06464, eq. 10). The same as `delta_rule` with that decay.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    beta : array (..., T)
        Write strengths.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
    chunk : int, optional
        How many tokens are prepared together; results differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write.
    stream : int, optional
        The CUDA stream to queue the work on, where the arrays are on a CUDA device; see `delta_rule`.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> out = rc.fastweight.gated_delta_rule(q, k, v, beta, decay=decay)
    >>> bool((out == rc.fastweight.delta_rule(q, k, v, beta, decay=decay)).all())
    True
    """
    return run(gated_delta_rule_parts, locals())


def kimi_delta_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    beta: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | FastWeights:
    """Kimi delta attention: the gated delta rule with a decay for each channel, X = Diag(D_t) S, S = X + beta_t k_t (v_t - X^T k_t)^T.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    beta : array (..., T)
        Write strengths.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
    chunk : int, optional
        How many tokens are prepared together; results differ by rounding alone.
    return_state : bool
        Also return the state after the last token.
    out : array, optional
        Where to write.
    stream : int, optional
        The CUDA stream to queue the work on, where the arrays are on a CUDA device; see `delta_rule`.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> rc.fastweight.kimi_delta_attention(q, k, v, beta, decay=channels).shape
    (6, 4)
    """
    return run(kimi_delta_attention_parts, locals())


def comba(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    beta: ArrayLike,
    removal: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | FastWeights:
    """Comba: what is removed has a key p of its own, X = D_t S, S = X + beta_t k_t (v_t - X^T p_t)^T.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    beta : array (..., T)
        Write strengths.
    removal : array (..., T, K)
        Keys p of what is removed.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
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
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> out = rc.fastweight.comba(q, k, v, beta, k, decay=decay)
    >>> bool(np.allclose(out, rc.fastweight.gated_delta_rule(q, k, v, beta, decay=decay)))
    True
    """
    return run(comba_parts, locals())


def gated_delta_rule_2(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    erase: ArrayLike,
    write: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | FastWeights:
    """Gated DeltaNet 2: gates for what is erased and what is written, X = D_t S, S = X + k_t (w_t * v_t - X^T (e_t * k_t))^T.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    erase : array, broadcast to (..., T, K)
        Erase gate e.
    write : array, broadcast to (..., T, V)
        Write gate w.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
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
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> out = rc.fastweight.gated_delta_rule_2(q, k, v, np.ones((6, 4)), np.ones((6, 4)), decay=decay)
    >>> bool(np.allclose(out, rc.fastweight.gated_delta_rule(q, k, v, np.ones(6), decay=decay)))
    True
    """
    return run(gated_delta_rule_2_parts, locals())


def rwkv7(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    removal: ArrayLike,
    rate: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | FastWeights:
    """RWKV-7: S_t = D_t S_{t-1} - (r_t * alpha_t) (r_t^T S_{t-1}) + k_t v_t^T, with a removal key r and a rate alpha for each channel.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, d)
        Keys.
    value : array (..., T, V)
        Values.
    removal : array (..., T, K)
        Removal keys r.
    rate : array, broadcast to (..., T, K)
        Rates alpha.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
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
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> out = rc.fastweight.rwkv7(q, beta[:, None] * k, v, k, beta[:, None])
    >>> bool(np.allclose(out, rc.fastweight.delta_rule(q, k, v, beta)))
    True
    """
    return run(rwkv7_parts, locals())


def delta_product(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    beta: ArrayLike,
    *,
    decay: ArrayLike | None = None,
    log_decay: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    state: ArrayLike | None = None,
    chunk: int | None = None,
    return_state: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | FastWeights:
    """DeltaProduct: n delta steps a token, so that a token can rotate or reflect what is held; the state fades before the first.

    Parameters
    ----------
    query : array (..., T, d)
        Queries, one a token; d is K.
    key : array (..., T, n, d)
        Keys, n for each token.
    value : array (..., T, n, V)
        Values, n for each token.
    beta : array (..., T, n)
        Write strengths.
    decay : array (..., T) or (..., T, K), optional
        D_t, in (0, 1]: a number for each token or for each channel.
    log_decay : array (..., T) or (..., T, K), optional
        log D_t instead, at most 0.
    scale : float or array broadcast to the leading axes, optional
        What outputs are multiplied by; 1 if not given.
    state : array (..., K, W), optional
        The state that an earlier call returned, to go on from; W is V.
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
    >>> q, k, v = rng.standard_normal((3, 6, 4)) / 2
    >>> beta, decay, channels = rng.random(6), rng.random(6), rng.random((6, 4))
    >>> out = rc.fastweight.delta_product(q, k[:, None], v[:, None], beta[:, None], decay=decay)
    >>> bool(np.allclose(out, rc.fastweight.delta_rule(q, k, v, beta, decay=decay)))
    True
    """
    given = locals()
    problem = delta_product_parts(given)[0]
    n = np.shape(key)[-2]
    return strided("fastweight.delta_product", apply(problem, None, return_state), n, out)
