"""What GPU tests share: a device or the plain statement that there is none, arrays on it, and the evidence that they leave."""

from __future__ import annotations

import datetime
import importlib.util
import os
from typing import Any

import numpy as np
import pytest
from recollect import _backend

from tests.meta.toolchain import ROOT

NOT_RUN = "not run (no device)"


def torch_on_device() -> Any:
    """PyTorch, where it and the CUDA backend have a card; otherwise the test is not run, and says so."""
    if _backend.place() is None:
        pytest.skip(f"{NOT_RUN}: the CUDA backend is not built")
    torch = pytest.importorskip("torch", reason=f"{NOT_RUN}: no torch to make device arrays with")
    count, why = _backend.load().cards()
    if not count or not torch.cuda.is_available():
        pytest.skip(f"{NOT_RUN}: {why or 'torch finds none'}")
    return torch


def arrays(torch: Any, seed: int, *shapes: tuple[int, ...], dtype: str = "float32") -> list[Any]:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(getattr(torch, dtype))
        for shape in shapes
    ]


def poisoned(torch: Any, *shape: int, dtype: Any = None) -> Any:
    return torch.full(shape, float("nan"), device="cuda", dtype=dtype or torch.float32)


def numbers(array: Any) -> Any:
    return array.detach().double().cpu().numpy()


class Errors:
    """The largest errors that a unit's tests have met; written to evidence.json if RECOLLECT_WRITE_EVIDENCE is set."""

    def __init__(self, unit: str) -> None:
        self.unit, self.largest = unit, dict[str, float]()

    def check(self, name: str, got: Any, wanted: Any, bound: float) -> None:
        got, wanted = numbers(got), np.asarray(wanted, np.float64)
        assert got.shape == wanted.shape
        assert np.array_equal(np.isneginf(got), np.isneginf(wanted)) and not np.isnan(got).any(), name
        finite = np.isfinite(wanted)
        error = float(
            np.max(np.abs(got - wanted)[finite], initial=0.0) / max(np.max(np.abs(wanted[finite]), initial=0.0), 1.0)
        )
        assert error <= bound, f"{name}: {error}"
        self.largest[name] = max(error, self.largest.get(name, 0.0))

    def record(self, torch: Any) -> None:
        if not os.environ.get("RECOLLECT_WRITE_EVIDENCE"):
            return
        spec = importlib.util.spec_from_file_location("evidence", ROOT / "cuda" / "evidence.py")
        assert spec is not None and spec.loader is not None
        evidence = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(evidence)
        evidence.record(
            self.unit,
            gpu=torch.cuda.get_device_name(0),
            driver=_driver(),
            date=datetime.date.today().isoformat(),
            errors=self.largest,
        )


def _driver() -> str:
    from pathlib import Path

    version = Path("/proc/driver/nvidia/version")
    words = version.read_text().split() if version.is_file() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
