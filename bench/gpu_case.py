"""What bench.gpu times, and how far it is from float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Case:
    """`ours(i)` and peers work on input set i of `sets`; `error()` is checked first."""

    name: str
    shape: str
    flops: float
    bytes: float
    sets: int
    error: Callable[[], float]
    bound: float
    ours: Callable[[int], Any]
    peers: dict[str, Callable[[int], Any]]


def relative(got: Any, wanted: Any) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())
