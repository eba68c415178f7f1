# SPDX-License-Identifier: BSD-3-Clause
"""The stateful Hopfield memory: patterns are added, recalled, removed by id, saved and mapped from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _array, _checks, _device
from . import _hopfield as hopfield
from ._files import PathLike
from ._memory_files import Saved, load_memory, open_memory, save_memory
from ._store import Snapshot, Store

__all__ = ["HopfieldMemory"]

Array = npt.NDArray[Any]


class HopfieldMemory:
    """A modern Hopfield network as an object: stores patterns and recalls them from damaged cues.

    With the stored patterns x_1 .. x_N and a cue q, one step of recall is (Ramsauer et al. 2020,
    arXiv:2008.02217, eq. 3)::

        p = softmax(beta X q),   q <- X^T p,   and with values V the answer is V^T p

    which never raises the energy E(q) = -lse(beta, X q) + |q|^2/2 + log(N)/beta + M^2/2, M = max |x_i| (eq. 2).

    Parameters
    ----------
    d : int
        Width of a pattern.
    values : int, optional
        Width e of a value. Without it a memory recalls its patterns themselves.
    beta : float, optional
        Inverse temperature, for calls that do not give their own. There is no default: large means one
        pattern is recalled, small means an average of many.
    dtype : float32 or float64
        The dtype of the arithmetic, of values and of results. Patterns, values and cues are converted to it.
    storage : {"float16", "bfloat16"}, optional
        Keep the patterns in half the space; the arithmetic is float32. bfloat16 needs ml_dtypes.

    Notes
    -----
    Reads (``retrieve``, ``energy``, ``nearest``, the views) may run in any number of threads while others write:
    each works on the snapshot that was current when it began, and a snapshot never changes. Writers take
    turns. ``add`` costs O(n d) amortised, ``remove`` O(N d) (remove many at once), a read of n cues O(n N d)
    time and no memory beyond its result.

    Examples
    --------
    >>> import numpy as np
    >>> from recollect.hopfield import HopfieldMemory
    >>> memory = HopfieldMemory(4, beta=4.0)
    >>> memory.add(np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]))
    array([0, 1, 2])
    >>> damaged = np.array([1, -1, 1, 0.0])
    >>> memory.retrieve(damaged).round(2).tolist()
    [1.0, -1.0, 1.0, -1.0]
    >>> ids, weights = memory.nearest(damaged, k=2)
    >>> ids
    array([1, 0])
    >>> memory.remove([1])
    >>> memory.ids, len(memory)
    (array([0, 2]), 2)
    """

    def __init__(
        self,
        d: int,
        *,
        values: int | None = None,
        beta: float | None = None,
        dtype: npt.DTypeLike = np.float32,
        storage: npt.DTypeLike | None = None,
    ) -> None:
        who = "HopfieldMemory"
        self._dtype = _checks.arithmetic(dtype, who)
        rows = np.empty((0, _checks.width(d, "d", who)), _checks.storage(storage, self._dtype, who))
        readout = None if values is None else np.empty((0, _checks.width(values, "values", who)), self._dtype)
        self._store = Store(rows, readout, np.empty(0, np.int64))
        self._mapped: Path | None = None
        self.beta = beta

    @classmethod
    def from_patterns(
        cls,
        patterns: npt.ArrayLike,
        *,
        values: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
        beta: float | None = None,
        dtype: npt.DTypeLike | None = None,
        storage: npt.DTypeLike | None = None,
        check_finite: bool = False,
        stream: int | None = None,
    ) -> HopfieldMemory:
        """A memory that holds ``patterns`` (N, d), and ``values`` (N, e) and ``ids`` (N,) where given.

        ``dtype`` follows the patterns unless given: float32 stays, float16 and bfloat16 stay as they are stored
        and are computed with in float32, everything else becomes float64. For errors see :meth:`add`.

        Arrays of a CUDA device stay there, packed once for all retrievals: ``help`` of such a memory says what it does.

        >>> HopfieldMemory.from_patterns(np.eye(3, dtype=np.float32), values=[[1], [2], [3]], beta=8)
        HopfieldMemory(3 patterns, d=3, values=1, beta=8.0, dtype=float32)
        """
        who = "HopfieldMemory.from_patterns"
        if _device.found(patterns, values):
            from ._device_memory import DeviceMemory  # which is a HopfieldMemory

            rest = {"ids": ids, "dtype": dtype, "storage": storage, "check_finite": check_finite}
            return DeviceMemory(who, patterns, values, beta=beta, stream=stream, **rest)
        _device.refuse_stream(who, stream)
        array = _array.floating(who, "patterns", patterns, halves=True)
        readout = None if values is None else _array.floating(who, "values", values, halves=True)
        if array.ndim != 2:
            raise ValueError(f"{who}: patterns has shape {array.shape}; expected (N, d)")
        if readout is not None and readout.ndim != 2:
            raise ValueError(f"{who}: values has shape {readout.shape}; expected (N={len(array)}, e)")
        if dtype is None:
            half = array.dtype.name in _checks.HALF
            storage = array.dtype if half and storage is None else storage
            dtype = np.float64 if array.dtype == np.float64 and storage is None else np.float32
        width = None if readout is None else readout.shape[1]
        memory = cls(array.shape[1], values=width, beta=beta, dtype=dtype, storage=storage)
        memory.add(array, readout, ids, check_finite=check_finite)
        return memory

    # -- what is stored ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._store.snapshot.ids)

    @property
    def d(self) -> int:
        """Width of a pattern."""
        return int(self._store.snapshot.patterns.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the arithmetic, of values and of results."""
        return self._dtype

    @property
    def beta(self) -> float | None:
        """Inverse temperature for calls that do not give their own."""
        return self._beta

    @beta.setter
    def beta(self, beta: float | None) -> None:
        self._beta = None if beta is None else _checks.positive(beta, "beta", "HopfieldMemory")

    @property
    def patterns(self) -> Array:
        """(N, d), read-only, in the order in which they were added."""
        return self._store.snapshot.patterns

    @property
    def values(self) -> Array | None:
        """(N, e), read-only, or None."""
        return self._store.snapshot.values

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """(N,), read-only; row i of ``patterns`` and ``values`` belongs to ``ids[i]``."""
        return self._store.snapshot.ids

    def __repr__(self) -> str:
        patterns, values, ids = self._store.snapshot
        parts = [f"{len(ids)} patterns", f"d={patterns.shape[1]}"]
        parts += [f"values={values.shape[1]}"] if values is not None else []
        parts += [f"beta={self.beta}", f"dtype={self.dtype}"]
        parts += [f"storage={patterns.dtype}"] if patterns.dtype != self.dtype else []
        parts += [f"mapped from '{self._mapped}'"] if self._mapped else []
        return f"HopfieldMemory({', '.join(parts)})"

    # -- writing -------------------------------------------------------------------------------------------------

    def add(
        self,
        patterns: npt.ArrayLike,
        values: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
        *,
        check_finite: bool = False,
    ) -> npt.NDArray[np.int64]:
        """Stores copies of ``patterns`` (n, d), with ``values`` (n, e) if the memory has values; returns their ids.

        Without ``ids`` new ones are given, counting up and never used before. Given ones must be integers that
        are not in the memory (that of a removed pattern may be used again). Either everything is stored or
        nothing.

        ValueError: a wrong shape, an id twice, a number that the dtype of the memory cannot hold, or, with
        ``check_finite``, infinity or NaN. TypeError: not real numbers. Cost O(n d) amortised.
        """
        who = "HopfieldMemory.add"
        self._refuse_mapped(who)
        held = self._store.snapshot
        rows = _checks.fit(patterns, held.patterns, "d", "patterns", who)
        readout = None
        if held.values is not None:
            if values is None:
                raise ValueError(f"{who}: this memory has values of width {held.values.shape[1]}; none were given")
            readout = _checks.fit(values, held.values, "e", "values", who)
            if len(readout) != len(rows):
                raise ValueError(
                    f"{who}: values has shape {readout.shape}; expected (n={len(rows)}, e={readout.shape[1]})"
                )
        elif values is not None:
            raise ValueError(f"{who}: this memory has no values; make it with HopfieldMemory(d, values=e)")
        if check_finite:
            _checks.refuse_non_finite(rows, "patterns", who)
            if readout is not None:
                _checks.refuse_non_finite(readout, "values", who)
        return self._store.append(rows, readout, ids, who)

    def remove(self, ids: npt.ArrayLike) -> None:
        """Forgets the patterns with these ids, exactly; the order of the others is kept.

        KeyError: an id that is not in the memory. ValueError: an id given twice. Then nothing is changed.
        Cost O(N d) for any number of ids: the rest is copied, since readers may still hold the old arrays.
        """
        self._refuse_mapped("HopfieldMemory.remove")
        self._store.remove(ids, "HopfieldMemory.remove")

    # -- reading -------------------------------------------------------------------------------------------------

    def retrieve(
        self,
        cues: npt.ArrayLike,
        *,
        beta: float | None = None,
        steps: int | None = 1,
        tol: float | None = None,
        read: Literal["patterns", "values"] | None = None,
        return_info: bool = False,
    ) -> Any:
        """Recalls from ``cues`` (..., d): the completed patterns (..., d), or the values (..., e) if there are any.

        ``steps`` and ``tol`` are those of :func:`recollect.hopfield.retrieve`. ``read="patterns"`` completes the
        cue even where values are stored. With ``return_info`` a named tuple (state, energy, lse, steps,
        converged), one entry per cue. ValueError: an empty memory, a wrong width, no beta.
        """
        held, flat, lead = self._read(cues, "retrieve")
        if read not in (None, "patterns", "values") or (read == "values" and held.values is None):
            have = "patterns" if held.values is None else "patterns or values"
            raise ValueError(f"HopfieldMemory.retrieve: read is {read!r}; this memory can read {have}")
        result = hopfield.retrieve(
            flat,
            held.patterns,
            beta=self._given_beta(beta, "retrieve"),
            values=None if read == "patterns" else held.values,
            steps=steps,
            tol=tol,
            return_info=return_info,
        )
        if not isinstance(result, hopfield.Retrieval):
            return result.reshape(*lead, result.shape[-1])
        state, *per_cue = result
        return hopfield.Retrieval(
            state.reshape(*lead, state.shape[-1]), *(np.reshape(array, lead)[()] for array in per_cue)
        )

    def energy(self, cues: npt.ArrayLike, *, beta: float | None = None) -> Any:
        """The energy E of ``cues`` (..., d) among the stored patterns, shape (...). Errors as in :meth:`retrieve`."""
        held, flat, lead = self._read(cues, "energy")
        return np.reshape(hopfield.energy(flat, held.patterns, beta=self._given_beta(beta, "energy")), lead)[()]

    def nearest(
        self, cues: npt.ArrayLike, k: int = 1, *, beta: float | None = None
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """The ids (..., k) of the patterns with the largest softmax weights for ``cues`` (..., d), and the weights.

        Largest first, ties to the pattern that was added first. The weights are those of all N patterns, so k of
        them sum to less than 1. ValueError: k outside 1..N, and as in :meth:`retrieve`.
        """
        held, flat, lead = self._read(cues, "nearest")
        if _checks.width(k, "k", "HopfieldMemory.nearest") > len(held.ids):
            raise ValueError(f"HopfieldMemory.nearest: k is {k}; the memory holds {len(held.ids)} patterns")
        rows, weights = hopfield.nearest(flat, held.patterns, beta=self._given_beta(beta, "nearest"), k=k)
        return held.ids[rows].reshape(*lead, k), np.reshape(weights, (*lead, k))

    def get(self, ids: npt.ArrayLike) -> tuple[Array, Array | None]:
        """Copies of the stored patterns (n, d) and values (n, e) or None, in the order of ``ids`` (n,).

        KeyError: an id that is not in the memory.
        """
        held = self._store.snapshot
        rows = held.rows(_checks.id_array(ids, "HopfieldMemory.get", unique=False), "HopfieldMemory.get")
        return held.patterns[rows], None if held.values is None else held.values[rows]

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes one safetensors file, under a temporary name that is moved in place when it is complete.

        FileExistsError: ``path`` exists and ``overwrite`` is not set. Needs the safetensors package.
        """
        saved = Saved(self._store.snapshot, self.dtype, self.beta, self._store.top, None)
        save_memory(path, saved, overwrite=overwrite)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False) -> HopfieldMemory:
        """Reads what :meth:`save` wrote. With ``mmap`` the file is mapped: it may be larger than memory, and the
        memory is read-only (``add`` and ``remove`` raise ValueError).

        FileNotFoundError: no such file. ValueError: truncated, damaged, or not a saved HopfieldMemory.
        """
        return cls._adopt(load_memory(path, mmap=mmap, who="HopfieldMemory.load"))

    @classmethod
    def open_npy(
        cls,
        path: PathLike,
        *,
        values: PathLike | None = None,
        ids: npt.ArrayLike | None = None,
        beta: float | None = None,
    ) -> HopfieldMemory:
        """A read-only memory whose patterns are mapped from a .npy file (N, d) of float16, float32 or float64.

        ``path`` may be a directory that holds ``patterns.npy`` and, if wanted, ``values.npy`` and ``ids.npy``.
        Nothing is copied, so the file may be larger than memory; a file that could only be used as a copy is
        refused (ValueError: column order; TypeError: another dtype or byte order). Other errors as in :meth:`load`.
        """
        return cls._adopt(open_memory(path, values=values, ids=ids, beta=beta, who="HopfieldMemory.open_npy"))

    # -- inside --------------------------------------------------------------------------------------------------

    @classmethod
    def _adopt(cls, saved: Saved) -> HopfieldMemory:
        patterns, values, _ = saved.held
        width = None if values is None else values.shape[1]
        memory = cls(patterns.shape[1], values=width, beta=saved.beta, dtype=saved.dtype, storage=saved.half)
        memory._store = Store(*saved.held, top=saved.top)
        memory._mapped = saved.mapped
        return memory

    def _read(self, cues: npt.ArrayLike, name: str) -> tuple[Snapshot, Array, tuple[int, ...]]:
        held, who = self._store.snapshot, f"HopfieldMemory.{name}"
        if not len(held.ids):
            raise ValueError(f"{who}: the memory is empty; add patterns first")
        array = _checks.convert(_array.floating(who, "cues", cues, halves=True), self._dtype, "cues", who)
        d = held.patterns.shape[1]
        if array.ndim == 0 or array.shape[-1] != d:
            raise ValueError(f"{who}: cues has shape {array.shape}; expected (..., d={d})")
        return held, array.reshape(-1, d), array.shape[:-1]

    def _given_beta(self, beta: float | None, name: str) -> float:
        beta = self._beta if beta is None else beta
        if beta is None:
            raise ValueError(f"HopfieldMemory.{name}: beta must be given, here or when the memory is made")
        return _checks.positive(beta, "beta", f"HopfieldMemory.{name}")

    def _refuse_mapped(self, who: str) -> None:
        if self._mapped is not None:
            raise ValueError(
                f"{who}: this memory is mapped from '{self._mapped}' and read-only; load it without mmap to change it"
            )
