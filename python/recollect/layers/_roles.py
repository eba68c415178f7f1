# SPDX-License-Identifier: BSD-3-Clause
"""The three roles of patterns in a Hopfield layer: how each becomes rows of heads."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from .. import _array
from ._base import Array, Back, Gradients
from ._functions import add, layer_norm, merge_heads, projected, split_heads
from ._state_dict import TakesStateDicts

G = TypeVar("G")
ROLES = ("state_pattern", "stored_pattern", "pattern_projection")


class Roles(TakesStateDicts[G]):
    """What is done to stored patterns, state patterns and the pattern projection before they meet."""

    heads: int
    _static: dict[str, bool]
    _through_stored: bool  # the pattern projection goes through the projection of stored patterns first
    _widths: dict[str, int | None]  # of the roles as they come in, None for any
    _norm_eps: dict[str, float | None]
    _space_eps: float | None
    _bias_row: bool
    _zero_row: bool

    def width_of(self, role: str) -> int:
        """How long the patterns of a role are as they come in."""
        width = self._widths[role]
        if width is None:
            raise ValueError(
                f"{self.name}: input_size is None; expected a number, the length of a {role.replace('_', ' ')}"
            )
        return width

    def _role(self, name: str, role: str, value: Any, stand_in: str | None = None) -> Array:
        width, letter = self._widths[role], "L" if role == "state_pattern" else "S"
        why = f", as it stands for {name} too" if stand_in else ""
        form = f"(..., {letter}, {width if width is not None else 'width'}){why}"
        array = _array.floating(self.name, stand_in or name, value).astype(self.dtype, copy=False)
        if array.ndim < 2 or (width is not None and array.shape[-1] != width):
            raise ValueError(f"{self.name}: {stand_in or name} has shape {array.shape}; expected {form}")
        return array

    def _normalised(self, role: str, x: Array) -> tuple[Array, Back]:
        eps = self._norm_eps[role]
        if eps is None:
            return x, lambda d_out, into: d_out
        return layer_norm(x, self.parameters, f"norm_{role}.", eps)

    def _in_space(self, x: Array, back: Back) -> tuple[Array, Back]:
        """Rows of heads (..., H, n, d) as they are compared."""
        if self._space_eps is None:
            return x, back
        out, back_norm = layer_norm(x, self.parameters, "norm_hopfield_space.", self._space_eps)
        return out, lambda d_out, into: back(back_norm(d_out, into), into)

    def _heads_of(self, role: str, x: Array) -> tuple[Array, Back]:
        """(..., n, width) -> (..., H or 1, n, d)."""
        normal, back_norm = self._normalised(role, x)
        if self._static[role]:
            return normal[..., None, :, :], lambda d_out, into: back_norm(d_out[..., 0, :, :], into)
        heads, back = projected(normal, self.parameters, role, self.heads)
        return heads, lambda d_out, into: back_norm(back(d_out, into), into)

    def _project(self, role: str, x: Array) -> tuple[Array, Back]:
        return self._in_space(*self._heads_of(role, x))

    def _read(self, x: Array) -> tuple[Array, Back]:
        role = "pattern_projection"
        if not self._through_stored:
            return self._heads_of(role, x)
        normal, back_norm = self._normalised(role, x)
        u, back_u = self._in_space(*projected(normal, self.parameters, "stored_pattern", self.heads))
        if self._static[role]:
            return u, lambda d_out, into: back_norm(back_u(d_out, into), into)
        v, back_v = projected(merge_heads(u), self.parameters, role, self.heads)
        return v, lambda d_out, into: back_norm(back_u(split_heads(back_v(d_out, into), self.heads), into), into)

    def _extended(self, role: str, x: Array, back: Back) -> tuple[Array, Back]:
        """Heads with the rows that `concat_bias_pattern` and `add_zero_association` add."""
        rows: list[Array] = []
        count, width, name = x.shape[-2], x.shape[-1], f"bias_{role}"
        if self._bias_row:
            rows.append(self.parameters[name].reshape(self.heads, 1, width))
        if self._zero_row:
            rows.append(np.zeros((1, 1, width), self.dtype))
        if not rows:
            return x, back

        def without(d_out: Array, into: Gradients) -> Array:
            if self._bias_row:
                add(into, name, d_out[..., count, :].reshape(-1, self.heads * width).sum(axis=0))
            return back(d_out[..., :count, :], into)

        lead = x.shape[:-2]
        return np.concatenate([x, *(np.broadcast_to(row, (*lead, 1, width)) for row in rows)], axis=-2), without
