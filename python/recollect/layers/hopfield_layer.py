# SPDX-License-Identifier: BSD-3-Clause
"""Lookup in learned stored patterns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._base import Array, Gradients, Tape, small_normal
from ._functions import add
from ._state_dict import TakesStateDicts
from .hopfield import Hopfield


class _Hopfield(Hopfield):
    public_name = "HopfieldLayer"


class HopfieldLayerGradients(NamedTuple):
    """What `HopfieldLayer.backward` returns."""

    state: Array
    parameters: Gradients


class HopfieldLayer(TakesStateDicts[HopfieldLayerGradients]):
    """`Hopfield` whose stored patterns are parameters: a learned memory that data looks things up in.

    ::

        out = Hopfield(stored = lookup_weights, state = data, projection = target_weights, or else lookup_weights)

    Parameters
    ----------
    input_size : int, optional
        Length of a state pattern and, unless options say otherwise, of a stored pattern.
    quantity : int
        S, how many stored patterns there are.
    lookup_weights_as_separated : bool
        Read from ``target_weights``, parameters of their own.
    trainable, lookup_targets_as_trainable : bool
        Whether ``lookup_weights`` and ``target_weights`` have a gradient. What reads nothing else goes through ``lookup_weights`` twice.
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
    Parameters: those of `Hopfield`, ``lookup_weights`` (S, stored_pattern_size), or (S, hidden_size) if static, and
    ``target_weights`` (S, pattern_projection_size), or (S, pattern_size) if static; both start as N(0, 0.02^2). Ramsauer et al. 2020,
    https://arxiv.org/abs/2008.02217, section 3.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> layer = rc.layers.HopfieldLayer(8, quantity=20, num_heads=2, lookup_weights_as_separated=True, dtype=np.float64)
    >>> out, tape = layer.forward(np.random.default_rng(0).standard_normal((3, 5, 8)))
    >>> d_state, gradients = layer.backward(tape, np.ones_like(out))
    >>> out.shape, gradients["lookup_weights"].shape, gradients["target_weights"].shape
    ((3, 5, 8), (20, 8), (20, 8))
    """

    def __init__(
        self,
        input_size: int | None = None,
        *,
        quantity: int = 1,
        lookup_weights_as_separated: bool = False,
        trainable: bool = True,
        lookup_targets_as_trainable: bool = True,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dtype, rng)
        self.quantity = self._count("quantity", quantity)
        self._separated, self.trainable, self.lookup_targets_as_trainable = (
            lookup_weights_as_separated,
            trainable,
            lookup_targets_as_trainable,
        )
        self.hopfield = _Hopfield(input_size, dtype=dtype, **options)
        self._adopt(self.hopfield)
        self._rows, self._biases = self.hopfield._rows, self.hopfield._biases
        self._declare("lookup_weights", (self.quantity, self.hopfield.width_of("stored_pattern")), small_normal)
        if self._separated:
            self._declare("target_weights", (self.quantity, self.hopfield.width_of("pattern_projection")), small_normal)
        self._begin(rng)

    def __call__(
        self, state: ArrayLike, *, mask: ArrayLike | None = None, stored_pattern_padding_mask: ArrayLike | None = None
    ) -> Array:
        return self.forward(state, mask=mask, stored_pattern_padding_mask=stored_pattern_padding_mask)[0]

    def forward(
        self, state: ArrayLike, *, mask: ArrayLike | None = None, stored_pattern_padding_mask: ArrayLike | None = None
    ) -> tuple[Array, Tape[HopfieldLayerGradients]]:
        """Looks state patterns up.

        Parameters
        ----------
        state : array (..., L, input_size)
        mask : bool array, broadcast to (..., H, L, S), optional
            True where a state pattern may see a stored pattern.
        stored_pattern_padding_mask : bool array (S,), optional
            True where a stored pattern is to be left out.

        Returns
        -------
        array (..., L, output_size), or (..., L, H pattern_size) without output projection
        Tape
            For `backward`, which gives ``(state, parameters)``.

        Raises
        ------
        ValueError, TypeError
            As `Hopfield.forward`.

        Notes
        -----
        As `Hopfield.forward`; stored patterns are projected once, not for each batch entry.
        """
        self._check_parameters()
        p = self.parameters
        out, inner = self.hopfield.forward(
            p["lookup_weights"],
            state,
            p["target_weights"] if self._separated else None,
            mask=mask,
            stored_pattern_padding_mask=stored_pattern_padding_mask,
        )

        def pullback(d_out: Array) -> HopfieldLayerGradients:
            d_lookup, d_state, d_target, gradients = inner.pullback(d_out)
            assert d_state is not None
            if self.trainable:
                add(gradients, "lookup_weights", d_lookup)
            if d_target is not None and self.lookup_targets_as_trainable:
                add(gradients, "target_weights", d_target)
            return HopfieldLayerGradients(d_state, gradients)

        return out, Tape(self, out.shape, pullback)
