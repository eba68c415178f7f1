"""Every header stands alone, two translation units link, and the house rules on macros hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.meta.toolchain import HEADERS, compiler, eigen_include, run

KERNELS = HEADERS.parents[1] / "cuda" / "include"
ALL = sorted([*(HEADERS / "recollect").rglob("*.hpp"), *(KERNELS / "recollect").rglob("*.hpp")])
STRICT = ("-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread")


def flags() -> list[str]:
    return [*STRICT, "-Wno-unknown-pragmas", f"-I{HEADERS}", f"-I{KERNELS}", "-isystem", str(eigen_include())]


def by_name(path: Path) -> str:
    return str(path.relative_to(HEADERS if path.is_relative_to(HEADERS) else KERNELS))


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_a_header_compiles_alone(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{by_name(path)}"\n')
    run(compiler(), *flags(), "-fsyntax-only", source)


def test_two_translation_units_link(tmp_path: Path) -> None:
    """A function that forgot to be inline would be defined twice."""
    text = "#include <recollect/recollect.hpp>\n"
    (tmp_path / "one.cpp").write_text(f"{text}int main() {{ return 0; }}\n")
    (tmp_path / "two.cpp").write_text(text)
    run(compiler(), *flags(), "one.cpp", "two.cpp", "-o", "program", cwd=tmp_path)
    run(tmp_path / "program")


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_a_header_fits_on_a_page_or_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


def test_macros_are_few_and_carry_our_name() -> None:
    macros = {name for path in ALL for name in re.findall(r"^\s*#\s*define\s+(\w+)", path.read_text(), re.M)}
    assert all(name.startswith("RECOLLECT_") for name in macros), macros
    assert len(macros) <= 4, macros


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_no_instruction_set_is_named(path: Path) -> None:
    names = r"(?<![A-Za-z])(?:AVX|SSE\d|__SSE|NEON|_mm\d*_|__m\d{3})\w*"
    assert not re.findall(names, path.read_text())
