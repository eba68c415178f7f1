# SPDX-License-Identifier: BSD-3-Clause
"""The Hopfield layer: state patterns retrieve from stored patterns in a space that both are projected to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _array
from .._core import core
from .._separation import Separation, split
from ._association import Association
from ._base import Array, Gradients, Tape, ones, small_normal, zeros
from ._functions import linear, merge_heads, split_heads
from ._roles import ROLES


class HopfieldGradients(NamedTuple):
    """What `Hopfield.backward` returns; an input that was not given has None, its part is in ``stored``."""

    stored: Array
    state: Array | None
    projection: Array | None
    parameters: Gradients


class Hopfield(Association[HopfieldGradients]):
    """Association of state patterns R with stored patterns Y, and with the pattern projection Y' that is read.

    ::

        Q_h = LN(R) Wq_h^T + bq_h,    K_h = LN(Y) Wk_h^T + bk_h,    V_h = LN(Y') Wv_h^T + bv_h
        Q_h <- softmax(beta_h Q_h K_h^T) K_h    `update_steps_max` times, then    Z_h = softmax(beta_h Q_h K_h^T) V_h
        out = [Z_1, ..., Z_H] Wo^T + bo

    Parameters
    ----------
    input_size : int, optional
        Length of a state pattern. Not needed if all roles are static and nothing has parameters; all widths are free then.
    hidden_size : int, optional
        d, the length of Q_h and K_h: of **one head**; input_size / num_heads if not given.
    output_size, pattern_size, stored_pattern_size, pattern_projection_size : int, optional
        Length of an output row, of V_h, of a stored pattern, of a row of Y'; input_size, d, input_size, input_size if not given.
    num_heads : int
        H.
    scaling : float or (H,) array, optional
        beta, positive, one or one per head; 1/sqrt(d), or 1 if all roles are static, if not given.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names.
    update_steps_max : int or None
        0 is attention; T takes T + 1 softmaxes; None updates each row until it moves by at most `update_steps_eps`.
    update_steps_eps : float
        That bound, on the Euclidean length of a row's update; used with None only.
    normalize_stored_pattern, normalize_state_pattern, normalize_pattern_projection : bool
        Whether the LN of that role is there; ``..._affine`` whether it has parameters, ``..._eps`` its eps.
    normalize_hopfield_space : bool
        One more LN, of each row of each Q_h and K_h, with shared parameters.
    stored_pattern_as_static, state_pattern_as_static, pattern_projection_as_static : bool
        No projection of that role: every head takes its rows, of length d (`pattern_size` for the last), as they are.
    pattern_projection_as_connected : bool
        V_h = U Wv_h^T + bv_h with U the projection of Y' by Wk, bk (all heads), normalised as the K_h are: the paper's Y Wk Wv.
    input_bias : bool
        Whether projections, the output's too, have a bias.
    concat_bias_pattern : bool
        One more learned row for K_h and V_h.
    add_zero_association : bool
        One more row of zeros for K_h and V_h.
    disable_out_projection : bool
        Return [Z_1, ..., Z_H].
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.

    Raises
    ------
    ValueError
        Sizes that do not fit each other, a `scaling` that is not positive or not (H,), a negative `update_steps_max`.
    TypeError
        A dtype other than float32 and float64, a size that is no whole number.

    Notes
    -----
    Parameters: ``state_pattern``, ``stored_pattern``, ``pattern_projection``, ``output``, each ``.weight`` (out, in) and ``.bias``
    (out,), head h in rows h d ... (h + 1) d; ``norm_stored_pattern``, ``norm_state_pattern``, ``norm_pattern_projection``,
    ``norm_hopfield_space``, each ``.weight`` and ``.bias``; ``bias_stored_pattern`` (H d,) and ``bias_pattern_projection``. Weights
    start as N(0, 0.02^2), normalisations as 1 and 0, biases as 0.

    Options and defaults are those of hopfield-layers, but no row depends on others: each stops by itself, by its own
    movement, and heads have their own beta; a row that may see nothing gives Z = 0. Arrays are batch first, `mask` says what to keep
    and not what to drop, and there is no dropout. Ramsauer et al. 2020,
    https://arxiv.org/abs/2008.02217, eq. 10 and section 3.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> layer = rc.layers.Hopfield(8, num_heads=2, scaling=[0.5, 4.0], update_steps_max=3, rng=rng, dtype=np.float64)
    >>> stored, state = rng.standard_normal((3, 7, 8)), rng.standard_normal((3, 5, 8))
    >>> out, tape = layer.forward(stored, state)
    >>> d_stored, d_state, d_projection, gradients = layer.backward(tape, np.ones_like(out))
    >>> out.shape, d_stored.shape, d_state.shape, d_projection
    ((3, 5, 8), (3, 7, 8), (3, 5, 8), None)
    """

    def __init__(
        self,
        input_size: int | None = None,
        *,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: ArrayLike | None = None,
        separation: Separation = "softmax",
        update_steps_max: int | None = 0,
        update_steps_eps: float = 1e-4,
        normalize_stored_pattern: bool = True,
        normalize_stored_pattern_affine: bool = True,
        normalize_stored_pattern_eps: float = 1e-5,
        normalize_state_pattern: bool = True,
        normalize_state_pattern_affine: bool = True,
        normalize_state_pattern_eps: float = 1e-5,
        normalize_pattern_projection: bool = True,
        normalize_pattern_projection_affine: bool = True,
        normalize_pattern_projection_eps: float = 1e-5,
        normalize_hopfield_space: bool = False,
        normalize_hopfield_space_affine: bool = False,
        normalize_hopfield_space_eps: float = 1e-5,
        stored_pattern_as_static: bool = False,
        state_pattern_as_static: bool = False,
        pattern_projection_as_static: bool = False,
        pattern_projection_as_connected: bool = False,
        stored_pattern_size: int | None = None,
        pattern_projection_size: int | None = None,
        input_bias: bool = True,
        concat_bias_pattern: bool = False,
        add_zero_association: bool = False,
        disable_out_projection: bool = False,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(dtype, rng)
        self.heads = self._count("num_heads", num_heads)
        core.separation_margin(self.name, *split(self.name, separation))  # refuses what is none
        self.separation = separation
        self.update_steps_max = (
            None if update_steps_max is None else self._count("update_steps_max", update_steps_max, 0)
        )
        self.update_steps_eps = self._positive("update_steps_eps", update_steps_eps)
        static = {"stored_pattern": stored_pattern_as_static, "state_pattern": state_pattern_as_static}
        self._static = static | {"pattern_projection": pattern_projection_as_static}
        self._through_stored = pattern_projection_as_connected and not stored_pattern_as_static
        self._space_eps = (
            self._positive("normalize_hopfield_space_eps", normalize_hopfield_space_eps)
            if normalize_hopfield_space
            else None
        )
        self._zero_row, self._bias_row, self._projects_out = (
            add_zero_association,
            concat_bias_pattern,
            not disable_out_projection,
        )
        free = all(self._static.values()) and not (
            pattern_projection_as_connected or normalize_hopfield_space or self._projects_out
        )

        if input_size is None and not free:
            raise ValueError(
                f"{self.name}: input_size is None; expected a number unless all roles are static and nothing is projected"
            )
        sizes = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "output_size": output_size,
            "pattern_size": pattern_size,
        }
        sizes |= {"stored_pattern_size": stored_pattern_size, "pattern_projection_size": pattern_projection_size}
        given = {name: None if size is None else self._count(name, size) for name, size in sizes.items()}
        # Widths of the roles as they come in, and of one head; None is any.
        self._widths, self._inner = self._plan(given, free)
        self.output_size = (given["output_size"] or given["input_size"]) if self._projects_out else None
        self.scaling = self._per_head(scaling, 1.0 if free else float(self._inner["stored_pattern"] or 1) ** -0.5)

        eps = (normalize_stored_pattern_eps, normalize_state_pattern_eps, normalize_pattern_projection_eps)
        wanted = (normalize_stored_pattern, normalize_state_pattern, normalize_pattern_projection)
        affine = (normalize_stored_pattern_affine, normalize_state_pattern_affine, normalize_pattern_projection_affine)
        self._norm_eps = {
            role: self._positive(f"normalize_{role}_eps", e) if want else None
            for role, e, want in zip(self._static, eps, wanted, strict=True)
        }
        for role, want, learned in zip(self._static, wanted, affine, strict=True):
            if want and learned:
                self._declare_norm(f"norm_{role}", self._widths[role])
        if normalize_hopfield_space and normalize_hopfield_space_affine:
            self._declare_norm("norm_hopfield_space", self._inner["stored_pattern"])
        self._declare_projections(input_bias)
        self._rows = {role: 0 if self._static[role] else self.heads * (self._inner[role] or 0) for role in ROLES}
        # Theirs has a bias for the pattern projection whether it is static or not.
        self._biases = self._rows | {"pattern_projection": self.heads * (self._inner["pattern_projection"] or 0)}
        self._begin(rng)

    # ------------------------------------------------------------------------------------------------ construction

    def _plan(self, given: dict[str, int | None], free: bool) -> tuple[dict[str, int | None], dict[str, int | None]]:
        size = given["input_size"]
        stored = given["stored_pattern_size"] or size
        projection = given["pattern_projection_size"] or size
        if free:
            return {"stored_pattern": stored, "state_pattern": size, "pattern_projection": projection}, dict.fromkeys(
                self._static
            )
        assert size is not None
        hidden = given["hidden_size"] or self._head_width("num_heads", size, self.heads)
        pattern = given["pattern_size"] or hidden
        inner: dict[str, int | None] = {
            "stored_pattern": hidden,
            "state_pattern": hidden,
            "pattern_projection": pattern,
        }
        static = self._static
        if self._through_stored:
            if projection != stored:
                raise ValueError(
                    f"{self.name}: pattern_projection_size is {projection}; expected that of a stored pattern, {stored}, which it is projected with"
                )
            if static["pattern_projection"] and pattern != hidden:
                raise ValueError(
                    f"{self.name}: pattern_size is {pattern}; expected hidden_size={hidden} of a static connected projection"
                )
        if self._bias_row and (static["stored_pattern"] or static["pattern_projection"]):
            raise ValueError(
                f"{self.name}: concat_bias_pattern is True; expected False where stored patterns or their projection are static"
            )
        widths: dict[str, int | None] = {
            "stored_pattern": hidden if static["stored_pattern"] else stored,
            "state_pattern": hidden if static["state_pattern"] else size,
            "pattern_projection": pattern if static["pattern_projection"] and not self._through_stored else projection,
        }
        return widths, inner

    def _per_head(self, scaling: Any, default: float) -> Array:
        beta = _array.scalars(self.name, "scaling", default if scaling is None else scaling)
        if beta.shape not in ((), (self.heads,)):
            raise ValueError(
                f"{self.name}: scaling has shape {beta.shape}; expected a number or one per head, ({self.heads},)"
            )
        if not (np.isfinite(beta) & (beta > 0)).all():
            raise ValueError(f"{self.name}: scaling is {beta}; expected positive numbers")
        every: Array = np.broadcast_to(beta, (self.heads,)).copy()
        return every

    def _declare_norm(self, name: str, width: int | None) -> None:
        if width is None:
            raise ValueError(
                f"{self.name}: input_size is None; expected the width of {name}, or no affine normalisation"
            )
        self._declare(f"{name}.weight", (width,), ones)
        self._declare(f"{name}.bias", (width,), zeros)

    def _declare_projections(self, bias: bool) -> None:
        heads, inner, widths = self.heads, self._inner, self._widths
        for role in ROLES:
            width, rows = widths[role] or 0, heads * (inner[role] or 0)
            if role == "pattern_projection" and self._through_stored:
                width = heads * (inner["stored_pattern"] or 0)
            if not self._static[role]:
                self._declare_linear(role, width, rows, bias, small_normal)
        if self._bias_row:
            for role in ("stored_pattern", "pattern_projection"):
                self._declare(f"bias_{role}", (heads * (inner[role] or 0),), small_normal)
        if self.output_size is not None:
            self._declare_linear(
                "output", heads * (inner["pattern_projection"] or 0), self.output_size, bias, small_normal
            )

    # ----------------------------------------------------------------------------------------------------- forward

    def __call__(
        self,
        stored: ArrayLike,
        state: ArrayLike | None = None,
        projection: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        stored_pattern_padding_mask: ArrayLike | None = None,
    ) -> Array:
        return self.forward(
            stored, state, projection, mask=mask, stored_pattern_padding_mask=stored_pattern_padding_mask
        )[0]

    def forward(
        self,
        stored: ArrayLike,
        state: ArrayLike | None = None,
        projection: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        stored_pattern_padding_mask: ArrayLike | None = None,
    ) -> tuple[Array, Tape[HopfieldGradients]]:
        """Retrieves from stored patterns.

        Parameters
        ----------
        stored : array (..., S, stored_pattern_size)
            Stored patterns Y. Leading axes of the three broadcast.
        state : array (..., L, input_size), optional
            State patterns R; `stored` if not given.
        projection : array (..., S, pattern_projection_size), optional
            What is read, Y'; `stored` if not given.
        mask : bool array, broadcast to (..., H, L, S), optional
            The association mask, True where a state pattern may see a stored pattern; one for each batch entry is (B, 1, L, S).
        stored_pattern_padding_mask : bool array (..., S), optional
            True where a stored pattern is padding. Alone it costs nothing of size L S. Padding must be finite, for the sake of the
            gradients of projections.

        Returns
        -------
        array (..., L, output_size), or (..., L, H pattern_size) without output projection
        Tape
            For `backward`, which gives ``(stored, state, projection, parameters)``.

        Raises
        ------
        ValueError
            A shape that does not fit.
        TypeError
            A dtype that is no number, a mask that is not bool, an array of another device, a tensor that requires grad.

        Notes
        -----
        O((L + S) input_size H d) time for projections and O(L S H d) for each softmax; the tape keeps (steps L + S) H d numbers, and
        nothing of size L S. One softmax for few state patterns, where nothing is normalised or added in Hopfield space, does not
        project stored patterns at all: O(L S input_size H), and nothing of size S is kept but normalised patterns.
        """
        self._check_parameters()
        y = self._role("stored", "stored_pattern", stored)
        r = self._role("state", "state_pattern", y if state is None else state, "stored" if state is None else None)
        u = self._role(
            "projection",
            "pattern_projection",
            y if projection is None else projection,
            "stored" if projection is None else None,
        )
        if y.shape[-2] != u.shape[-2]:
            raise ValueError(
                f"{self.name}: projection has shape {u.shape}; expected as many rows as stored has, S={y.shape[-2]}"
            )
        if self._inner["stored_pattern"] is None and y.shape[-1] != r.shape[-1]:
            raise ValueError(f"{self.name}: state has shape {r.shape}; expected the width of stored, {y.shape[-1]}")
        leading = _array.leading_axes(self.name, ("stored", y, 2), ("state", r, 2), ("projection", u, 2))
        shape = (*leading, self.heads, r.shape[-2], y.shape[-2])
        keep = self._keep(mask, stored_pattern_padding_mask, "stored_pattern_padding_mask", shape, y.shape[:-1])

        z, back_z = self._associate(y, r, u, keep)
        out, back_out = merge_heads(z), None
        if self._projects_out:
            out, back_out = linear(out, self.parameters, "output")

        def pullback(d_out: Array) -> HopfieldGradients:
            into: Gradients = {}
            d_z = split_heads(d_out if back_out is None else back_out(d_out, into), self.heads)
            d_stored, d_state, d_read = back_z(d_z, into)
            if state is None:
                d_stored = d_stored + d_state
            if projection is None:
                d_stored = d_stored + d_read
            # A wrapper's own parameters are in the same dict, but not for this layer to differentiate.
            ordered = {name: into[name] for name in self._starts}
            return HopfieldGradients(
                d_stored, None if state is None else d_state, None if projection is None else d_read, ordered
            )

        return out, Tape(self, out.shape, pullback)
