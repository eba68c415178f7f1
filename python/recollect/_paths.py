"""Where the C++ headers and the CMake config are, for ``python -m recollect --cmake-dir``."""

from __future__ import annotations

from pathlib import Path

# The package's own search path, because an editable install spreads it over two directories.
from . import __path__ as _package_path


def cmake_dir() -> Path:
    """The directory with recollectConfig.cmake, for ``-Drecollect_DIR=``."""
    return _find("cmake", "recollectConfig.cmake")


def include_dir() -> Path:
    """The directory to give to a compiler, for ``#include <recollect/recollect.hpp>``."""
    return _find("include", "recollect/version.hpp")


def _find(directory: str, landmark: str) -> Path:
    for root in _package_path:
        if (Path(root) / directory / landmark).is_file():
            return Path(root) / directory
    raise FileNotFoundError(
        f"recollect: {directory}/{landmark} is missing; it comes with an installed package, "
        "not with a source tree on PYTHONPATH"
    )
