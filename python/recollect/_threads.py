# SPDX-License-Identifier: BSD-3-Clause
"""How many threads the library works with. Results never depend on it."""

from __future__ import annotations

from . import _array
from ._core import core

__all__ = ["get_num_threads", "set_num_threads"]


def get_num_threads() -> int:
    """The number of threads: what was set, else RECOLLECT_NUM_THREADS, else as many as this process has processors."""
    return core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Work with `n` threads, 1 to 1024, from now on.

    Examples
    --------
    >>> import recollect as rc
    >>> before = rc.get_num_threads()
    >>> rc.set_num_threads(1)
    >>> rc.get_num_threads()
    1
    >>> rc.set_num_threads(before)
    """
    core.set_num_threads(_array.whole("set_num_threads", "n", n, 1, 1024, expected="a number from 1 to 1024"))
