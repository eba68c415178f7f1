# SPDX-License-Identifier: BSD-3-Clause
"""Modern Hopfield networks: the energy of a state pattern, and retrieval of what it reminds of.

Ramsauer et al. 2020, "Hopfield Networks is All You Need", https://arxiv.org/abs/2008.02217
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array, _device, _device_ops
from ._core import core
from ._separation import Separation, split

__all__ = ["Nearest", "Retrieval", "energy", "nearest", "retrieve"]


class Retrieval(NamedTuple):
    """What `retrieve` returns with ``return_info=True``; all but ``state`` have one entry per state pattern."""

    state: NDArray[Any]
    energy: NDArray[Any]
    lse: NDArray[Any]
    steps: NDArray[np.int64]
    converged: NDArray[np.bool_]


class Nearest(NamedTuple):
    """What `nearest` returns."""

    indices: NDArray[np.int64]
    weights: NDArray[Any]


class Operands(NamedTuple):
    """The operands of an op as the core takes them, and what follows from them."""

    state: NDArray[Any]
    patterns: NDArray[Any]
    values: NDArray[Any] | None
    beta: NDArray[Any]
    mask: NDArray[np.bool_] | None
    dtype: np.dtype[Any]


def operands(op: str, state: Any, patterns: Any, values: Any, beta: Any, mask: Any) -> Operands:
    """Types and leading axes; all other shapes are checked by the core, whose sentence is the same in every language."""
    given = _array.floating(op, "state", state)
    memory = _array.floating(op, "patterns", patterns, halves=True)
    readout = None if values is None else _array.floating(op, "values", values, halves=True)
    inverse_temperature = _array.scalars(op, "beta", beta)
    keep = _array.keep_mask(op, mask)
    dtype = _array.arithmetic(given, memory, readout)
    return Operands(
        _array.typed(given, dtype),
        _array.stored(memory, dtype),
        None if readout is None else _array.stored(readout, dtype),
        inverse_temperature,
        keep,
        dtype,
    )


def rows_shape(op: str, ops: Operands) -> tuple[int, ...]:
    """The shape of what has one entry per state pattern; a state without axes is refused by the core."""
    leading = _array.leading_axes(
        op,
        ("state", ops.state, 2),
        ("patterns", ops.patterns, 2),
        ("values", ops.values, 2),
        ("beta", ops.beta, 0),
        ("mask", ops.mask, 2),
    )
    return (*leading, ops.state.shape[-2] if ops.state.ndim >= 2 else 0)


def energy(
    state: ArrayLike,
    patterns: ArrayLike,
    *,
    beta: ArrayLike,
    separation: Separation = "softmax",
    mask: ArrayLike | None = None,
    stream: int | None = None,
) -> NDArray[Any]:
    """Energy of state patterns in the modern Hopfield network that stores `patterns`.

    ::

        E(q) = -lse(beta, X q) + |q|^2 / 2 + log(N) / beta + M^2 / 2,    M = max_i |x_i|
        lse(beta, z) = log(sum_i exp(beta z_i)) / beta

    E never rises under `retrieve`, its gradient is ``q - retrieve(q)``, and 0 <= E <= 2 M^2 inside the convex hull of the patterns.

    Parameters
    ----------
    state : array (..., n, d), float32 or float64
        State patterns q, one a row. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`.
    patterns : array (..., N, d)
        Stored patterns x_i. May be stored as float16 or bfloat16; arithmetic is then float32.
    beta : float or array broadcast to the leading axes
        Inverse temperature, positive; in units of one over a scalar product of two patterns. It has no default: 1/sqrt(d), an
        attention's scale, retrieves nothing from patterns of +-1.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names. With any but softmax, p = argmax p.z - Omega(p) of the
        scores z = beta X q, and E(q) = |q|^2 / 2 - Omega*(z) / beta, without further constants.
    mask : bool array, broadcast to (..., n, N), optional
        True where a state may see a pattern; N and M count those only. What no state may see can hold anything, NaN too.
    stream : int, optional
        The CUDA stream to queue the work on, where the arrays are on a CUDA device; see `retrieve`.

    Returns
    -------
    array (..., n)
        E, in the units of a scalar product. +inf for a state that may see nothing. On a CUDA device always float32.

    Raises
    ------
    ValueError
        A shape that does not fit, beta <= 0 or not finite, an unknown separation.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(n N d) time and O(block) memory. Any strides are read in place; only types are converted. Eq. 2 of Ramsauer et al. 2020.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> patterns = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
    >>> rc.hopfield.energy(patterns, patterns, beta=8.0).round(3)
    array([0.087, 0.087])
    """
    op = "hopfield.energy"
    if _device.found(state, patterns):
        only = {"separation": (separation, "softmax")}
        told: NDArray[Any] = _device_ops.energy(op, state, patterns, beta=beta, mask=mask, stream=stream, **only)
        return told
    _device.refuse_stream(op, stream)
    ops = operands(op, state, patterns, None, beta, mask)
    out = np.empty(rows_shape(op, ops), ops.dtype)
    core.hopfield_energy(ops.state, ops.patterns, ops.beta, ops.mask, *split(op, separation), out=out)
    return out


def retrieve(
    state: ArrayLike,
    patterns: ArrayLike,
    *,
    beta: ArrayLike,
    values: ArrayLike | None = None,
    separation: Separation = "softmax",
    steps: int | None = 1,
    tol: float | None = None,
    mask: ArrayLike | None = None,
    return_info: bool = False,
    out: NDArray[Any] | None = None,
    stream: int | None = None,
) -> NDArray[Any] | Retrieval:
    """Stored patterns that state patterns remind of.

    ::

        q <- X^T softmax(beta X q),    `steps` times;   with values Y the last step reads  Y^T softmax(beta X q)

    Parameters
    ----------
    state : array (..., n, d), float32 or float64
        Cues q, one a row. Integers and lists become float64. Leading axes broadcast as in `numpy.matmul`.
    patterns : array (..., N, d)
        Stored patterns x_i. May be stored as float16 or bfloat16; arithmetic is then float32.
    beta : float or array broadcast to the leading axes
        Inverse temperature, positive; in units of one over a scalar product of two patterns. Large values retrieve single patterns,
        small ones averages of many.
    values : array (..., N, e), optional
        What the last step reads instead of the patterns.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names.
    steps : int or None
        How many softmaxes. None: until each state has come to rest (at most 1000).
    tol : float, optional
        A state rests once an update moves it by no more than this, in Euclidean norm, whatever the others do. Without it states
        take all their steps; with ``steps=None`` it is 1e-4 in float32 and 1e-8 in float64.
    mask : bool array, broadcast to (..., n, N), optional
        True where a state may see a pattern. What no state may see can hold anything, NaN too.
    return_info : bool
        Also return what is known about each state.
    out : array, optional
        Where to write; of the right shape and dtype, sharing no memory with the inputs.
    stream : int, optional
        The CUDA stream to queue the work on, as a number (PyTorch: ``torch.cuda.current_stream().cuda_stream``), where the arrays
        are on a CUDA device; the default stream if not given. Nothing waits for it.

    Returns
    -------
    array (..., n, d), or (..., n, e) with values
        Zeros for a state that may see nothing.
    Retrieval
        With `return_info`: ``state``, the array above; ``energy`` and ``lse`` (..., n) of the final state pattern, which is the returned
        one or, with values, the one that read them; ``steps`` (..., n), the softmaxes taken; ``converged`` (..., n), whether the last
        update moved the state by at most `tol`. It costs another half step without values.

    Raises
    ------
    ValueError
        A shape that does not fit, beta <= 0 or not finite, steps < 1, tol < 0, an unknown separation, an unusable `out`.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    O(steps n N (d + e)) time and O(block) memory beyond inputs and outputs. A row's result depends on no other row, and on no number
    of threads, to the last bit. Any strides are read in place; only types are converted. Eq. 3 of Ramsauer et al. 2020.
    On a CUDA device states between steps have the type of `state`, and all steps are queued, whatever comes to rest.

    In `recollect.vjp` the gradient of a number of steps goes back through each, with O(steps n d) memory. With ``steps=None`` it is that
    of the fixed point itself, solved for there with O(n d) memory (Bai et al. 2019, https://arxiv.org/abs/1909.01377): zero for `state`,
    which only chooses the fixed point, and the same for every `tol`. A state that has no such gradient, because it does not come to
    rest or rests where the energy has no strict minimum, is a ValueError of the pullback, unless its cotangent is zero.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> patterns = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
    >>> damaged = np.array([[1.0, 1.0, 1.0, 0.0]])
    >>> rc.hopfield.retrieve(damaged, patterns, beta=8.0).round(3)
    array([[1., 1., 1., 1.]])
    """
    op = "hopfield.retrieve"
    if _device.found(state, patterns, values):
        count, tolerance = step_rule(op, steps, tol, np.dtype(np.float32))
        options: dict[str, Any] = {
            "beta": beta,
            "values": values,
            "steps": count,
            "tol": tolerance,
            "mask": mask,
            "stream": stream,
            "out": out,
            "return_info": return_info,
        }
        retrieved = _device_ops.retrieve(op, state, patterns, **options, separation=(separation, "softmax"))
        return Retrieval(*retrieved) if return_info else retrieved[0]
    _device.refuse_stream(op, stream)
    ops = operands(op, state, patterns, values, beta, mask)
    count, tolerance = step_rule(op, steps, tol, ops.dtype)
    shape = rows_shape(op, ops)
    memory = ops.patterns if ops.values is None else ops.values
    width = memory.shape[-1] if memory.ndim >= 2 else 0
    result = _array.output(op, out, (*shape, width), ops.dtype, ops.state, ops.patterns, ops.values, ops.beta, ops.mask)
    name, parameter = split(op, separation)
    told: dict[str, NDArray[Any]] = {}
    if return_info:
        told = {"energy": np.empty(shape, ops.dtype), "lse": np.empty(shape, ops.dtype)}
        told |= {"taken": np.empty(shape, np.int64), "converged": np.empty(shape, np.bool_)}
    core.hopfield_retrieve(
        ops.state,
        ops.patterns,
        ops.values,
        ops.beta,
        ops.mask,
        name,
        parameter,
        count,
        tolerance,
        result,
        **told,
    )
    if not return_info:
        return result
    info = Retrieval(result, *told.values())
    if ops.values is None:
        # The core tells energies of the states that were compared; the state that came out needs one more look.
        core.hopfield_energy(result, ops.patterns, ops.beta, ops.mask, name, parameter, out=info.energy, lse=info.lse)
    return info


def nearest(
    state: ArrayLike,
    patterns: ArrayLike,
    *,
    beta: ArrayLike,
    k: int = 1,
    separation: Separation = "softmax",
    mask: ArrayLike | None = None,
) -> Nearest:
    """The k stored patterns that each state pattern weighs most, with their weights.

    ::

        p = softmax(beta X q);   the k largest p_i, falling, among equals the lower i first

    Parameters
    ----------
    state : array (..., n, d), float32 or float64
        State patterns q, one a row.
    patterns : array (..., N, d)
        Stored patterns x_i. May be stored as float16 or bfloat16; arithmetic is then float32.
    beta : float or array broadcast to the leading axes
        Inverse temperature, positive. It does not change which patterns are nearest, only how much they weigh.
    k : int
        How many, from 1 to N.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names.
    mask : bool array, broadcast to (..., n, N), optional
        True where a state may see a pattern.

    Returns
    -------
    Nearest
        ``indices`` (..., n, k), int64, and ``weights`` (..., n, k): softmax weights among all admissible patterns, not renormalised
        to the k. Where fewer than k are admissible, index -1 and weight 0.

    Raises
    ------
    ValueError
        A shape that does not fit, beta <= 0 or not finite, k outside 1 ... N.
    TypeError
        A dtype that is no number, an array of another device, a tensor that requires grad.

    Notes
    -----
    One pass: O(n N d) time, O(block) memory. The scores are scalar products, eq. 3 of Ramsauer et al. 2020.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rc.hopfield.nearest([[0.9, 0.2, 0.0]], np.eye(3), beta=10.0, k=2).indices
    array([[0, 1]])
    """
    op = "hopfield.nearest"
    ops = operands(op, state, patterns, None, beta, mask)
    stored = ops.patterns.shape[-2] if ops.patterns.ndim >= 2 else 0
    count = _array.whole(op, "k", k, 1, stored, expected=f"a number from 1 to N={stored}")
    shape = (*rows_shape(op, ops), count)
    found = Nearest(np.empty(shape, np.int64), np.empty(shape, ops.dtype))
    core.hopfield_nearest(ops.state, ops.patterns, ops.beta, ops.mask, *split(op, separation), *found)
    return found


def step_rule(op: str, steps: Any, tol: Any, dtype: np.dtype[Any]) -> tuple[int, float]:
    """How many softmaxes at most, and how short an update ends a row (negative: none does)."""
    if tol is not None:
        if not isinstance(tol, Real):
            raise TypeError(f"{op}: tol is {tol!r}; expected a number or None")
        tol = float(tol)
        if not tol >= 0:
            raise ValueError(f"{op}: tol is {tol}; expected a number of at least 0")
    if steps is None:
        default = 1e-8 if dtype == np.float64 else 1e-4
        return core.hopfield_most_steps, default if tol is None else tol
    count = _array.whole(op, "steps", steps, 1, expected="at least 1, or None", kind="a whole number or None")
    return count, -1.0 if tol is None else tol
