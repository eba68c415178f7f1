"""The committed stub is what the compiled core offers.

After a change of the bindings: python tests/meta/test_stubs.py writes the new one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "python" / "recollect" / "_core_any.pyi"
HEADER = """\
# The interface that every compiled core (_core_v2, _core_v3, ...) offers.
# Written by tests/meta/test_stubs.py; do not edit.
"""


def generated() -> str:
    stubgen = pytest.importorskip("nanobind.stubgen", reason="nanobind is not installed")
    from recollect._core import core

    generator = stubgen.StubGen(module=core, quiet=True)
    generator.put(core)
    text: str = generator.get()
    # All levels have one interface, so none may be named in it.
    return HEADER + text.replace(core.__name__.split(".")[-1], "_core_any")


def test_the_stub_is_current() -> None:
    assert GOLDEN.read_text() == generated(), "run python tests/meta/test_stubs.py and look at the diff"


if __name__ == "__main__":
    GOLDEN.write_text(generated())
