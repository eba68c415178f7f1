"""What the tests of this directory share: the source tree and the tools of a native build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "cpp" / "include"


def tool(name: str) -> str:
    """The path of a program; the test is skipped where it is absent."""
    beside_python = Path(sysconfig.get_path("scripts"))
    path = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def compiler() -> str:
    return tool(os.environ.get("CXX", "c++"))


def eigen_include() -> Path:
    """Where Eigen's headers are: the PyPI package's first, as in our own build."""
    roots = [Path(sysconfig.get_path("purelib")) / "cmeel.prefix", Path("/", "usr")]
    for root in roots:
        if (root / "include" / "eigen3" / "Eigen" / "Core").is_file():
            return root / "include" / "eigen3"
    pytest.skip("Eigen is not installed")


def run(*command: str | Path, **options: object) -> str:
    """Standard output of a command that must succeed; its complaints become the failure text."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout
