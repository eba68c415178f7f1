# SPDX-License-Identifier: BSD-3-Clause
"""What a forward pass through a recurrent network leaves: its tape, the gradients that come of it, and the graph of its reminders."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .layers._base import Array, Gradients, Tape


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
        raise NotImplementedError


class RecurrentTape(Tape[RecurrentGradients]):
    """What `backward` needs of one `forward`; it may be used more than once, and before parameters are written to.

    Attributes: ``state``, the `State` after the last step; ``indices`` (B, T, k), which microstates were read, as positions in
    ``sources``, -1 where there were fewer than k (k = k_top, or as many as there are); ``weights`` (B, T, k); ``sources`` (C,) the times of
    the microstates; ``nbytes``.
    """

    def reminders(self) -> ReminderGraph:
        """The graph of reminders."""
        raise NotImplementedError
