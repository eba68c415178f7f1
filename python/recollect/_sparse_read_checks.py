# SPDX-License-Identifier: BSD-3-Clause
"""What a sparse read expects of the parameters of its score, wherever its arrays are."""

from __future__ import annotations

from typing import Any

Shape = tuple[int, ...]


def check_axes(op: str, **arrays: Any) -> None:
    """Queries, memories and keys are rows."""
    for name, array in arrays.items():
        if array is not None and array.ndim < 2:
            raise ValueError(f"{op}: {name} has shape {tuple(array.shape)}; expected two axes or more")


def check_parameters(op: str, score: str, query: Shape, memory: Shape, given: dict[str, Shape]) -> None:
    """Those that the score takes, by name and shape, and no others."""
    takes = {"additive": {"w1", "w2", "w3", "keys"}, "dot": set[str](), "bilinear": {"weight"}}
    if score not in takes:
        raise ValueError(f"{op}: score is {score!r}; expected 'additive', 'dot' or 'bilinear'")
    wanted = takes[score]
    for name in ("w1", "w2", "w3", "weight", "keys"):
        if name in given.keys() - wanted:
            raise ValueError(f"{op}: {name} is given; expected None with score={score!r}")
        if name in wanted - given.keys() and name != "keys" and not (name == "w1" and "keys" in given):
            raise ValueError(f"{op}: {name} is missing; expected with score={score!r}")
    e, d = query[-1], memory[-1]
    width = given["keys"][-1] if "keys" in given else given["w1"][0] if given.get("w1") else -1
    if score == "dot" and e != d:
        raise ValueError(f"{op}: query has shape {query}; expected (..., n, d={d}) with score='dot'")
    shapes = {"w1": (width, d), "w2": (width, e), "w3": (width,), "weight": (e, d)}
    letters = {"w1": "(A, d={1})", "w2": "(A={0}, e={1})", "w3": "(A={0},)", "weight": "(e={0}, d={1})"}
    for name, shape in shapes.items():
        if name in given and given[name] != shape:
            expected = letters[name].format(*shape)
            raise ValueError(f"{op}: {name} has shape {given[name]}; expected {expected}")
