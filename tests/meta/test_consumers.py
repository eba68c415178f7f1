"""A stranger's six-line CMake project builds against the installed package and the source tree."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
from recollect import _paths
from recollect._config import show_config

from tests.meta.toolchain import ROOT, compiler, eigen_include, run, tool

CONSUMERS = ROOT / "tests" / "consumers"


def build_and_run(project: str, build: Path, *options: str) -> str:
    eigen_include()  # skips where there is no Eigen at all
    ninja = ("-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}")
    settings = (f"-DCMAKE_CXX_COMPILER={compiler()}", *ninja, *options)
    # Eigen must be found from what the options say, not from the environment of the caller.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CMAKE_", "Eigen3"))}
    run(tool("cmake"), "-S", CONSUMERS / project, "-B", build, *settings, env=environment)
    run(tool("cmake"), "--build", build)
    return run(build / "consumer")


def installed() -> Path:
    try:
        return _paths.cmake_dir()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_an_installed_package_is_found_through_site_packages(tmp_path: Path) -> None:
    prefix = installed().parents[1]
    out = build_and_run("find_package", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    assert out.startswith("recollect 0.")


def test_an_installed_package_is_found_by_its_config_directory(tmp_path: Path) -> None:
    out = build_and_run("find_package", tmp_path, f"-Drecollect_DIR={installed()}")
    assert out.startswith("recollect 0.")


def test_the_source_tree_can_be_added(tmp_path: Path) -> None:
    eigen = eigen_include().parents[1]
    out = build_and_run("add_subdirectory", tmp_path, f"-DCMAKE_PREFIX_PATH={eigen}")
    assert out.startswith("recollect 0.")


def test_the_installed_headers_are_complete() -> None:
    installed()
    here = {path.name for path in (_paths.include_dir() / "recollect").rglob("*.hpp")}
    assert here == {path.name for path in (ROOT / "cpp" / "include").rglob("*.hpp")}


def test_the_version_is_written_once() -> None:
    installed()
    header = (_paths.include_dir() / "recollect" / "version.hpp").read_text()
    assert f'version[] = "{metadata.version("recollect")}";' in header
    assert show_config()["version"] == metadata.version("recollect")


@pytest.mark.parametrize("path", sorted(CONSUMERS.rglob("CMakeLists.txt")), ids=lambda p: p.parent.name)
def test_a_consumer_is_six_lines_at_most(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 6
