# SPDX-License-Identifier: BSD-3-Clause
"""Layer normalisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._base import Array, Gradients, Layer, Tape, ones, zeros
from ._functions import layer_norm


class LayerNormGradients(NamedTuple):
    """What `LayerNorm.backward` returns."""

    x: Array
    parameters: Gradients


class LayerNorm(Layer[LayerNormGradients]):
    """Layer normalisation over the last axis.

    ::

        y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias,    var the mean square deviation (biased)

    Parameters
    ----------
    width : int
        Length of the last axis.
    eps : float
        Added to the variance.
    affine : bool
        Whether there are ``weight`` (width,), that starts with ones, and ``bias`` (width,), that starts with zeros.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Nothing here is drawn from it.

    Raises
    ------
    ValueError
        A width below 1, eps that is not positive.
    TypeError
        A dtype other than float32 and float64.

    Notes
    -----
    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450. The same numbers as torch.nn.LayerNorm. Before a Hopfield network
    `weight` acts as an inverse temperature.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> layer = rc.layers.LayerNorm(4, dtype=np.float64)
    >>> out, tape = layer.forward([[1.0, 2.0, 3.0, 4.0]])
    >>> out.round(3)
    array([[-1.342, -0.447,  0.447,  1.342]])
    >>> layer.backward(tape, np.ones((1, 4))).parameters["bias"]
    array([1., 1., 1., 1.])
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(dtype, rng)
        self.width, self.eps = self._count("width", width), self._positive("eps", eps)
        if affine:
            self._declare("weight", (self.width,), ones)
            self._declare("bias", (self.width,), zeros)
        self._begin(rng)

    def __call__(self, x: ArrayLike) -> Array:
        return self.forward(x)[0]

    def forward(self, x: ArrayLike) -> tuple[Array, Tape[LayerNormGradients]]:
        """Normalises x (..., width); O(size) time and memory. `backward` gives ``(x, parameters)``.

        Raises
        ------
        ValueError
            x whose last axis is not `width` long.
        TypeError
            x whose dtype is no number.
        """
        self._check_parameters()
        array = self._input("x", x, f"(..., width={self.width})", self.width)
        out, back = layer_norm(array, self.parameters, "", self.eps)

        def pullback(d_out: Array) -> LayerNormGradients:
            gradients: Gradients = {}
            return LayerNormGradients(back(d_out, gradients), gradients)

        # Without parameters the output is what the tape keeps, and the caller may write to the output.
        return (out if self.parameters else out.copy()), Tape(self, out.shape, pullback)
