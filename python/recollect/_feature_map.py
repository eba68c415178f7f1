# SPDX-License-Identifier: BSD-3-Clause
"""Feature maps: what keys and queries become before they meet a fast weight matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array
from ._core import core

__all__ = ["FeatureMap", "dpfp", "favor", "feature_map", "feature_maps"]

_NORMS = ("none", "sum", "l2")


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A feature map by name, how its values are normalised, and what it needs beside: see `dpfp` and `favor`.

    Parameters
    ----------
    name : str
        One of `feature_maps()`.
    normalize : {'none', 'sum', 'l2'}
        What phi(x) is divided by: nothing, its sum, or its length. A divisor of 0 makes zeros.
    nu : int
        The number of shifts of 'dpfp'.
    matrix : array (m, d), optional
        The projections of 'favor'.
    """

    name: str
    normalize: str = "none"
    nu: int = 1
    matrix: NDArray[np.float64] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.normalize not in _NORMS:
            raise ValueError(f"FeatureMap: normalize is {self.normalize!r}; expected 'none', 'sum' or 'l2'")

    def choice(self) -> tuple[str, str, int, Any]:
        """As the core takes it."""
        return (self.name, self.normalize, self.nu, _NO_MATRIX if self.matrix is None else self.matrix)


_NO_MATRIX = np.zeros((0, 0))
_NO_MATRIX.setflags(write=False)


class dpfp(FeatureMap):
    """Deterministic parameter-free projection: with r = [max(x, 0), max(-x, 0)], ``phi[(j - 1) 2d + i] = r[i] r[(i + j) mod 2d]``
    for j = 1 .. nu, so 2 d nu features (Schlag et al. 2021, https://arxiv.org/abs/2102.11174, eq. 37).

    Parameters
    ----------
    nu : int
        From 1 to 2d - 1; beyond d - 1 nothing new comes.
    normalize : {'none', 'sum', 'l2'}

    Examples
    --------
    >>> import recollect as rc
    >>> rc.fastweight.feature_map([[1.0, -2.0]], rc.fastweight.dpfp(1))
    array([[0., 0., 0., 2.]])
    """

    def __init__(self, nu: int = 1, normalize: str = "none") -> None:
        count = _array.whole("dpfp", "nu", nu, 1, expected="1 or more")
        super().__init__("dpfp", normalize, count)


class favor(FeatureMap):
    """Positive random features: with x' = d^(-1/4) x and the rows r of `matrix`, phi = [exp(r.x' - |x'|^2/2), exp(-r.x' - |x'|^2/2)] /
    sqrt(2m), 2m features whose scalar products estimate exp(q.k / sqrt(d)) (Choromanski et al. 2021, https://arxiv.org/abs/2009.14794).

    `linear_attention` with its normaliser works with log phi, as do the normalisations here, so that no row is too long for them;
    phi itself, of `feature_map` and of the other rules, is 0 where |x'|^2/2 is some 80 (float32) or 700 (float64) above r.x'.

    Parameters
    ----------
    matrix : array (m, d)
        The projections, standard normal in law. `favor.draw` makes one; nothing is ever redrawn.
    normalize : {'none', 'sum', 'l2'}

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> phi = rc.fastweight.favor.draw(np.random.default_rng(0), 4, 20_000)
    >>> x, y = rc.fastweight.feature_map([[0.5, -1.0, 0.2, 0.1], [0.3, 0.4, -0.5, 1.0]], phi)
    >>> bool(abs(x @ y - np.exp(-0.25 / 2)) < 0.03)
    True
    """

    def __init__(self, matrix: ArrayLike, normalize: str = "none") -> None:
        array = np.array(_array.floating("favor", "matrix", matrix), np.float64, order="C")
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"favor: matrix has shape {array.shape}; expected (m, d)")
        array.setflags(write=False)
        super().__init__("favor", normalize, 1, array)

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        width: int,
        features: int,
        *,
        orthogonal: bool = True,
        normalize: str = "none",
    ) -> favor:
        """Projections for keys of `width` numbers, `features` rows, from the caller's generator. Orthogonal: rows in blocks of
        `width` are orthogonal, each with the length that a normal row would have."""
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"favor.draw: rng is a {type(rng).__name__}; expected a numpy.random.Generator")
        d = _array.whole("favor.draw", "width", width, 1, expected="1 or more")
        m = _array.whole("favor.draw", "features", features, 1, expected="1 or more")
        if not orthogonal:
            return cls(rng.standard_normal((m, d)), normalize)
        blocks = []
        for first in range(0, m, d):
            q, r = np.linalg.qr(rng.standard_normal((d, d)))
            q *= np.sign(np.diag(r))  # without it the factor of QR is not uniform among rotations
            lengths = np.sqrt(rng.chisquare(d, d))
            blocks.append((lengths[:, None] * q)[: m - first])
        return cls(np.concatenate(blocks), normalize)


