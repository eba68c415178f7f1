# SPDX-License-Identifier: BSD-3-Clause
"""How the heads of a Hopfield layer retrieve: from projected patterns, or from the patterns as they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .. import _array
from .._score import product, product_back
from .._separation import Separation
from .._vjp import vjp
from ..hopfield import retrieve
from ._base import Array, Gradients
from ._functions import add
from ._roles import Roles

G = TypeVar("G")
# From the gradient of (..., H, L, e) to those of stored patterns, state patterns and the pattern projection.
BackToRoles = Callable[[Array, Gradients], tuple[Array, Array, Array]]


class Association(Roles[G]):
    """Retrieval by heads, whose patterns `Roles` prepares."""

    scaling: Array
    separation: Separation
    update_steps_max: int | None
    update_steps_eps: float
    _inner: dict[str, int | None]  # widths of one head

    def _associate(self, y: Array, r: Array, u: Array, keep: Any) -> tuple[Array, BackToRoles]:
        """(..., H, L, e) of stored patterns, state patterns and pattern projection."""
        return (self._folded if self._folds(y, r, u) else self._projected)(y, r, u, keep)

    def _projected(self, y: Array, r: Array, u: Array, keep: Any) -> tuple[Array, BackToRoles]:
        (q, back_q), (k, back_k), (v, back_v) = (
            self._project("state_pattern", r),
            self._project("stored_pattern", y),
            self._read(u),
        )
        k, back_k = self._extended("stored_pattern", k, back_k)
        v, back_v = self._extended("pattern_projection", v, back_v)
        if keep is not None and (extra := k.shape[-2] - y.shape[-2]):
            keep = np.broadcast_to(keep, (*keep.shape[:-1], y.shape[-2]))
            keep = np.concatenate([keep, np.ones((*keep.shape[:-1], extra), np.bool_)], axis=-1)
        steps = None if self.update_steps_max is None else self.update_steps_max + 1
        tol = self.update_steps_eps if steps is None else None
        z, back_z = vjp(
            retrieve, q, k, values=v, beta=self.scaling, separation=self.separation, steps=steps, tol=tol, mask=keep
        )

        def back(d_z: Array, into: Gradients) -> tuple[Array, Array, Array]:
            inner = back_z(d_z)
            return back_k(inner.patterns, into), back_q(inner.state, into), back_v(inner.values, into)

        return z, back

    def _folds(self, y: Array, r: Array, u: Array) -> bool:
        """Whether one softmax can do without projected stored patterns, and takes less time for it."""
        extended = self._bias_row or self._zero_row or self._through_stored or self._space_eps is not None
        unnormalised = self.separation == "linear" or self.separation[0] == "k_subset"
        if self.update_steps_max != 0 or extended or unnormalised:
            return False
        if self._static["stored_pattern"] or self._static["pattern_projection"]:
            return False
        lead = _array.leading_axes(self.name, ("stored", y, 2), ("state", r, 2), ("projection", u, 2))
        often = r.shape[-2] * int(np.prod(lead)) // max(int(np.prod(y.shape[:-2])), 1)
        d, e = self._inner["stored_pattern"] or 0, self._inner["pattern_projection"] or 0
        wide = y.shape[-1] + u.shape[-1]
        return bool(often * wide <= d * y.shape[-1] + e * u.shape[-1] + often * (d + e))

    def _folded(self, y: Array, r: Array, u: Array, keep: Any) -> tuple[Array, BackToRoles]:
        """The projections of stored patterns moved to the few rows on the other side of the softmax.

        ::

            q.(Wk y + bk) = (Wk^T q).y + a number that is the same for all y,    sum_i p_i (Wv u_i + bv) = Wv sum_i p_i u_i + bv
        """
        (y, back_y), (u, back_u) = self._normalised("stored_pattern", y), self._normalised("pattern_projection", u)
        q, back_q = self._project("state_pattern", r)
        key, value = (
            self.parameters[f"{role}.weight"].reshape(self.heads, -1, x.shape[-1])
            for role, x in (("stored_pattern", y), ("pattern_projection", u))
        )
        value = value.swapaxes(-1, -2)
        cue = product(q, key)
        read, back_read = vjp(
            retrieve,
            cue,
            y[..., None, :, :],
            values=u[..., None, :, :],
            beta=self.scaling,
            separation=self.separation,
            mask=keep,
        )
        z = product(read, value)
        bias = self.parameters.get("pattern_projection.bias")
        # A row that may see nothing reads nothing, no bias either.
        sees = np.bool_(y.shape[-2] > 0) if keep is None else keep.any(axis=-1)[..., None]
        if bias is not None:
            z += sees * bias.reshape(self.heads, 1, -1)

        def back(d_z: Array, into: Gradients) -> tuple[Array, Array, Array]:
            if bias is not None:
                seen = np.where(sees, d_z, 0).swapaxes(-3, -2)
                add(into, "stored_pattern.bias", np.zeros_like(self.parameters["stored_pattern.bias"]))
                add(into, "pattern_projection.bias", seen.reshape(-1, bias.size).sum(axis=0))
            d_read, d_value = product_back(read, value, d_z)
            inner = back_read(d_read)
            d_q, d_key = product_back(q, key, inner.state)
            add(into, "stored_pattern.weight", d_key.reshape(-1, y.shape[-1]))
            add(into, "pattern_projection.weight", d_value.swapaxes(-1, -2).reshape(-1, u.shape[-1]))
            return (
                back_y(inner.patterns[..., 0, :, :], into),
                back_q(d_q, into),
                back_u(inner.values[..., 0, :, :], into),
            )

        return z, back
