# SPDX-License-Identifier: BSD-3-Clause
"""What the recurrent networks of `backtracking` share: parameters, forward, backward, streams, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._files import PathLike
from ._recurrent_state import State
from ._recurrent_tape import RecurrentGradients, RecurrentTape
from .layers._base import Array, Layer


class Recurrent(Layer[RecurrentGradients]):
    """A recurrent cell with a sparse read of its own past states; see `SparseBacktrackingLSTM`."""

    cell: ClassVar[str]

    def __call__(self, x: ArrayLike, state: State | None = None) -> Array:
        """The outputs of `forward` alone, without a tape: memory beyond the outputs is that of the microstates."""
        raise NotImplementedError

    def forward(self, x: ArrayLike, state: State | None = None) -> tuple[Array, RecurrentTape]:
        """Runs x (B, T, D) from `state`, or from the start; T may be 0.

        Returns outputs (B, T, 2 H) = [h_t, s_t] (a plain network: (B, T, H)) and the tape, whose ``state`` is the one after the last step.
        `state` itself is not changed, and it is a constant for the gradient. Time is counted on from it, for k_att and for the windows.

        Raises
        ------
        ValueError
            x of another shape; a state of another batch or of a network of other sizes.
        TypeError
            x whose dtype is no number; a state that is none.
        """
        raise NotImplementedError

    def backward(self, tape: Any, d_outputs: Any) -> RecurrentGradients:
        """Gradients of ``sum(d_outputs * outputs)``: a named tuple (x, parameters), the latter a dict by name. May be called more than
        once for one tape, with the parameters as they were.

        Raises
        ------
        ValueError
            A tape of another network, or `d_outputs` of another shape than the outputs.
        TypeError
            A `tape` that is none, or a `d_outputs` whose dtype is no number.
        """
        raise NotImplementedError

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first step of `batch` sequences."""
        raise NotImplementedError

    def step(self, x: ArrayLike, state: State) -> Array:
        """One step of a stream: x (B, D) -> [h_t, s_t] (B, 2 H). `state` is moved on in place; nothing is kept for a gradient.

        Microstates stay, unless ``max_memories`` bounds them; then the oldest leaves when a new one comes. Raises as `forward`.
        """
        raise NotImplementedError

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes parameters and options as one safetensors file, all or nothing. FileExistsError: `path` exists and `overwrite` is not
        set. Needs the safetensors package."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: PathLike) -> Any:
        """Reads what `save` wrote. FileNotFoundError: no such file. ValueError: damaged, or saved by another class."""
        raise NotImplementedError
