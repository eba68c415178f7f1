"""Fixtures of the tests for a card: test modules say in UNIT which kernels they are evidence for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cuda.device import Errors, torch_on_device


@pytest.fixture(scope="module")
def torch() -> Any:
    return torch_on_device()


@pytest.fixture(scope="module")
def errors(torch: Any, request: pytest.FixtureRequest) -> Iterator[Errors]:
    found = Errors(request.module.UNIT)
    before = request.session.testsfailed
    yield found
    if request.session.testsfailed == before:
        found.record(torch)
