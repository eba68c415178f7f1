# SPDX-License-Identifier: BSD-3-Clause
"""What callers hand over becomes NumPy arrays that the compiled core understands, or one clear sentence.

Rules: float32 and float64 stay; integers and lists become float64 as in NumPy; float16 and bfloat16 are storage types, computed
with in float32. Nothing is copied unless its type or byte order has to change.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _device

FloatArray = NDArray[np.floating[Any]]

_HALVES = ("float16", "bfloat16")
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def floating(op: str, name: str, value: Any, *, halves: bool = False) -> NDArray[Any]:
    """`value` as an array of float32 or float64 (with `halves` also of float16 or bfloat16)."""
    if type(value) is np.ndarray and (value.dtype is _FLOAT32 or value.dtype is _FLOAT64):
        return value  # the common case; a call costs about as much as these lines do
    array = plain(op, name, value)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.name not in ("float32", "float64", *_HALVES):
        raise TypeError(f"{op}: {name} has dtype {array.dtype}; expected float32 or float64")
    if array.dtype.name in _HALVES and not halves:
        array = array.astype(np.float32)
    return native(array)


def plain(op: str, name: str, value: Any) -> NDArray[Any]:
    """`value` as a NumPy array of whatever type it has."""
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{op}: {name} is a tensor that requires grad, and its graph would be lost here; "
            "pass a detached tensor and take gradients with recollect.vjp"
        )
    if _device.holds(value):
        raise TypeError(
            f"{op}: {name} is on a CUDA device; expected an array in the memory of this process, as the others are or as there is "
            "no CUDA kernel for this yet"
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as problem:
        kind = type(value).__name__
        raise TypeError(
            f"{op}: {name} ({kind}) cannot be read as an array in the memory of this process: {problem}"
        ) from None


def native(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def arithmetic(*arrays: NDArray[Any] | None) -> np.dtype[Any]:
    """The type to compute in: float64 if any operand is, else float32."""
    for array in arrays:
        if array is not None and array.dtype == _FLOAT64:
            return _FLOAT64
    return _FLOAT32


def typed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return array if array.dtype is dtype else array.astype(dtype, copy=False)


def stored(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A memory in the form the core reads: as it is if it has the arithmetic type, and halves too if that is float32."""
    if array.dtype is not dtype and array.dtype.name in _HALVES and dtype == _FLOAT32:
        # NumPy's buffers cannot say bfloat16; the core takes its bits as uint16.
        return array if array.dtype == np.float16 else array.view(np.uint16)
    return typed(array, dtype)


def scalars(op: str, name: str, value: Any) -> FloatArray:
    """`value`, a number or an array of numbers, as float64."""
    if type(value) is float:
        return np.array(value)
    array = plain(op, name, value)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{op}: {name} has dtype {array.dtype}; expected a number or an array of numbers")
    return native(array.astype(np.float64, copy=False))


def whole(
    op: str, name: str, value: Any, low: int, high: int | None = None, *, expected: str, kind: str = "a whole number"
) -> int:
    """`value` as an int from `low` to `high`; `expected` says in words what was out of bounds, `kind` what it should have been."""
    if isinstance(value, bool):  # an int to Python; no count to anybody
        raise TypeError(f"{op}: {name} is {value!r}; expected {kind}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} is {value!r}; expected {kind}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{op}: {name} is {number}; expected {expected}")
    return number


def cotangent(op: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "d_out") -> NDArray[Any]:
    """d_out, or what an op calls it, as the op's pullback needs it."""
    given = typed(floating(op, name, value), dtype)
    if given.shape != shape:
        raise ValueError(f"{op}: {name} has shape {given.shape}; expected {shape}")
    return given


def keep_mask(op: str, value: Any) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    array = plain(op, "mask", value)
    if array.dtype != np.bool_:
        raise TypeError(
            f"{op}: mask has dtype {array.dtype}; expected bool, True where a state may attend to a pattern"
        )
    return array


def leading_axes(op: str, *operands: tuple[str, NDArray[Any] | None, int]) -> tuple[int, ...]:
    """The broadcast of the leading axes of (name, array, number of own axes)."""
    common: tuple[int, ...] = ()
    for name, array, own in operands:
        if array is None:
            continue
        leading = array.shape[: max(array.ndim - own, 0)]
        if not leading or leading == common:
            continue
        if not common:
            common = leading
            continue
        try:
            common = np.broadcast_shapes(common, leading)
        except ValueError:
            raise ValueError(
                f"{op}: {name} has shape {array.shape}; its leading axes do not broadcast with {common} of the arguments before it"
            ) from None
    return common


def output(
    op: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: NDArray[Any] | None
) -> NDArray[Any]:
    """`out` if it can be written to, or a fresh array. A caller's array must not share memory with an input."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{op}: out is a {type(out).__name__}; expected a NumPy array")
    if out.dtype != dtype:
        raise TypeError(f"{op}: out has dtype {out.dtype}; expected {dtype}")
    if out.shape != shape:
        raise ValueError(f"{op}: out has shape {out.shape}; expected {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{op}: out is read-only; expected an array that can be written to")
    for array in inputs:
        if array is not None and np.may_share_memory(out, array):
            raise ValueError(f"{op}: out shares memory with an input; expected an array of its own")
    return out


def sum_to_shape(gradient: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The gradient of an operand that was broadcast from `shape`."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and gradient.shape[extra + i] != 1
    )
    return gradient.sum(axis=axes).reshape(shape) if axes else gradient.reshape(shape)
