# SPDX-License-Identifier: BSD-3-Clause
"""Rows with ids that grow and shrink while others read: what a stateful memory keeps its patterns in."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._checks import id_array

__all__ = ["Snapshot", "Store"]

Array = npt.NDArray[Any]
_LARGEST = int(np.iinfo(np.int64).max)


class Snapshot(NamedTuple):
    """What a reader works on. Its arrays are read-only and their contents never change once it is published."""

    patterns: Array
    values: Array | None
    ids: npt.NDArray[np.int64]

    def rows(self, wanted: npt.NDArray[np.int64], who: str) -> npt.NDArray[np.intp]:
        """The row of each wanted id. KeyError: one is not here."""
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids, wanted, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(wanted), np.intp)
        known = self.ids[rows] == wanted if len(order) else np.zeros(len(wanted), bool)
        if not known.all():
            raise KeyError(f"{who}: there is no id {wanted[known.argmin()]} in the memory")
        return rows

    def check(self) -> None:
        """ValueError: these are not the arrays of a memory."""
        patterns, values, ids = self
        if patterns.ndim != 2 or ids.shape != patterns.shape[:1] or ids.dtype != np.int64:
            raise ValueError(f"patterns has shape {patterns.shape} and ids {ids.shape}; expected (N, d) and (N,)")
        if values is not None and (values.ndim != 2 or len(values) != len(ids)):
            raise ValueError(f"values has shape {values.shape}; expected (N={len(ids)}, e)")
        if len(np.unique(ids)) != len(ids):
            raise ValueError("an id occurs twice")


class Store:
    """The rows of a memory. One writer at a time, any number of readers.

    A reader takes ``snapshot`` once and works on that. A writer never changes an element that a published
    snapshot shows: ``append`` writes behind the last one's end (into a larger copy when there is no room, so
    the cost per row is constant on average), ``remove`` copies the rows that stay.
    """

    def __init__(self, patterns: Array, values: Array | None, ids: npt.NDArray[np.int64], *, top: int = -1) -> None:
        self._lock = threading.Lock()
        self._top = max(top, int(ids.max(initial=-1)))
        # The ids as a set, built when ids first arrive that are not larger than all before.
        self._known: set[int] | None = None
        self._publish(Snapshot(patterns, values, ids), len(ids))

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def top(self) -> int:
        """The largest id ever stored, or -1."""
        return self._top

    def append(
        self, patterns: Array, values: Array | None, ids: npt.ArrayLike | None, who: str
    ) -> npt.NDArray[np.int64]:
        with self._lock:
            new_ids = self._new_ids(ids, len(patterns), who)
            n = len(self._snapshot.ids)
            held = self._buffers
            grown = Snapshot(
                _appended(held.patterns, n, patterns),
                None if held.values is None or values is None else _appended(held.values, n, values),
                _appended(held.ids, n, new_ids),
            )
            self._publish(grown, n + len(new_ids))
            self._top = max(self._top, int(new_ids.max(initial=-1)))
            if self._known is not None:
                self._known.update(new_ids.tolist())
        return new_ids

    def remove(self, ids: npt.ArrayLike, who: str) -> None:
        wanted = id_array(ids, who)
        with self._lock:
            held = self._snapshot
            keep = np.ones(len(held.ids), bool)
            keep[held.rows(wanted, who)] = False
            n = len(held.ids) - len(wanted)
            room = min(len(self._buffers.ids), 2 * n)  # so that removing and adding in turn copies once, not twice
            left = Snapshot(
                _compacted(held.patterns, keep, n, room),
                None if held.values is None else _compacted(held.values, keep, n, room),
                _compacted(held.ids, keep, n, room),
            )
            self._publish(left, n)
            if self._known is not None:
                self._known.difference_update(wanted.tolist())

    def _new_ids(self, ids: npt.ArrayLike | None, n: int, who: str) -> npt.NDArray[np.int64]:
        if ids is None:
            if self._top > _LARGEST - 1 - n:
                raise ValueError(f"{who}: no ids are left above {self._top}; pass ids")
            return np.arange(self._top + 1, self._top + 1 + n, dtype=np.int64)
        new = id_array(ids, who)
        if len(new) != n:
            raise ValueError(f"{who}: ids has shape {new.shape}; expected (n={n},)")
        if n and new.min() <= self._top:
            if self._known is None:
                self._known = set(self._snapshot.ids.tolist())
            taken = self._known.intersection(new.tolist())
            if taken:
                raise ValueError(f"{who}: id {min(taken)} is already in the memory")
        return new

    def _publish(self, buffers: Snapshot, n: int) -> None:
        self._buffers = buffers
        # One assignment: a reader sees all of the new state or none of it.
        self._snapshot = Snapshot(
            _view(buffers.patterns, n),
            None if buffers.values is None else _view(buffers.values, n),
            _view(buffers.ids, n),
        )

    def __getstate__(self) -> tuple[Snapshot, int]:
        return self._snapshot, self._top  # no lock, no spare room

    def __setstate__(self, state: tuple[Snapshot, int]) -> None:
        (patterns, values, ids), top = state
        self.__init__(patterns, values, ids, top=top)  # type: ignore[misc]


def _view(buffer: Array, n: int) -> Array:
    view = buffer[:n]
    view.flags.writeable = False
    return view


def _appended(buffer: Array, n: int, rows: Array) -> Array:
    if not len(rows):
        return buffer  # which may be read-only, when it came out of a file or a pickle
    if n + len(rows) > len(buffer):
        larger = np.empty((max(n + len(rows), 2 * len(buffer)), *buffer.shape[1:]), buffer.dtype)
        larger[:n] = buffer[:n]
        buffer = larger
    buffer[n : n + len(rows)] = rows
    return buffer


def _compacted(array: Array, keep: npt.NDArray[np.bool_], n: int, room: int) -> Array:
    kept = np.empty((room, *array.shape[1:]), array.dtype)
    np.compress(keep, array, axis=0, out=kept[:n])
    return kept
