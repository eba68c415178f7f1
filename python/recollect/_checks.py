# SPDX-License-Identifier: BSD-3-Clause
"""What the stateful memories ask of their arguments; every refusal is one sentence that names the argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _array
from ._files import bfloat16

__all__ = ["HALF", "arithmetic", "convert", "fit", "id_array", "positive", "refuse_non_finite", "storage", "width"]

Array = npt.NDArray[Any]

HALF = ("float16", "bfloat16")


def width(value: int, name: str, who: str) -> int:
    """A width: an integer of 1 or more."""
    return _array.whole(who, name, value, 1, expected="1 or more", kind="an integer")


def positive(value: float, name: str, who: str) -> float:
    """A positive finite number."""
    try:
        checked = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{who}: {name} is {value!r}; expected a number") from None
    if not (checked > 0 and math.isfinite(checked)):
        raise ValueError(f"{who}: {name} is {checked}; expected a positive finite number")
    return checked


def arithmetic(dtype: npt.DTypeLike, who: str) -> np.dtype[Any]:
    """The dtype to compute with."""
    checked = np.dtype(dtype)
    if checked not in (np.float32, np.float64):
        raise TypeError(f"{who}: dtype is {checked}; expected float32 or float64")
    return checked


def storage(wanted: npt.DTypeLike | None, dtype: np.dtype[Any], who: str) -> np.dtype[Any]:
    """The dtype to store patterns with: that of the arithmetic, or half of float32."""
    if wanted is None:
        return dtype
    # NumPy does not know the name bfloat16, but knows the dtype once ml_dtypes is there.
    name = wanted if isinstance(wanted, str) else np.dtype(wanted).name
    if name not in HALF:
        raise TypeError(f"{who}: storage is {name}; expected float16 or bfloat16")
    if dtype != np.float32:
        raise TypeError(f"{who}: {name} storage is computed with in float32; dtype is {dtype}")
    return bfloat16(who) if name == "bfloat16" else np.dtype(np.float16)


def convert(array: Array, dtype: np.dtype[Any], name: str, who: str) -> Array:
    """``array`` in ``dtype``; a number that would become infinite there is refused."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if not np.can_cast(array.dtype, dtype) and (np.isinf(converted) & ~np.isinf(array)).any():
        raise ValueError(f"{who}: {name} holds numbers too large for {dtype}")
    return converted


def fit(data: npt.ArrayLike, like: Array, letter: str, name: str, who: str) -> Array:
    """``data`` as rows that can be stored beside those of ``like``, whose width the error text calls ``letter``."""
    array = _array.floating(who, name, data, halves=True)
    width = like.shape[1]
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{who}: {name} has shape {array.shape}; expected (n, {letter}={width})")
    return convert(array, like.dtype, name, who)


def refuse_non_finite(array: Array, name: str, who: str) -> None:
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{who}: {name} has {np.count_nonzero(~finite)} rows with infinity or NaN; the first is row {finite.argmin()}"
        )


def id_array(ids: npt.ArrayLike, who: str, *, unique: bool = True) -> npt.NDArray[np.int64]:
    """``ids`` as int64; a single one becomes an array of one."""
    array = np.atleast_1d(_array.plain(who, "ids", ids))
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{who}: ids has dtype {array.dtype}; expected integers")
    if array.ndim != 1:
        raise ValueError(f"{who}: ids has shape {array.shape}; expected (n,)")
    if array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{who}: id {array.max()} does not fit in int64")
    checked = array.astype(np.int64)
    if unique and len(np.unique(checked)) != len(checked):
        raise ValueError(f"{who}: an id is given twice")
    return checked