def feature_maps() -> tuple[str, ...]:
    """The names of the feature maps there are.

    Examples
    --------
    >>> import recollect as rc
    >>> rc.fastweight.feature_maps()
    ('identity', 'relu', 'elu1', 'squared_relu', 'softmax', 'l2', 'dpfp', 'favor')
    """
    return tuple(core.feature_map_names())


def as_map(op: str, value: Any) -> FeatureMap:
    """A name, None or a FeatureMap as a FeatureMap."""
    if value is None:
        return _IDENTITY
    if isinstance(value, FeatureMap):
        return value
    if not isinstance(value, str):
        raise TypeError(f"{op}: feature_map is a {type(value).__name__}; expected a name, a FeatureMap or None")
    if (shifted := re.fullmatch(r"dpfp[-_]?([1-9]\d*)", value)) is not None:
        return dpfp(int(shifted[1]))
    return FeatureMap(value)


_IDENTITY = FeatureMap("identity")


def width(op: str, phi: FeatureMap, d: int) -> int:
    if phi.matrix is None:
        return _width(op, phi.name, phi.normalize, phi.nu, d)
    return int(core.feature_map_width(op, phi.choice(), d))


@lru_cache(maxsize=256)
def _width(op: str, name: str, normalize: str, nu: int, d: int) -> int:
    return int(core.feature_map_width(op, (name, normalize, nu, _NO_MATRIX), d))


def feature_map(x: ArrayLike, feature_map: str | FeatureMap, *, normalize: str | None = None) -> NDArray[Any]:
    """phi(x), row by row; differentiable by `recollect.vjp`.

    Parameters
    ----------
    x : array (..., d), float32 or float64
        Rows. Any strides are taken as they are.
    feature_map : str or FeatureMap
        A name of `feature_maps()` ('dpfp2' is dpfp with nu = 2), or `dpfp(nu)`, `favor(matrix)`.
    normalize : {'none', 'sum', 'l2'}, optional
        What phi(x) is divided by, if not as the FeatureMap says.

    Returns
    -------
    array (..., K)
        K is d, or 2 d nu for dpfp, or 2 m for favor.

    Raises
    ------
    ValueError
        An unknown name, an x without columns, a matrix of another width.
    TypeError
        A dtype that is no number.

    Examples
    --------
    >>> import recollect as rc
    >>> rc.fastweight.feature_map([[-1.0, 0.0, 2.0]], "elu1").round(3)
    array([[0.368, 1.   , 3.   ]])
    """
    op = "fastweight.feature_map"
    array, phi = rows(op, x, feature_map, normalize)
    d = array.shape[-1] if array.ndim else 0
    out = np.empty((*array.shape[:-1], width(op, phi, d)), array.dtype)
    core.feature_map(op, array, phi.choice(), out)
    return out


def rows(op: str, x: Any, feature_map: Any, normalize: Any) -> tuple[NDArray[Any], FeatureMap]:
    phi = as_map(op, feature_map)
    if normalize is not None:
        phi = FeatureMap(phi.name, normalize, phi.nu, phi.matrix)
    return _array.floating(op, "x", x), phi
