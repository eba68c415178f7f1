# SPDX-License-Identifier: BSD-3-Clause
"""A head that averages by position, without looking at what is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._vjp import vjp
from ..attention import attend
from ._base import Array, Gradients, Layer, Tape


def _anywhere(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(-1, 1, shape)


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.log(rng.uniform(0.75, 1.25, shape))


class GaussianHeadGradients(NamedTuple):
    """What `GaussianHead.backward` returns."""

    value: Array
    parameters: Gradients


class GaussianHead(Layer[GaussianHeadGradients]):
    """Averages values by position with learned Gaussian weights, in place of an attention head that averages anyway.

    ::

        out_i = sum_j A_ij v_j,   A_ij = exp(-e_ij^2 / 2) / sum_j exp(-e_ij^2 / 2),   e_ij = (s_j - mean_i) / exp(log_spread_i)
        s_j = (2 j - (N - 1)) / (N - 1), from -1 to 1, the position of j = 0 ... N - 1

    Parameters
    ----------
    length : int
        N, how many positions there are.
    heads : int
        H, how many such heads.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.

    Raises
    ------
    ValueError
        A length or a number of heads below 1.
    TypeError
        A dtype other than float32 and float64, a size that is no whole number.

    Notes
    -----
    Parameters: ``mean`` (H, N), which starts as U(-1, 1), and ``log_spread`` (H, N), the logarithm of what starts as U(0.75, 1.25);
    two for a position and head. The logarithm keeps the spread positive. Ramsauer et al. 2020, https://arxiv.org/abs/2008.02217,
    section 3 and the appendix on BERT.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> layer = rc.layers.GaussianHead(3, dtype=np.float64)
    >>> layer.parameters["mean"][...] = [-1.0, 0.0, 1.0]
    >>> layer.parameters["log_spread"][...] = -4.0
    >>> out, tape = layer.forward([[[1.0], [2.0], [4.0]]])
    >>> out.round(6).tolist()
    [[[1.0], [2.0], [4.0]]]
    >>> layer.backward(tape, np.ones((1, 3, 1))).value.round(6).tolist()
    [[[1.0], [1.0], [1.0]]]
    """

    def __init__(
        self, length: int, heads: int = 1, *, dtype: DTypeLike = np.float32, rng: np.random.Generator | None = None
    ) -> None:
        super().__init__(dtype, rng)
        self.length, self.heads = self._count("length", length), self._count("heads", heads)
        steps = max(self.length - 1, 1)  # a single position is 0
        self.positions: Array = ((2 * np.arange(self.length) - (self.length - 1)) / steps).astype(self.dtype)
        self._declare("mean", (self.heads, self.length), _anywhere)
        self._declare("log_spread", (self.heads, self.length), _wide)
        self._begin(rng)

    def __call__(self, value: ArrayLike, *, padding_mask: ArrayLike | None = None) -> Array:
        return self.forward(value, padding_mask=padding_mask)[0]

    def forward(
        self, value: ArrayLike, *, padding_mask: ArrayLike | None = None
    ) -> tuple[Array, Tape[GaussianHeadGradients]]:
        """Averages values.

        Parameters
        ----------
        value : array (..., H, N, e)
        padding_mask : bool array (..., N), optional
            True for positions to be left out; the weights of the others sum to 1.

        Returns
        -------
        array (..., H, N, e)
            Zeros where all positions are left out.
        Tape
            For `backward`, which gives ``(value, parameters)``.

        Raises
        ------
        ValueError
            A shape that does not fit.
        TypeError
            A dtype that is no number, a mask that is not bool.

        Notes
        -----
        O(batch H N^2 e) time; the logarithms of the weights take O(H N^2) memory, once for all of the batch.
        """
        self._check_parameters()
        form = f"(..., H={self.heads}, N={self.length}, e)"
        v = self._input("value", value, form, None)
        if v.shape[-3:-1] != (self.heads, self.length):
            raise ValueError(f"{self.name}: value has shape {v.shape}; expected {form}")
        rows = (*v.shape[:-3], self.length)
        keep = self._keep(None, padding_mask, "padding_mask", (*v.shape[:-1], self.length), rows)
        inverse = np.exp(-self.parameters["log_spread"])[..., None]
        e = (self.positions - self.parameters["mean"][..., None]) * inverse
        # Attention whose scores are all in the bias: the same softmax, masks and pullback.
        nothing = np.zeros((self.length, 1), self.dtype)
        out, back = vjp(attend, nothing, nothing, v, scale=1.0, bias=-np.square(e) / 2, mask=keep)

        def pullback(d_out: Array) -> GaussianHeadGradients:
            inner: Any = back(d_out)
            moved = inner.bias * e
            gradients = {"mean": (moved * inverse).sum(axis=-1), "log_spread": (moved * e).sum(axis=-1)}
            return GaussianHeadGradients(inner.value, gradients)

        return out, Tape(self, out.shape, pullback)
