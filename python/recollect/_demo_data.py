# SPDX-License-Identifier: BSD-3-Clause
"""Real images for the demo, as patterns of a memory, three ways to damage them, and what is said of each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DAMAGES", "Case", "Damaged", "Images", "Row", "assemble", "damage", "detailed", "digits", "photographs"]

Array = npt.NDArray[Any]

NOISE = 0.25  # standard deviation, of the range from black to white
OCCLUDED = 0.25  # share of the area under the square
ERASED = 0.5  # share of the pixels that are lost
DAMAGES = ("noise", "occlusion", "erasure")
PATCH = 16


class Images(NamedTuple):
    """N images, and the patterns that stand for them in a memory."""

    name: str
    about: str
    pixels: Array  # (N, height, width, colours), 0 to 1
    mean: Array  # (d,), the mean image
    patterns: Array  # (N, d)
    unit: bool  # whether patterns have length 1
    photographs: tuple[tuple[int, int], ...] = ()  # rows and columns of patches in each, in order


class Damaged(NamedTuple):
    """A damaged copy of every image."""

    name: str
    pixels: Array  # (N, height, width, colours)
    known: Array | None  # (N, d), False where a pixel is known to be lost; None: nothing is known
    cues: Array  # (N, d)


class Row(NamedTuple):
    """One method on all cues."""

    method: str
    searches: bool
    recalled: float
    error: float
    seconds: float
    energy: tuple[float, float] | None = None
    steps: float | None = None


class Case(NamedTuple):
    """One way to damage one set of images, and what came of it."""

    images: Images
    damaged: Damaged
    rows: list[Row]
    right: Array  # (N,), which recalls of the last memory row were right
    recalled: Array  # (N, height, width, colours), those recalls as images; what is known to be right is kept
    descent: Array  # (steps + 1, N), the energy of every cue on the way


def digits(*, quick: bool) -> tuple[Images, Images]:
    """Handwritten digits of 8 x 8 pixels: scaled to one length, and with the lengths that they have."""
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[: 400 if quick else None, :, :, np.newaxis] / 16).astype(np.float32)
    about = "scikit-learn's handwritten digits, 8 x 8"
    return (
        _prepared("digits", about, pixels, unit=True),
        _prepared("digits, own lengths", about + ", centred but not scaled", pixels, unit=False),
    )


def photographs(*, quick: bool) -> Images:
    """Every 16 x 16 colour patch of scikit-learn's two sample photographs."""
    from sklearn.datasets import load_sample_images

    patches, grids = [], []
    for photograph in load_sample_images().images:
        if quick:
            photograph = photograph[120:280, 200:440]
        rows, columns = photograph.shape[0] // PATCH, photograph.shape[1] // PATCH
        cut = photograph[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3)
        patches.append(cut.swapaxes(1, 2).reshape(-1, PATCH, PATCH, 3))
        grids.append((rows, columns))
    pixels = (np.concatenate(patches) / 255).astype(np.float32)
    about = f"all {PATCH} x {PATCH} colour patches of scikit-learn's china.jpg and flower.jpg"
    return _prepared("photographs", about, pixels, unit=True)._replace(photographs=tuple(grids))


def assemble(images: Images, pixels: Array, which: int) -> Array:
    """The photograph ``which`` from its patches."""
    start = sum(rows * columns for rows, columns in images.photographs[:which])
    rows, columns = images.photographs[which]
    patches = pixels[start : start + rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
    whole: Array = patches.swapaxes(1, 2).reshape(rows * PATCH, columns * PATCH, 3)
    return whole


def detailed(images: Images) -> Array:
    """Which images are of the half with more contrast; the flatter half (sky, dark leaves) is full of near copies."""
    contrast = images.pixels.std(axis=(1, 2, 3))
    mask: Array = contrast > np.median(contrast)
    return mask


def _prepared(name: str, about: str, pixels: Array, *, unit: bool) -> Images:
    flat = pixels.reshape(len(pixels), -1)
    mean = flat.mean(axis=0)
    return Images(name, about, pixels, mean, _pattern(flat, mean, None, unit), unit)


def _pattern(flat: Array, mean: Array, known: Array | None, unit: bool) -> Array:
    """Centred, because what all images share tells none of them apart; of length 1, because otherwise the
    scalar product prefers strong patterns to similar ones. Lost pixels take the mean, which is 0 here."""
    pattern = flat - mean
    length = 1.0
    if known is not None:
        pattern = np.where(known, pattern, np.float32(0))
        length = np.sqrt(known.mean(axis=1, keepdims=True))  # about what is left of the length
    if unit:
        pattern *= length / np.maximum(np.linalg.norm(pattern, axis=1, keepdims=True), 1e-12)
    return pattern.astype(np.float32)


def damage(images: Images, name: str, rng: np.random.Generator) -> Damaged:
    """Damages every image once, in its pixels, and makes cues of the result as patterns are made of images."""
    pixels, known = images.pixels.copy(), None
    n, height, width, _ = pixels.shape
    if name == "noise":
        pixels = np.clip(pixels + rng.normal(0, NOISE, pixels.shape), 0, 1).astype(np.float32)
    elif name == "occlusion":
        tall, wide = (round(side * math.sqrt(OCCLUDED)) for side in (height, width))
        top, left = rng.integers(0, height - tall + 1, n), rng.integers(0, width - wide + 1, n)
        for image, y, x in zip(pixels, top, left, strict=True):
            image[y : y + tall, x : x + wide] = 0.5
    else:
        kept = rng.random((n, height, width, 1)) >= ERASED
        known = np.broadcast_to(kept, pixels.shape).reshape(n, -1)
        pixels[np.broadcast_to(~kept, pixels.shape)] = np.nan  # so that nothing can use them by mistake
    flat = pixels.reshape(n, -1)
    return Damaged(name, pixels, known, _pattern(flat, images.mean, known, images.unit))
