# SPDX-License-Identifier: BSD-3-Clause
"""Pooling of a bag of patterns by learned state patterns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._base import Array, Gradients, Tape, small_normal
from ._state_dict import TakesStateDicts
from .hopfield import Hopfield


class _Hopfield(Hopfield):
    public_name = "HopfieldPooling"


class HopfieldPoolingGradients(NamedTuple):
    """What `HopfieldPooling.backward` returns; an absent `projection` has None, its part is in ``stored``."""

    stored: Array
    projection: Array | None
    parameters: Gradients


class HopfieldPooling(TakesStateDicts[HopfieldPoolingGradients]):
    """`Hopfield` whose state patterns are parameters: what they retrieve from a bag is the bag's representation.

    ::

        out = the `quantity` rows of Hopfield(stored = bag, state = pooling_weights), one after another

    Parameters
    ----------
    input_size : int, optional
        Length of a state pattern and, unless options say otherwise, of an instance of the bag.
    quantity : int
        How many state patterns there are.
    trainable : bool
        Whether the state patterns have a gradient.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.
    **options
        All other options of `Hopfield`.

    Raises
    ------
    ValueError, TypeError
        As `Hopfield`; a quantity below 1.

    Notes
    -----
    Parameters: those of `Hopfield`, and ``pooling_weights`` (quantity, input_size), or (quantity, hidden_size) if the state patterns
    are static; they start as N(0, 0.02^2). One instance among N has weight 1 - e or more if beta times its lead in score over all
    others exceeds log(N - 1) + log((1 - e) / e). Ramsauer et al. 2020, https://arxiv.org/abs/2008.02217, section 3.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> layer = rc.layers.HopfieldPooling(8, quantity=2, num_heads=4, dtype=np.float64)
    >>> bags = np.random.default_rng(0).standard_normal((3, 100, 8))
    >>> out, tape = layer.forward(bags)
    >>> d_bags, d_projection, gradients = layer.backward(tape, np.ones_like(out))
    >>> out.shape, d_bags.shape, gradients["pooling_weights"].shape
    ((3, 16), (3, 100, 8), (2, 8))
    """

    def __init__(
        self,
        input_size: int | None = None,
        *,
        quantity: int = 1,
        trainable: bool = True,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dtype, rng)
        self.quantity, self.trainable = self._count("quantity", quantity), trainable
        self.hopfield = _Hopfield(input_size, dtype=dtype, **options)
        self._adopt(self.hopfield)
        self._rows, self._biases = self.hopfield._rows, self.hopfield._biases
        self._declare("pooling_weights", (self.quantity, self.hopfield.width_of("state_pattern")), small_normal)
        self._begin(rng)

    def __call__(
        self,
        stored: ArrayLike,
        projection: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        stored_pattern_padding_mask: ArrayLike | None = None,
    ) -> Array:
        return self.forward(stored, projection, mask=mask, stored_pattern_padding_mask=stored_pattern_padding_mask)[0]

    def forward(
        self,
        stored: ArrayLike,
        projection: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        stored_pattern_padding_mask: ArrayLike | None = None,
    ) -> tuple[Array, Tape[HopfieldPoolingGradients]]:
        """Pools bags of patterns.

        Parameters
        ----------
        stored : array (..., S, stored_pattern_size)
            A bag.
        projection : array (..., S, pattern_projection_size), optional
            What is read; `stored` if not given.
        mask : bool array, broadcast to (..., H, quantity, S), optional
            True where a state pattern may see an instance.
        stored_pattern_padding_mask : bool array (..., S), optional
            True where an instance is padding, for bags of different sizes in one array.

        Returns
        -------
        array (..., quantity * output_size)
        Tape
            For `backward`, which gives ``(stored, projection, parameters)``.

        Raises
        ------
        ValueError, TypeError
            As `Hopfield.forward`.

        Notes
        -----
        O(S) time and memory for given sizes; nothing of size quantity S is made.
        """
        self._check_parameters()
        state = self.parameters["pooling_weights"]
        rows, inner = self.hopfield.forward(
            stored, state, projection, mask=mask, stored_pattern_padding_mask=stored_pattern_padding_mask
        )
        out = rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])

        def pullback(d_out: Array) -> HopfieldPoolingGradients:
            d_stored, d_state, d_projection, gradients = inner.pullback(d_out.reshape(rows.shape))
            if self.trainable:
                assert d_state is not None
                gradients["pooling_weights"] = d_state
            return HopfieldPoolingGradients(d_stored, d_projection, gradients)

        return out, Tape(self, out.shape, pullback)
