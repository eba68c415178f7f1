"""The examples in the docstrings of the public modules say what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import recollect

MODULES = [
    info.name
    for info in pkgutil.walk_packages(recollect.__path__, "recollect.")
    if not info.name.split(".")[-1].startswith(("__", "_core_", "_cpu", "_cuda"))
]


@pytest.mark.parametrize("name", ["recollect", *sorted(MODULES)])
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0
