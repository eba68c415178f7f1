"""The two distributions that are made of this tree go together: one version, one licence, one way to build."""

from __future__ import annotations

from typing import Any

import pytest

from tests.meta.toolchain import ROOT

CUDA = ROOT / "cuda" / "python"


@pytest.fixture
def projects() -> tuple[dict[str, Any], dict[str, Any]]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    core, cuda = (tomllib.loads((place / "pyproject.toml").read_text()) for place in (ROOT, CUDA))
    return core, cuda


def test_the_version_is_written_once(projects: Any) -> None:
    core, cuda = (project["tool"]["scikit-build"]["metadata"] for project in projects)
    assert cuda["version"]["regex"] == core["version"]["regex"]
    assert (CUDA / cuda["version"]["input"]).samefile(ROOT / core["version"]["input"])
    assert cuda["dependencies"]["result"][0] == "recollect=={project[version]}"


def test_they_are_built_alike(projects: Any) -> None:
    core, cuda = projects
    assert set(cuda["build-system"]["requires"]) == set(core["build-system"]["requires"])
    for name in ("license", "authors", "requires-python"):
        assert cuda["project"][name] == core["project"][name]
    for name in core["project"]["license-files"]:
        assert (CUDA / name).read_text() == (ROOT / name).read_text()
