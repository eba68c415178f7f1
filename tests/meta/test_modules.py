"""The compiled modules keep to themselves: one symbol out, nothing run at load, no borrowed code.

Code of a too high level is *faster*, so no test of results and no benchmark on a new CPU can notice
it; only a look into the files can.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recollect import _cpu
from recollect._core import core

from tests.meta.toolchain import run, tool

CORES = sorted(Path(core.__file__).parent.glob("_core_*.so"))
MODULES = [Path(_cpu.__file__), *CORES]

pytestmark = pytest.mark.skipif(not Path(core.__file__).name.endswith(".so"), reason="reads ELF files")


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[p.name.split(".")[0] for p in paths])


def level_of(path: Path) -> str:
    return path.name.split(".")[0].removeprefix("_core_")


@by_name(MODULES)
def test_exports_one_symbol(path: Path) -> None:
    lines = run(tool("nm"), "-D", "--defined-only", path).split("\n")
    assert [line.split()[1:] for line in lines if line] == [["T", f"PyInit_{path.name.split('.')[0]}"]]


@by_name(MODULES)
def test_borrows_no_template_code(path: Path) -> None:
    """What a module leaves undefined is C, or C++ that libstdc++ itself provides."""
    undefined = run(tool("nm"), "-D", "-C", "--undefined-only", path)
    assert not re.findall(r".*(?:recollect|Eigen|nanobind)::.*", undefined)


@by_name(MODULES)
def test_runs_nothing_when_loaded(path: Path) -> None:
    """One initialiser is the C runtime's own (frame_dummy); a C++ static would add a second.

    It would be code of the module's level, run by the dynamic linker before anyone asked the CPU.
    """
    dynamic = run(tool("readelf"), "-dW", path)
    sizes = re.findall(r"\((?:PRE)?INIT_ARRAYSZ\)\s+(\d+)", dynamic)
    assert sum(map(int, sizes)) <= 8
    assert not re.findall(r"\.ctors", run(tool("readelf"), "-SW", path))


def encodings(path: Path) -> set[str]:
    """Which of the VEX and EVEX encodings occur, from the first opcode byte of each instruction.

    In 64-bit mode the bytes c4, c5 (VEX) and 62 (EVEX) start no other instruction.
    """
    code = run(tool("objdump"), "-dw", path)
    if "x86-64" not in code.split("\n\n")[0]:
        pytest.skip("not an x86-64 file")
    first = re.findall(r"^\s*[0-9a-f]+:\t(?:(?:64|65|67|2e|3e|26|36) )*(c4|c5|62) ", code, re.M)
    return {"EVEX" if byte == "62" else "VEX" for byte in first}


@by_name(MODULES)
def test_holds_no_instructions_above_its_level(path: Path) -> None:
    allowed = {"v3": {"VEX"}, "v4": {"VEX", "EVEX"}, "native": {"VEX", "EVEX"}}
    assert encodings(path) <= allowed.get(level_of(path), set())
