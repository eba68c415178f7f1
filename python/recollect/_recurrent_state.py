# SPDX-License-Identifier: BSD-3-Clause
"""The state of a stream through a recurrent network."""

from __future__ import annotations

from typing import Any

from ._files import PathLike
from .layers._base import Array


class State:
    """Where a recurrent network stands after `time` steps of B sequences.

    Attributes, all read-only: ``time`` steps so far; ``hidden`` (B, H) the last h; ``carry`` (B, H) the last c of an LSTM, None for a GRU;
    ``memories`` (B, n, H) the microstates that are kept, oldest first, and ``keys`` (B, n, A) what is stored with them; ``count`` = n;
    ``times`` (n,) the times they are of; ``batch`` = B; ``nbytes``. Arrays are views that later steps may overwrite.
    """

    def copy(self) -> State:
        """A state of its own memory."""
        raise NotImplementedError

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes one safetensors file, all or nothing. FileExistsError: `path` exists and `overwrite` is not set."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: PathLike) -> State:
        """Reads what `save` wrote. FileNotFoundError: no such file. ValueError: damaged, or no saved state."""
        raise NotImplementedError
