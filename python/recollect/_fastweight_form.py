# SPDX-License-Identifier: BSD-3-Clause
"""What a fast weight memory is made as, and a caller's arguments in that form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _array, _checks, _feature_map
from . import _fastweight as core
from ._core import core as compiled
from ._feature_map import FeatureMap

Array = NDArray[Any]

_NOTHING: dict[str, Any] = {**dict.fromkeys(core.NAMES), "scale": np.array(1.0)}


class Form(NamedTuple):
    """Everything about a memory but what it holds."""

    d: int
    values: int
    rule: str
    phi: FeatureMap
    normalize: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, d: Any, values: Any, rule: Any, feature_map: Any, normalize: Any, shape: Any, dtype: Any) -> Form:
        who = "FastWeightMemory"
        if rule not in ("delta", "sum"):
            raise ValueError(f"{who}: rule is {rule!r}; expected 'delta' or 'sum'")
        if normalize not in ("none", "sum", "l2", "attention"):
            raise ValueError(f"{who}: normalize is {normalize!r}; expected 'none', 'sum', 'l2' or 'attention'")
        try:
            sizes = tuple(shape)
        except TypeError:
            raise TypeError(f"{who}: shape is {shape!r}; expected a tuple of whole numbers") from None
        phi = _feature_map.as_map(who, feature_map)
        if normalize in ("sum", "l2"):
            phi = FeatureMap(phi.name, normalize, phi.nu, phi.matrix)
        return cls(
            _checks.width(d, "d", who),
            _checks.width(values, "values", who),
            rule,
            phi,
            normalize,
            tuple(_checks.width(n, "shape", who) for n in sizes),
            _checks.arithmetic(dtype, who),
        )

    def same(self, other: Form) -> bool:
        """Whether states of both mean the same."""
        ours, theirs = self.phi.matrix, other.phi.matrix
        matrices = ours is theirs or (ours is not None and theirs is not None and np.array_equal(ours, theirs))
        return matrices and self.plain() == other.plain()

    def plain(self) -> dict[str, Any]:
        """As numbers and names, without the projections of a map."""
        phi = [self.phi.name, self.phi.normalize, self.phi.nu]
        return {**self._asdict(), "phi": phi, "shape": list(self.shape), "dtype": self.dtype.name}

    def divides(self) -> str:
        """What is divided by z.phi, as the core calls it."""
        if self.normalize != "attention":
            return "none"
        return "outputs" if self.rule == "sum" else "outputs_and_removals"

    def run(self, who: str, out: Array | None, out_state: Array | None, given: dict[str, Array]) -> None:
        """One call of the core, with everything in the shapes and the dtype that it takes: nothing else is asked here."""
        arrays = dict(_NOTHING)
        for name, array in given.items():
            by_token = array.ndim == len(self.shape) + 1
            arrays[name if "decay" not in name else "decay" if by_token else "channel_decay"] = array
        options = (who, self.rule, self.divides(), "log_decay" in given, core.DEFAULT_CHUNK)
        compiled.fast_weight(**arrays, feature_map=self.phi.choice(), options=options, out=out, out_state=out_state)

    def empty(self) -> Array:
        """The state of a memory that nothing was written to."""
        rule = core.Rule("FastWeightMemory", self.rule, self.divides())
        nothing = {"key": np.zeros((*self.shape, 0, self.d), self.dtype)}
        nothing["value"] = np.zeros((*self.shape, 0, self.values), self.dtype)
        if self.rule == "delta":
            nothing["beta"] = np.zeros((*self.shape, 0), self.dtype)
        p = core.problem(rule, nothing, feature_map=self.phi)
        state = core.room_for_state(p, None)
        core.run(p, None, state)
        return state

    def merged(self, first: Array, fading: Array, second: Array) -> Array:
        """The state of the sum rule after the writes of both; the first one fades by the logarithms `fading` during those of the second."""
        if first.shape[-1] < self.values + 2:
            return (np.exp(fading)[..., None] * first + second).astype(self.dtype)
        # The last column is what rows are divided by, as a logarithm; without a normaliser nothing was written.
        nothing = -np.inf
        shift = [np.where(state[..., -2] > 0, state[..., -1].astype(np.float64), nothing) for state in (first, second)]
        shift[0] = shift[0] + fading
        common = np.maximum(*shift)
        common[common == nothing] = 0
        factors = [np.exp(own - common)[..., None] for own in shift]
        rows = factors[0] * first[..., :-1] + factors[1] * second[..., :-1]
        return np.concatenate([rows, common[..., None]], axis=-1).astype(self.dtype)

    def tokens(self, who: str, name: str, given: Any, width: int, count: int | None = None) -> tuple[Array, bool]:
        """`given` as (*shape, T, width), and whether it was a single token."""
        plain = type(given) is np.ndarray and given.dtype is self.dtype
        if plain and given.shape == (*self.shape, width) and count in (None, 1):
            return given[
                ..., None, :
            ], True  # the common case; a step of a small memory costs about as much as what follows
        array = _checks.convert(_array.floating(who, name, given, halves=True), self.dtype, name, who)
        one = array.ndim == len(self.shape) + 1
        rows = array[..., None, :] if one else array
        expected = (*self.shape, rows.shape[-2] if count is None and rows.ndim > 1 else count, width)
        if rows.shape != expected:
            lead = "".join(f"{n}, " for n in self.shape)
            many = f"({lead}{'T' if count is None else count}, {width})"
            wanted = f"({lead}{width}) or {many}" if count in (None, 1) else many
            raise ValueError(f"{who}: {name} has shape {array.shape}; expected {wanted}")
        return rows, one

    def numbers(self, who: str, name: str, given: Any, one: bool, count: int, channels: int | None = None) -> Array:
        """Strengths or decays as (*shape, T); with a number of `channels` perhaps (*shape, T, channels)."""
        array = _checks.convert(_array.floating(who, name, given, halves=True), self.dtype, name, who)
        full = (*self.shape, count)
        by_token = self.shape if one else full
        if array.ndim == 0:
            return np.broadcast_to(array, full)
        if array.shape == by_token:
            return array.reshape(full)
        if channels is not None and array.shape == (*by_token, channels):
            return array.reshape(*full, channels)
        wider = "" if channels is None else f" or {(*by_token, channels)}"
        raise ValueError(f"{who}: {name} has shape {array.shape}; expected a number, {by_token}{wider}")
