"""One page, one thought; and nothing in the tree that is true on one machine only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.toolchain import ROOT

SKIPPED = re.compile(r"^(\.(?!ci$).*|build|dist|wheelhouse|__pycache__|.*\.egg-info)$")
TEXT = {
    *(".bib", ".c", ".cff", ".cfg", ".cmake", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".in", ".json"),
    *(".map", ".md", ".py", ".pyi", ".sh", ".toml", ".txt", ".yaml", ".yml", ""),
}


def files() -> Iterator[Path]:
    for directory, names, leaves in os.walk(ROOT):
        names[:] = sorted(name for name in names if not SKIPPED.match(name))
        for leaf in leaves:
            path = Path(directory, leaf)
            if path.suffix in TEXT:
                yield path


FILES = sorted(files())
PYTHON = [path for path in FILES if path.suffix == ".py"]


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=by_name)
def test_a_python_file_fits_on_a_page_or_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


# Spelled in pieces, so that this file passes its own test.
PLACES = "|".join(("ho" + "me", "ro" + "ot", "wo" + "rk", "tm" + "p", "op" + "t", "mn" + "t", "Us" + "ers"))
ABSOLUTE = re.compile(rf"(?:(?<![\w/.:>)}}~*-])/(?:{PLACES})/|\b[A-Z]:\\)\w+")


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_no_absolute_paths(path: Path) -> None:
    found = [match.group() for match in ABSOLUTE.finditer(path.read_text(errors="replace"))]
    assert not found
