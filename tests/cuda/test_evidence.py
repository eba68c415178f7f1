"""What is said to be verified has run as it is now."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import recollect as rc

from tests.meta.toolchain import ROOT


@pytest.fixture
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "cuda" / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_units_and_their_sources(evidence: ModuleType) -> None:
    assert list(evidence.units()) == ["fast_weight", "recall", "selection"]
    names = {path.name for path in evidence.closure(evidence.units()["recall"])}
    assert {"recall.cu", "stream.cuh", "recall_forward.hpp", "online_softmax.hpp", "attention.hpp"} <= names
    assert "fast_weight.cu" not in names


def test_a_state_follows_the_sources(evidence: ModuleType) -> None:
    seen = {"gpu": "a card", "driver": "1", "date": "2026-01-01"}
    digest = evidence.digest("recall")
    assert evidence.state("recall", {}) == "unverified (never run on a GPU)"
    assert (
        evidence.state("recall", {"recall": {"sources": digest, **seen}}) == "verified on a card, driver 1, 2026-01-01"
    )
    changed = {"recall": {"sources": "other", **seen}}
    assert evidence.state("recall", changed) == "unverified since it changed (last run on a card, 2026-01-01)"


def test_show_config_tells_it() -> None:
    assert str(rc.show_config()["cuda"]).startswith(("not built", "built ("))
