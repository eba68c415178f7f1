# SPDX-License-Identifier: BSD-3-Clause
"""Which kernels have been seen to work on a GPU. `evidence.json` says for each source file of kernels what it was, with all it includes,
when the tests of tests/cuda last passed on a card; a change to any of these files makes it unverified again.

    python cuda/evidence.py         what is verified, in one line (the build puts it into the module)
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INCLUDES = (HERE / "include", HERE.parent / "cpp" / "include")
FILE = HERE / "evidence.json"


def units() -> dict[str, Path]:
    """The files that instantiate kernels, by name."""
    return {path.stem: path for path in sorted((HERE / "src").glob("*.cu")) if path.stem != "cards"}


def closure(path: Path) -> set[Path]:
    """A file and everything of ours that it includes."""
    found, waiting = set[Path](), [path]
    while waiting:
        here = waiting.pop()
        if here in found:
            continue
        found.add(here)
        for name in re.findall(r'^#include "(recollect/[^"]+)"', here.read_text(), re.M):
            waiting += [root / name for root in INCLUDES if (root / name).is_file()]
    return found


def digest(unit: str) -> str:
    """Of all sources of a unit, whatever order they are read in. How the op is called from outside (api.hpp) does not count."""
    total = hashlib.sha256()
    for path in sorted(closure(units()[unit]), key=lambda path: path.name):
        if path.name != "api.hpp":
            total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def recorded() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(FILE.read_text())
    return known


def state(unit: str, known: dict[str, Any] | None = None) -> str:
    entry = (recorded() if known is None else known).get(unit)
    if entry is None:
        return "unverified (never run on a GPU)"
    if entry["sources"] != digest(unit):
        return f"unverified since it changed (last run on {entry['gpu']}, {entry['date']})"
    return f"verified on {entry['gpu']}, driver {entry['driver']}, {entry['date']}"


def record(unit: str, **seen: Any) -> None:
    """After the tests have passed on a card: gpu, driver, date, errors and times."""
    known = recorded()
    known[unit] = {"sources": digest(unit), **seen}
    FILE.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def summary() -> str:
    return " | ".join(f"{unit}: {state(unit)}" for unit in units())  # no semicolon: this goes through CMake


if __name__ == "__main__":
    print(summary())
