# SPDX-License-Identifier: BSD-3-Clause
"""A Hopfield memory in files: one that was saved, or patterns that somebody else wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _checks
from ._files import PathLike, load_arrays, open_array, open_in_place, save_arrays
from ._store import Snapshot

_KIND = "recollect.HopfieldMemory"


class Saved(NamedTuple):
    """What a memory consists of; `top` is the largest id that was ever given, `mapped` where the arrays still are."""

    held: Snapshot
    dtype: npt.DTypeLike
    beta: float | None
    top: int
    mapped: Path | None

    @property
    def half(self) -> np.dtype[Any] | None:
        """The dtype of patterns that are kept in half the space."""
        dtype = self.held.patterns.dtype
        return dtype if dtype.name in _checks.HALF else None

    def check(self, who: str) -> None:
        """ValueError unless a memory of this dtype could have it."""
        self.held.check()
        if self.beta is not None:
            _checks.positive(self.beta, "beta", who)
        dtype = _checks.arithmetic(self.dtype, who)
        _checks.storage(self.half, dtype, who)
        for array, expected in zip(self.held, (self.half or dtype, dtype, np.dtype(np.int64)), strict=True):
            if array is not None and array.dtype != expected:
                raise ValueError(f"an array has dtype {array.dtype}; expected {expected}")


def save_memory(path: PathLike, saved: Saved, *, overwrite: bool) -> None:
    held = saved.held
    arrays = {"patterns": held.patterns, "ids": held.ids}
    if held.values is not None:
        arrays["values"] = held.values
    metadata = {"dtype": np.dtype(saved.dtype).name, "beta": repr(saved.beta), "largest_id": str(saved.top)}
    save_arrays(path, arrays, kind=_KIND, metadata=metadata, overwrite=overwrite, who="HopfieldMemory.save")


def load_memory(path: PathLike, *, mmap: bool, who: str) -> Saved:
    arrays, metadata = load_arrays(path, kind=_KIND, mmap=mmap, who=who)
    try:
        held = Snapshot(arrays["patterns"], arrays.get("values"), arrays["ids"])
        beta = None if metadata["beta"] == "None" else float(metadata["beta"])
        saved = Saved(held, metadata["dtype"], beta, int(metadata["largest_id"]), Path(path) if mmap else None)
        saved.check(who)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: '{path}' is damaged ({error})") from None
    return saved


def open_memory(
    path: PathLike, *, values: PathLike | None, ids: npt.ArrayLike | None, beta: float | None, who: str
) -> Saved:
    folder = Path(path)
    if folder.is_dir():
        path = folder / "patterns.npy"
        values = folder / "values.npy" if values is None and (folder / "values.npy").exists() else values
        if ids is None and (folder / "ids.npy").exists():
            ids = open_array(folder / "ids.npy", who=who, ndim=1)
    patterns = open_in_place(path, ("float16", "float32", "float64"), who=who)
    dtype = np.dtype(np.float64 if patterns.dtype == np.float64 else np.float32)
    held_values = None if values is None else open_in_place(values, (dtype.name,), who=who)
    held_ids = np.arange(len(patterns)) if ids is None else _checks.id_array(ids, who)
    saved = Saved(Snapshot(patterns, held_values, held_ids), dtype, beta, -1, Path(path))
    try:
        saved.check(who)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
    return saved
