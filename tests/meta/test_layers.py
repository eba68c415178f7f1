"""The include arrows point down, as in the table of layers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.meta.toolchain import ROOT

OPS = {"core", "math", "spec", "ops"}
ALLOWED = {
    "core": {"core"},
    "math": {"core", "math"},
    "spec": {"core", "spec"},
    "ops": OPS,
    "cuda": {"core", "math", "spec", "cuda"},
    "layers": OPS | {"layers"},
    "memory": OPS | {"memory"},
    "capi": OPS | {"layers", "memory", "capi", "version.hpp"},
    "python": OPS | {"layers", "memory", "python", "version.hpp"},
    "_cuda": {"core", "math", "spec", "cuda", "version.hpp"},
    "recollect.hpp": OPS | {"layers", "memory", "version.hpp"},
    "version.hpp": set[str](),
}
SUFFIXES = {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}


def layer_of(path: Path) -> str:
    """The directory inside the include directory, or else the top directory that names a layer. The module of devices is one of its
    own: it sees the kernels' launchers, and nothing of the CPU's ops."""
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("python", "src") and parts[2].startswith(("cuda", "place")):
        return "_cuda"
    if "recollect" in parts[:-1]:
        return parts[parts.index("recollect") + 1]
    return "capi" if "capi" in parts else parts[0]


SOURCES = [
    path
    for directory in ("cpp", "cuda", "python/src")
    for path in sorted((ROOT / directory).rglob("*"))
    if path.suffix in SUFFIXES
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_includes_point_down(path: Path) -> None:
    layer = layer_of(path)
    for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.M):
        if include.startswith("recollect/"):
            target = include.split("/")[1]
            assert target in ALLOWED[layer], f"{layer}/ must not include {include}"
        elif re.match(r"(unsupported/)?Eigen/", include):
            assert layer == "ops", f"{layer}/ must not include Eigen: only ops/ may"
        elif include.startswith("cuda"):
            assert layer == "cuda", f"{layer}/ must not include {include}: only cuda/ may"
        elif include == "Python.h" or include.startswith("nanobind/"):
            assert layer in ("python", "_cuda"), f"{layer}/ must not include {include}: only python/src may"


def test_kernels_are_plain_cpp() -> None:
    """All headers of cuda/ but the few .cuh compile without CUDA, so that an emulator can run what a device runs; and none has a macro."""
    headers = sorted((ROOT / "cuda" / "include").rglob("*.*"))
    device_only = [path.name for path in headers if path.suffix == ".cuh"]
    assert device_only == ["ptx_sm80.cuh", "ptx_sm90.cuh", "stream.cuh", "stream_thread.cuh"]
    for path in headers:
        text = path.read_text()
        assert not re.findall(r"^\s*#\s*define", text, re.M), path.name
        if path.suffix == ".hpp":
            assert "__" not in re.sub(r"#.*", "", text), f"{path.name} names what only a compiler of kernels knows"
