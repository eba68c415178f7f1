"""Chooses the compiled core: the best instruction-set level that is installed and usable here.

``RECOLLECT_ISA=v2|v3|v4`` (or ``native``, ``base``) forces one; a forced level that cannot be had
is an ImportError, never a silent second best.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from . import _cpu

if TYPE_CHECKING:
    from . import _core_any as core

__all__ = ["available", "core", "level"]

# Best first. "native" and "base" are built for the machine that runs them: nothing to check.
_LEVELS = ("native", "v4", "v3", "v2", "base")
_CHECKED = ("v4", "v3", "v2")

_installed = [name for name in _LEVELS if find_spec(f"{__package__}._core_{name}")]

available: tuple[str, ...] = tuple(name for name in _installed if name not in _CHECKED or name in _cpu.levels())


def _choose() -> str:
    installed = ", ".join(_installed) or "none"
    have = f"installed: {installed}; usable on this CPU: {', '.join(available) or 'none'}"
    forced = os.environ.get("RECOLLECT_ISA")
    if forced and forced not in available:
        raise ImportError(f"recollect: RECOLLECT_ISA={forced} is not available ({have})")
    if not available:
        raise ImportError(f"recollect: no compiled core can run here ({have})")
    return forced or available[0]


level: str = _choose()
if not TYPE_CHECKING:
    core = import_module(f"{__package__}._core_{level}")
