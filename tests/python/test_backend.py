"""Which CUDA backend is found, and what is said of one that does not fit. Compiled ones are tested in tests/cuda."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import recollect as rc
from recollect import _backend

VERSION = rc.__version__


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(package, version) writes a backend into a package; that of the library itself is taken away until it is put there."""
    if find_spec("recollect._cuda"):
        pytest.skip("this build has a backend inside")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(rc, "__path__", [*rc.__path__, str(tmp_path / "site" / "recollect")])

    def write(package, version=VERSION, body=""):
        folder = tmp_path / "site" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        text = f"version, evidence = {version!r}, 'never run'\ndef cards(): return 0, 'no card'\n{body}"
        (folder / "_cuda.py").write_text(text)

    def forget():
        _backend.load.cache_clear()
        for name in ("recollect._cuda", "recollect_cu13", "recollect_cu13._cuda"):
            sys.modules.pop(name, None)
        vars(rc).pop("_cuda", None)

    forget()
    yield write
    forget()


def test_a_backend_beside_the_library_is_found(put):
    put("recollect_cu13")
    assert _backend.place() == "recollect_cu13._cuda" and _backend.load().cards() == (0, "no card")
    assert rc.show_config()["cuda"] == "built (recollect_cu13._cuda); no device: no card; never run"


def test_the_one_inside_comes_first(put):
    put("recollect_cu13")
    put("recollect")
    assert _backend.place() == "recollect._cuda" and _backend.load().__name__ == "recollect._cuda"


@pytest.mark.parametrize(
    ("version", "body", "sentence"),
    [
        ("0.0.9", "", f"recollect_cu13._cuda is of version 0.0.9; expected {VERSION}, that of recollect"),
        (VERSION, "raise ImportError('a library is missing')", "a library is missing"),
    ],
)
def test_one_that_cannot_be_used_is_said_so(put, version, body, sentence):
    put("recollect_cu13", version, body)
    with pytest.raises(ImportError) as caught:
        _backend.load()
    assert str(caught.value) == sentence
    assert rc.show_config()["cuda"] == f"built (recollect_cu13._cuda), but cannot be loaded: {sentence}"


def test_none_is_no_mishap(put, monkeypatch):
    monkeypatch.setitem(sys.modules, "recollect_cu13", None)
    assert _backend.place() is None and rc.show_config()["cuda"] == "not built"
    with pytest.raises(ModuleNotFoundError):
        _backend.load()
