"""RECOLLECT_ISA forces a level or fails with a sentence; without it the best usable one is taken."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from recollect import _cpu
from recollect._core import available

PSABI = {
    "v2": "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}
PRINT_LEVEL = "from recollect._core import level; print(level)"
# A stand-in for the CPU module, seen by everything that is imported after it.
OLD_CPU = """
import sys, types
cpu = types.ModuleType("recollect._cpu")
cpu.levels = lambda: {levels}
sys.modules["recollect._cpu"] = cpu
"""


def python(code: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RECOLLECT_ISA"}
    if isa is not None:
        environment["RECOLLECT_ISA"] = isa
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def import_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    return done.stderr.strip().split("\n")[-1]


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the witness is Linux's cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels are an x86-64 notion")
def test_cpu_levels_agree_with_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.split("\n") if line.startswith("flags")).split())
    expected: list[str] = []
    for level, needed in PSABI.items():
        if not flags.issuperset(needed.split()):
            break
        expected.append(level)
    assert _cpu.levels() == tuple(expected)


def test_the_best_level_is_the_default() -> None:
    done = python(PRINT_LEVEL)
    assert done.stdout.strip() == available[0], done.stderr


@pytest.mark.parametrize("level", available)
def test_a_level_can_be_forced(level: str) -> None:
    done = python(PRINT_LEVEL, isa=level)
    assert done.stdout.strip() == level, done.stderr


def test_an_unknown_level_is_refused_with_a_sentence() -> None:
    message = import_error(python(PRINT_LEVEL, isa="v9"))
    assert message.startswith("ImportError: recollect: RECOLLECT_ISA=v9 is not available (installed: ")
    assert message.endswith(f"; usable on this CPU: {', '.join(available)})")


@pytest.mark.skipif("v2" not in available, reason="needs the wheel's modules")
class TestOnAnOldCpu:
    def test_the_default_is_what_it_can_run(self) -> None:
        done = python(OLD_CPU.format(levels=("v2",)) + PRINT_LEVEL)
        assert done.stdout.strip() == "v2", done.stderr

    def test_a_level_above_it_is_refused(self) -> None:
        message = import_error(python(OLD_CPU.format(levels=("v2",)) + PRINT_LEVEL, isa="v3"))
        assert "RECOLLECT_ISA=v3 is not available" in message
        assert message.endswith("usable on this CPU: v2)")

    def test_no_usable_level_is_a_sentence_too(self) -> None:
        message = import_error(python(OLD_CPU.format(levels=()) + PRINT_LEVEL))
        assert "no compiled core can run here" in message
        assert message.endswith("usable on this CPU: none)")
