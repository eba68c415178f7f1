"""Mistakes that the types rule out are refused by the compiler, and its errors name what is wrong."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.meta.toolchain import HEADERS, ROOT, compiler

SOURCES = sorted((ROOT / "tests" / "compile_fail").glob("*.cpp"))


def errors(source: Path, *options: str) -> str:
    """The lines of the compiler that report an error, without the source lines that it quotes."""
    command = [compiler(), "-std=c++20", f"-I{HEADERS}", "-fsyntax-only", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.partition("error:")[2] for line in done.stderr.splitlines() if "error:" in line]
    assert bool(lines) == (done.returncode != 0), done.stderr
    return "\n".join(lines)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_mistake_and_nothing_else_is_refused(source: Path) -> None:
    expected = re.search(r"^// expect: (.+)$", source.read_text(), re.M)
    assert expected
    assert errors(source) == ""
    assert expected[1] in errors(source, "-DMISTAKE")
