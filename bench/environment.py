"""Where and with what a run was made: the part of the record that is not a time."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import subprocess
from pathlib import Path

from .ceilings import cpu_model

_PACKAGES = ("recollect", "numpy", "torch", "faiss-cpu", "hflayers", "threadpoolctl")


def usable_cores() -> int:
    """Cores that this process may use, which in a container is less than what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library():
    """The library, or None where it is not installed."""
    try:
        import recollect
    except ModuleNotFoundError as error:
        if error.name != "recollect":  # it is there but broken: that is no reason to carry on
            raise
        return None
    return recollect


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, str | int]:
    system = f"{platform.system()} {platform.machine()}"
    found = {"cpu": cpu_model(), "cores": os.cpu_count() or 0, "usable_cores": usable_cores(), "system": system}
    with contextlib.suppress(OSError):
        found["governor"] = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    return found


def show_config(rc):
    """Whatever the library says about itself: returned if it returns something, else what it prints."""
    if rc is None or not hasattr(rc, "show_config"):
        return None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        returned = rc.show_config()
    return printed.getvalue().strip() if returned is None else returned


def commit() -> str | None:
    """The commit of this checkout, marked where it was changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        if result.returncode == 0:
            return result.stdout.strip()
    return None
