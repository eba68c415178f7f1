# SPDX-License-Identifier: BSD-3-Clause
"""The demo's picture: cue, recall and truth for each damage, and how the energy falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._demo_data import Case, assemble, detailed

__all__ = ["draw"]

Array = npt.NDArray[Any]

_SHOWN = 8  # digits of each damage
_GAP = 2
_LOST = np.array([0.62, 0.78, 0.95], np.float32)  # the colour of pixels that are known to be lost
_WRONG = "#d62728"
_COLOURS = {"digits": "#1f77b4", "photographs": "#ff7f0e"}
_TITLES = {
    "noise": "noise",
    "occlusion": "occlusion by a grey square, place unknown",
    "erasure": "erasure, lost pixels (blue) known",
}


def draw(cases: list[Case], path: Path, suffix: str) -> None:
    """Writes the picture to ``path`` in the format that ``suffix`` names (png without one)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(dict.fromkeys(case.damaged.name for case in cases))
    layout = ConstrainedLayoutEngine(h_pad=0.015, w_pad=0.08, hspace=0.0, rect=(0, 0, 1, 0.962))
    figure = Figure(figsize=(15, 15), layout=layout)
    figure.suptitle("Real images, damaged, and recalled by a Hopfield memory", y=0.99, fontsize=18, fontweight="bold")
    grid = figure.add_gridspec(5, len(names), height_ratios=[1.75, 3, 3, 3, 2.3])
    energy = None
    for column, name in enumerate(names):
        here = {case.images.name: case for case in cases if case.damaged.name == name}
        axes = [figure.add_subplot(grid[row, column]) for row in range(4)]
        axes.append(figure.add_subplot(grid[4, column], sharey=energy))
        energy = axes[4]
        _draw_digits(axes[0], here["digits"])
        _draw_photograph(axes[1:4], here["photographs"], column % 2)
        _draw_energy(axes[4], list(here.values()))
        axes[0].text(0.5, 1.2, _TITLES[name], transform=axes[0].transAxes, ha="center", fontsize=14, fontweight="bold")
        if column == 0:
            axes[0].set_yticks(_digit_rows(), ["cue", "recall", "truth"], fontsize=12)
            for ax, label in zip(axes[1:4], ("cue", "recall", "truth"), strict=True):
                ax.set_ylabel(label, fontsize=12)
            axes[4].set_ylabel("energy", fontsize=12)
    if energy is not None:
        energy.set_ylim(0, 1.05 * max(np.quantile(case.descent, 0.9, axis=1).max() for case in cases))
    figure.savefig(path, dpi=110, format=suffix.lstrip(".") or "png")


def _digit_rows() -> list[float]:
    return [row * (8 + _GAP) + 3.5 for row in range(3)]


def _draw_digits(ax: Any, case: Case) -> None:
    from matplotlib.patches import Rectangle

    # Spread evenly over the data set, whatever the outcome.
    shown = np.linspace(0, len(case.right) - 1, _SHOWN).astype(int)
    size = 8 + _GAP
    sheet = np.ones((3 * size - _GAP, _SHOWN * size - _GAP, 3), np.float32)
    for row, pixels in enumerate((case.damaged.pixels, case.recalled, case.images.pixels)):
        for column, which in enumerate(shown):
            ink = _visible(1 - pixels[which])
            sheet[row * size : row * size + 8, column * size : column * size + 8] = ink
    ax.imshow(sheet, interpolation="nearest")
    for row in range(3):
        for column, which in enumerate(shown):
            wrong = row == 1 and not case.right[which]
            frame = Rectangle((column * size - 0.5, row * size - 0.5), 8, 8, fill=False)
            frame.set(edgecolor=_WRONG if wrong else "0.75", linewidth=2.5 if wrong else 0.8)
            ax.add_patch(frame)
    ax.set_title(f"{_outcome(case, 'digits')} (red: wrong)", fontsize=12)
    ax.set(xticks=[], yticks=[], xlim=(-1.5, sheet.shape[1] + 0.5), ylim=(sheet.shape[0] + 0.5, -1.5))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _draw_photograph(axes: list[Any], case: Case, which: int) -> None:
    for ax, pixels in zip(axes, (case.damaged.pixels, case.recalled, case.images.pixels), strict=True):
        ax.imshow(_visible(assemble(case.images, pixels, which)), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    fine = case.right[detailed(case.images)].mean()
    axes[0].set_title(f"{_outcome(case, 'patches')}, {fine:.1%} of the detailed half", fontsize=12)


def _draw_energy(ax: Any, cases: list[Case]) -> None:
    for case in cases:
        steps = np.arange(len(case.descent))
        low, high = np.quantile(case.descent, (0.1, 0.9), axis=1)
        colour = _COLOURS[case.images.name]
        ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(steps, case.descent.mean(axis=1), "o-", color=colour, label=case.images.name)
    ax.set_xlabel("step", fontsize=12)
    ax.set_title("descent of the energy: mean, and 80% of all cues", fontsize=12)
    ax.grid(alpha=0.3)
    ax.legend()


def _outcome(case: Case, what: str) -> str:
    return f"{case.right.mean():.0%} of {len(case.right)} {what} right"


def _visible(pixels: Array) -> Array:
    """Three colours between 0 and 1, lost pixels in a colour of their own."""
    colours = np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
    return np.where(np.isnan(colours), _LOST, np.clip(colours, 0, 1))
