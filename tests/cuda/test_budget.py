"""Kernels compile for every architecture and cost no more than cuda/budget.json says."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cuda import budget
from tests.meta.toolchain import compiler


def test_a_budget_is_held_or_broken() -> None:
    cost = {"threads": 128, "shared": 10, "sm_80": {"registers": 40, "stack": 0, "spills": 0}}
    more = {"threads": 128, "shared": 12, "sm_80": {"registers": 41, "stack": 0, "spills": 4}}
    known = {"nvcc": "13.0", "kernels": {"a": cost, "b": cost}}
    assert not budget.excesses(known, known)
    assert len(budget.excesses({"nvcc": "13.0", "kernels": {"a": more, "b": cost}}, known)) == 3
    assert len(budget.excesses({"nvcc": "13.1", "kernels": {"a": more, "b": cost}}, known)) == 2
    assert budget.excesses({"nvcc": "13.0", "kernels": {"a": cost}}, known) == ["b is only in the budget"]


def test_nothing_spills_by_budget() -> None:
    kernels = json.loads(budget.FILE.read_text())["kernels"]
    assert len(kernels) >= 18
    for name, cost in kernels.items():
        assert cost["shared"] <= (232448 if "Sm90" in name else 101376), name
        for architecture in ("sm_80", "sm_90a"):
            assert cost[architecture]["spills"] == cost[architecture]["stack"] == 0, name


def test_every_instance_is_in_the_budget() -> None:
    assert budget.kernels(compiler()).keys() == json.loads(budget.FILE.read_text())["kernels"].keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="not run (no nvcc)")
def test_kernels_are_within_their_budget() -> None:
    assert budget.excesses(budget.measure(compiler=compiler()), json.loads(budget.FILE.read_text())) == []
