# SPDX-License-Identifier: BSD-3-Clause
"""Retrieval from file to file, a block of queries at a time: the work behind ``python -m recollect retrieve``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _array, _checks, hopfield
from ._files import PathLike, atomic_path, open_array

__all__ = ["retrieve_file"]

Array = npt.NDArray[Any]

_WHO = "retrieve"


def retrieve_file(
    patterns: PathLike,
    queries: PathLike,
    output: PathLike,
    *,
    beta: float,
    values: PathLike | None = None,
    steps: int | None = 1,
    tol: float | None = None,
    block: int = 4096,
    dtype: str | None = None,
    overwrite: bool = False,
) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Recalls every row of the file ``queries`` (n, d) from the file ``patterns`` (N, d) into the .npy file ``output``.

    With a file of ``values`` (N, e) those are read out. The output appears under its name only when it is whole.
    Returns its shape and dtype. Memory: O(block (d + e)) beyond what the system caches of the files, and a copy of
    patterns or values only if they have another dtype than the arithmetic.
    """
    stored = open_array(patterns, who=_WHO)
    cues = open_array(queries, who=_WHO)
    readout = None if values is None else open_array(values, who=_WHO)
    _check_shapes(patterns, stored, queries, cues, values, readout)
    number = _arithmetic(dtype, stored, cues, readout)
    stored = _usable(stored, number, str(patterns))
    readout = None if readout is None else _usable(readout, number, str(values))
    shape = (len(cues), (stored if readout is None else readout).shape[1])

    with (
        atomic_path(output, overwrite=overwrite, who=_WHO) as temporary,
        open(temporary, "xb") as file,
        _progress(len(cues)) as advance,
    ):
        # Written as a stream and not through a map: a full disk is then an error and not a crash.
        header = {"descr": np.lib.format.dtype_to_descr(number), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(cues), block):
            part = _checks.convert(np.ascontiguousarray(cues[start : start + block]), number, str(queries), _WHO)
            recalled = hopfield.retrieve(part, stored, beta=beta, values=readout, steps=steps, tol=tol)
            file.write(np.asarray(recalled).data)
            advance(len(part))
    return shape, number


def _check_shapes(
    patterns: PathLike, stored: Array, queries: PathLike, cues: Array, values: PathLike | None, readout: Array | None
) -> None:
    if not len(stored):
        raise ValueError(f"{_WHO}: '{patterns}' holds no patterns")
    if cues.shape[1] != stored.shape[1]:
        raise ValueError(
            f"{_WHO}: '{queries}' has shape {cues.shape}; expected (n, d={stored.shape[1]}), the width of '{patterns}'"
        )
    if readout is not None and len(readout) != len(stored):
        raise ValueError(
            f"{_WHO}: '{values}' has shape {readout.shape}; expected (N={len(stored)}, e), a row for each pattern"
        )


def _arithmetic(dtype: str | None, *arrays: Array | None) -> np.dtype[Any]:
    if dtype is not None:
        return np.dtype(dtype)
    wide = any(array is not None and array.dtype.name not in ("float16", "float32") for array in arrays)
    return np.dtype(np.float64 if wide else np.float32)


def _usable(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """What the core reads in place, once for all blocks."""
    array = _array.native(array)
    in_place = array.dtype == dtype or (array.dtype == np.float16 and dtype == np.float32)
    return array if in_place else _checks.convert(array, dtype, f"'{name}'", _WHO)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on standard error, where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done: None
        return
    with tqdm(total=total, unit=" queries", disable=None) as bar:
        yield bar.update
