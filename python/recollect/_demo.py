# SPDX-License-Identifier: BSD-3-Clause
"""The demo: every image is stored, damaged and recalled, beside a nearest-neighbour search on the same cues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._demo_data import (
    DAMAGES,
    ERASED,
    NOISE,
    OCCLUDED,
    Case,
    Damaged,
    Images,
    Row,
    damage,
    detailed,
    digits,
    photographs,
)
from ._files import PathLike, atomic_path
from ._memory import HopfieldMemory

__all__ = ["run"]

Array = npt.NDArray[Any]

_SURE = 0.99  # weight of the right pattern that beta is chosen for
_TOL = 1e-3  # a state that moves by less has settled; patterns have length 1
_HELD_STEPS = 10
_TRACED_STEPS = 6
_BLOCK = 1024

_LEGEND = f"""\
Every image is damaged once, and every damaged image is a cue: nothing is left out.
  noise      Gaussian, standard deviation {NOISE} of the range from black to white
  occlusion  a grey square over {OCCLUDED:.0%} of the image; nobody is told where
  erasure    {ERASED:.0%} of the pixels are lost, and it is known which; in the cue they are the mean of all images
  beta       from the stored patterns alone: log((N - 1) * {_SURE} / {1 - _SURE:.2f}) / D, where D is the median over patterns of
             |x|^2 minus the largest product with another: half of them, undamaged, then hold {_SURE:.0%} of the weight
  recalled   share of cues whose recalled state is nearest to the right pattern
  error      mean distance from the recalled state to the right pattern (scaled patterns have length 1)
  cues/s     one call with all cues, on this machine; searches are NumPy matrix products\
