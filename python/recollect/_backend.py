# SPDX-License-Identifier: BSD-3-Clause
"""Where the CUDA backend is: in this package, where it was built with one, or else in that of the distribution recollect-cu13."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ._core import core

__all__ = ["load", "place"]

_PLACES = (f"{__package__}._cuda", "recollect_cu13._cuda")


def place() -> str | None:
    """The name of the module that `load` takes, or None."""
    for name in _PLACES:
        try:
            if find_spec(name) is not None:
                return name
        except ModuleNotFoundError:  # its package
            continue
    return None


@cache
def load() -> Any:
    """The module. ModuleNotFoundError: there is none. ImportError: it cannot be loaded, or is not of this version."""
    name = place()
    if name is None:
        raise ModuleNotFoundError("there is no CUDA backend")
    module, wanted = import_module(name), core.build_info()["version"]
    if module.version != wanted:
        raise ImportError(f"{name} is of version {module.version}; expected {wanted}, that of recollect")
    return module
