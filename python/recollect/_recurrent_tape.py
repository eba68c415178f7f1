# SPDX-License-Identifier: BSD-3-Clause
"""What a forward pass through a recurrent network leaves: its tape, the gradients that come of it, and the graph of its reminders."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._recurrent_state import State
from .layers._base import Array, Gradients


class RecurrentGradients(NamedTuple):
    """What `backward` returns."""

    x: Array
    parameters: Gradients


class ReminderGraph(NamedTuple):
    """Who was reminded of whom: one entry for each weight that is not 0, in the order of row, time, place.

    ``row`` (E,) the sequence of the batch; ``time`` (E,) t, the step that was reminded; ``source`` (E,) t_i, the step whose state it was
    reminded of (0: the zero vector of ``compat="released"``); ``weight`` (E,).
    """

    row: NDArray[np.int64]
    time: NDArray[np.int64]
    source: NDArray[np.int64]
    weight: Array

    def draw(self, row: int = 0, ax: Any = None) -> Any:
        """Draws the reminders of one sequence, an arc from each t to each t_i, as dark as its weight; returns the axes. Needs matplotlib."""
        import matplotlib.pyplot as plt
        from matplotlib.collections import LineCollection

        if ax is None:
            ax = plt.subplots(figsize=(9, 3), layout="constrained")[1]
        mine = self.row == row
        time, source, weight = self.time[mine], self.source[mine], np.clip(np.abs(self.weight[mine]), 0, 1)
        angle = np.linspace(0, np.pi, 33)
        middle, radius = (time + source) / 2, (time - source) / 2
        arcs = np.stack(
            [middle[:, None] + radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle) + 0 * middle[:, None]],
            -1,
        )
        colors = np.zeros((len(arcs), 4))
        colors[:, 3] = weight
        ax.add_collection(LineCollection(list(arcs), colors=colors, linewidths=1))
        last = float(time.max()) if len(time) else 1.0
        ax.set(xlim=(0, last + 1), ylim=(0, float(radius.max()) * 1.05 if len(time) else 1.0), xlabel="step", yticks=[])
        ax.set_title(f"reminders of sequence {row}")
        return ax


class RecurrentTape:
    """What `backward` needs of one `forward`; it may be used more than once, and before parameters or x are written to.

    Attributes: ``state``, the `State` after the last step, made when it is asked for; ``indices`` (B, T, k), which microstates were read, as
    positions in ``sources``, -1 where there were fewer than k (k = k_top, or as many as there are); ``weights`` (B, T, k); ``sources`` (C,)
    the times of the microstates; ``nbytes``, of all arrays that the tape holds.
    """

    __slots__ = ("_arrays", "_begun", "_memory", "_most", "_x", "network", "shape", "sources")

    def __init__(
        self,
        network: Any,
        shape: tuple[int, ...],
        x: Array,
        begun: State,
        memory: tuple[Array | None, Array | None],
        sources: NDArray[np.int64],
        arrays: tuple[Array | None, ...],
        most: int | None,
    ) -> None:
        self.network, self.shape, self.sources = network, shape, sources
        self._x, self._begun, self._memory, self._arrays, self._most = x, begun, memory, arrays, most

    @property
    def indices(self) -> NDArray[np.int64]:
        found = self._arrays[4]
        return np.empty((*self.shape[:2], 0), np.int64) if found is None else found[..., :-1]

    @property
    def weights(self) -> Array:
        found = self._arrays[5]
        return np.empty((*self.shape[:2], 0), self._x.dtype) if found is None else found

    @property
    def state(self) -> State:
        begun, h, carry = self._begun, self._arrays[2], self._arrays[3]
        assert h is not None and carry is not None
        some = self.shape[1] > 0
        hidden, carried = (h[:, -1].copy(), carry[:, -1].copy()) if some else (begun.hidden, begun.carry)
        states, keys = self._memory
        memories = begun.memories if states is None else states
        stored = begun.keys if keys is None else keys
        kept = slice(max(0, len(self.sources) - self._most) if self._most is not None else 0, None)
        time = begun.time + self.shape[1]
        return State(
            (self._begun.cell, self._begun.k_att),
            time,
            hidden,
            carried,
            memories[:, kept].copy(),
            stored[:, kept].copy(),
            self.sources[kept].copy(),
        )

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self._x, *self._memory, *self._arrays) if array is not None)

    def reminders(self) -> ReminderGraph:
        """The graph of reminders."""
        indices, weights = self.indices, self.weights
        row, step, place = np.nonzero((indices >= 0) & (weights != 0))
        source = self.sources[indices[row, step, place]] if len(row) else np.empty(0, np.int64)
        return ReminderGraph(row, step + self._begun.time + 1, source, weights[row, step, place])
