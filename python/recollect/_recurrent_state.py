# SPDX-License-Identifier: BSD-3-Clause
"""The state of a stream through a recurrent network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._files import PathLike, load_arrays, save_arrays
from .layers._base import Array

_KIND = "recollect.backtracking.State"
_ARRAYS = ("hidden", "carry", "memories", "keys", "times")


class State:
    """Where a recurrent network stands after `time` steps of B sequences.

    Attributes, all read-only: ``time`` steps so far; ``hidden`` (B, H) the last h; ``carry`` (B, H) the last c of an LSTM, hhat of a GRU;
    ``memories`` (B, n, H) the microstates that are kept, oldest first, and ``keys`` (B, n, A) what is stored with them; ``count`` = n;
    ``times`` (n,) the times they are of; ``batch`` = B; ``nbytes``; ``cell``, 'lstm' or 'gru', and ``k_att``, of the network it is for, the
    latter 0 if that stores nothing. Arrays are views that later steps may overwrite.

    Keys are W1 m with the w1 there was when m was stored: a state is for a network whose parameters stay as they are.
    """

    __slots__ = ("_first", "_keys", "_memories", "_times", "carry", "cell", "count", "hidden", "k_att", "time")

    def __init__(
        self,
        made_by: tuple[str, int],
        time: int,
        hidden: Array,
        carry: Array,
        memories: Array,
        keys: Array,
        times: NDArray[np.int64],
    ) -> None:
        self.cell, self.k_att = made_by
        self.time, self.hidden, self.carry = time, hidden, carry
        self._memories, self._keys, self._times = memories, keys, times  # rows [_first, _first + count) are in use
        self._first, self.count = 0, memories.shape[1]

    @property
    def _rows(self) -> slice:
        return slice(self._first, self._first + self.count)

    @property
    def memories(self) -> Array:
        return self._memories[:, self._rows]

    @property
    def keys(self) -> Array:
        return self._keys[:, self._rows]

    @property
    def times(self) -> NDArray[np.int64]:
        return self._times[self._rows]

    @property
    def batch(self) -> int:
        return int(self.hidden.shape[0])

    @property
    def nbytes(self) -> int:
        arrays = (self.hidden, self.carry, self._memories, self._keys, self._times)
        return sum(array.nbytes for array in arrays)

    def __repr__(self) -> str:
        return f"State(time={self.time}, batch={self.batch}, count={self.count}, nbytes={self.nbytes})"

    def _reserve(self, more: int) -> None:
        """Room for so many microstates behind those in use. Memory at least doubles, so that storing one costs O(1) on average; what is
        before the first in use is given up at the same time."""
        if self._first + self.count + more <= self._memories.shape[1]:
            return
        room = 2 * (self.count + more)
        for name in ("_memories", "_keys"):
            old = getattr(self, name)
            new = np.empty((old.shape[0], room, old.shape[2]), old.dtype)
            new[:, : self.count] = old[:, self._rows]
            setattr(self, name, new)
        times = np.empty(room, np.int64)
        times[: self.count] = self.times
        self._times = times
        self._first = 0

    def _keep(self, most: int | None) -> None:
        """Lets the oldest microstates go until there are at most so many."""
        if most is not None and self.count > most:
            self._first += self.count - most
            self.count = most

    def copy(self) -> State:
        """A state of its own memory."""
        arrays = (self.memories.copy(), self.keys.copy(), self.times.copy())
        return State((self.cell, self.k_att), self.time, self.hidden.copy(), self.carry.copy(), *arrays)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes one safetensors file, all or nothing. FileExistsError: `path` exists and `overwrite` is not set. Needs the safetensors
        package."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_arrays(
            path,
            arrays,
            kind=_KIND,
            metadata={"time": str(self.time), "cell": self.cell, "k_att": str(self.k_att)},
            overwrite=overwrite,
            who="backtracking.State.save",
        )

    @classmethod
    def load(cls, path: PathLike) -> State:
        """Reads what `save` wrote. FileNotFoundError: no such file. ValueError: damaged, or no saved state."""
        who = "backtracking.State.load"
        arrays, metadata = load_arrays(path, kind=_KIND, mmap=False, who=who)
        try:
            hidden, carry, memories, keys, times = (arrays[name] for name in _ARRAYS)
            made_by = metadata["cell"], int(metadata["k_att"])
            state = cls(made_by, int(metadata["time"]), hidden, carry, memories, keys, times)
            fits = hidden.ndim == 2 and memories.ndim == 3 and keys.ndim == 3 and times.dtype == np.int64
            fits = fits and memories.shape == (*hidden.shape[:1], len(times), hidden.shape[1])
            fits = (
                fits
                and keys.shape[:2] == memories.shape[:2]
                and len({a.dtype for a in (hidden, carry, memories, keys)}) == 1
            )
            if not fits or carry.shape != hidden.shape or state.time < 0:
                raise ValueError("its arrays do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{who}: '{path}' is damaged ({error})") from None
        return state
