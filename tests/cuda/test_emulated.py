"""The C++ tests of kernels, on an emulator of threads, barriers, shuffles and shared memory: no GPU and no CUDA needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meta.toolchain import HEADERS, ROOT, compiler, run

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas")


@pytest.mark.parametrize("name", [path.stem for path in sorted(HERE.glob("test_*.cpp"))])
def test_on_the_emulator(name: str, tmp_path: Path) -> None:
    includes = [f"-I{path}" for path in (ROOT / "tests" / "cpp", HEADERS, ROOT / "cuda" / "include")]
    run(compiler(), *FLAGS, *includes, HERE / f"{name}.cpp", "-o", tmp_path / name)
    assert " 0 failed" in run(tmp_path / name)