"""


def run(out: PathLike, *, seed: int, quick: bool) -> None:
    """Runs the demo, prints its table and writes its picture."""
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(f'the demo needs {error.name}: pip install "recollect[demo]"') from None
    from ._demo_picture import draw

    with atomic_path(out, overwrite=True, who="demo") as temporary:  # first, so that a bad name is told at once
        print(_LEGEND)
        scaled, unscaled = digits(quick=quick)
        plan = [(scaled, DAMAGES), (photographs(quick=quick), DAMAGES), (unscaled, DAMAGES[:1])]
        cases: list[Case] = []
        for number, (images, damages) in enumerate(plan):
            cases += _measure(images, damages, [seed, number])
        _summarise(cases)
        draw([case for case in cases if case.images.unit], temporary, Path(out).suffix)
    print(f"\nThe picture is in {out}")


def _measure(images: Images, damages: tuple[str, ...], seed: list[int]) -> Iterator[Case]:
    beta, separation = choose_beta(images.patterns)
    n, d = images.patterns.shape
    flat = images.pixels.reshape(n, -1)
    memory = HopfieldMemory.from_patterns(images.patterns, values=flat, beta=beta)
    print(f"\n{images.name}: {images.about}")
    print(f"N = {n} patterns, d = {d}, median separation D = {separation:.2g}, so beta = {beta:.4g}")
    print(f"  {'damage':<10} {'method':<32} {'recalled':>8} {'error':>7} {'energy':>15} {'steps':>6} {'cues/s':>9}")
    for index, name in enumerate(damages):
        damaged = damage(images, name, np.random.default_rng([*seed, index]))
        case = _recall(memory, images, damaged)
        _print_case(case)
        yield case


def choose_beta(patterns: Array) -> tuple[float, float]:
    """Inverse temperature for these patterns, and the separation that it follows from.

    A pattern has weight of at least s on itself if beta D >= log((N - 1) s / (1 - s)), with D its scalar product
    with itself minus the largest with another: the separation of Ramsauer et al. 2020.
    """
    n = len(patterns)
    separations = np.empty(n)
    for start in range(0, n, _BLOCK):
        products = patterns[start : start + _BLOCK] @ patterns.T
        rows = np.arange(len(products))
        own = products[rows, start + rows]
        products[rows, start + rows] = -np.inf
        separations[start : start + _BLOCK] = own - products.max(axis=1)
    median = float(np.median(separations))
    return math.log((n - 1) * _SURE / (1 - _SURE)) / median, median


def _recall(memory: HopfieldMemory, images: Images, damaged: Damaged) -> Case:
    cues = damaged.cues
    before = float(memory.energy(cues).mean())

    def memory_row(method: str, recall: Callable[[], tuple[Array, Array, float]]) -> tuple[Row, Array]:
        seconds, (state, recalled, steps) = _timed(recall)
        found = _search(recalled, memory.patterns, _half_squares(memory.patterns))
        energies = before, float(memory.energy(state).mean())
        return Row(method, False, *_score(images, found, recalled), seconds, energies, steps), found

    def once() -> tuple[Array, Array, float]:
        state = memory.retrieve(cues, read="patterns")
        return state, state, 1

    def settled() -> tuple[Array, Array, float]:
        info = memory.retrieve(cues, steps=None, tol=_TOL, read="patterns", return_info=True)
        return info.state, info.state, float(info.steps.mean())

    def held() -> tuple[Array, Array, float]:
        *_, (state, recalled) = _held_steps(memory, damaged, _HELD_STEPS)
        return state, recalled, _HELD_STEPS

    memory.retrieve(cues[:8], read="patterns")  # whatever starts with the first call is not timed
    ways = [("memory, one step", once), ("memory, until it settles", settled)]
    ways += [("memory, known pixels held", held)] if damaged.known is not None else []
    rows = []
    for method, recall in ways:
        row, found = memory_row(method, recall)
        rows.append(row)
    for method, search in _searches(images, damaged):
        seconds, nearest = _timed(search)
        rows.append(Row(method, True, *_score(images, nearest, images.patterns[nearest]), seconds))

    states = [state for state, _ in _held_steps(memory, damaged, _TRACED_STEPS)]
    last = recall()[0]
    shown = memory.retrieve(last).reshape(images.pixels.shape)
    if damaged.known is not None:
        shown = np.where(damaged.known.reshape(shown.shape), damaged.pixels, shown)
    descent = np.stack([memory.energy(state) for state in (cues, *states)])
    return Case(images, damaged, rows, found == np.arange(len(cues)), shown, descent)


def _held_steps(memory: HopfieldMemory, damaged: Damaged, steps: int) -> Iterator[tuple[Array, Array]]:
    """Single updates. Where it is known which pixels survive, those are put back each time; that is the same
    minimisation over the lost pixels only, so the energy still never rises."""
    state = damaged.cues
    for _ in range(steps):
        recalled = memory.retrieve(state, read="patterns")
        state = recalled if damaged.known is None else np.where(damaged.known, damaged.cues, recalled)
        yield state, recalled


def _searches(images: Images, damaged: Damaged) -> list[tuple[str, Callable[[], Array]]]:
    """The honest baselines, on the same cues."""
    patterns, cues = images.patterns, damaged.cues
    half = _half_squares(patterns)
    searches: list[tuple[str, Callable[[], Array]]] = [
        ("nearest by dot product", lambda: _search(cues, patterns, None)),
        ("nearest by distance", lambda: _search(cues, patterns, half)),
    ]
    if damaged.known is not None:
        flat = images.pixels.reshape(len(images.pixels), -1)
        kept = np.where(damaged.known, damaged.pixels.reshape(flat.shape), np.float32(0))
        squares, known = np.square(flat) / 2, damaged.known.astype(np.float32)
        searches.append(("nearest over known pixels only", lambda: _search(kept, flat, None, known, squares)))
    return searches


def _search(
    cues: Array, patterns: Array, half_squares: Array | None, known: Array | None = None, squares: Array | None = None
) -> Array:
    """The row of the nearest pattern: by scalar product, by distance, or by distance over what is known."""
    found = np.empty(len(cues), np.int64)
    for start in range(0, len(cues), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = cues[part] @ patterns.T
        if half_squares is not None:
            scores -= half_squares
        if known is not None and squares is not None:
            scores -= known[part] @ squares.T
        found[part] = scores.argmax(axis=1)
    return found


def _half_squares(patterns: Array) -> Array:
    squares: Array = np.square(patterns).sum(axis=1) / 2
    return squares


def _score(images: Images, found: Array, recalled: Array) -> tuple[float, float]:
    truth = np.arange(len(found))
    return float((found == truth).mean()), float(np.linalg.norm(recalled - images.patterns, axis=1).mean())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _print_case(case: Case) -> None:
    n = len(case.damaged.cues)
    error = float(np.linalg.norm(case.damaged.cues - case.images.patterns, axis=1).mean())
    print(f"  {case.damaged.name:<10} {'(the cue as it is)':<32} {'':>8} {error:7.3f}")
    for row in case.rows:
        energy = "" if row.energy is None else f"{row.energy[0]:.3f} -> {row.energy[1]:.3f}"
        steps = "" if row.steps is None else f"{row.steps:.1f}"
        speed = f"{n / row.seconds:9.0f}"
        print(f"  {'':<10} {row.method:<32} {row.recalled:8.1%} {row.error:7.3f} {energy:>15} {steps:>6} {speed}")


def _summarise(cases: list[Case]) -> None:
    print("\nIn short, best memory row against best search row of each damage:")
    for case in cases:
        memory = max((row for row in case.rows if not row.searches), key=lambda row: row.recalled)
        search = max((row for row in case.rows if row.searches), key=lambda row: row.recalled)
        lead = memory.recalled - search.recalled
        verdict = "as good" if abs(lead) < 0.005 else "the memory is better" if lead > 0 else "the search is better"
        print(
            f"  {case.images.name + ', ' + case.damaged.name:<28} {memory.recalled:6.1%} {memory.method:<26} "
            f"{search.recalled:6.1%} {search.method:<31} {verdict}"
        )
    for case in (case for case in cases if case.images.photographs):
        fine = detailed(case.images)
        print(
            f"  {case.images.name + ', ' + case.damaged.name:<28} {case.right[fine].mean():6.1%} of the half with more "
            f"detail, {case.right[~fine].mean():.1%} of the flatter half (sky, dark leaves: near copies)"
        )
    rise = max(float((case.descent[1:] - case.descent[:-1]).max()) for case in cases)
    updates = sum(case.descent[1:].size for case in cases)
    print(f"The energy was followed over {updates} updates; its largest rise was {max(rise, 0):.1e}.")
