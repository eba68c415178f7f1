# SPDX-License-Identifier: BSD-3-Clause
"""State dicts of PyTorch modules, as dicts of arrays, under this library's names. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import _array
from ._base import Layer

if TYPE_CHECKING:
    from typing_extensions import Self

G = TypeVar("G")


def plain_arrays(op: str, state_dict: Any) -> dict[str, Any]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{op}: the state dict is a {type(state_dict).__name__}; expected a mapping from names to arrays"
        )
    return {name: _array.plain(op, name, array) for name, array in state_dict.items() if array is not None}


def renamed(arrays: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`arrays` with the beginnings of names replaced."""
    told = {}
    for name, array in arrays.items():
        for old, new in names.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        told[name] = array
    return told


def split_projections(
    op: str, arrays: dict[str, Any], widths: Mapping[str, int], biases: Mapping[str, int]
) -> dict[str, Any]:
    """Stacked input projections taken apart.

    `widths` says, by our name and in the order query, key, value, how many rows of ``in_proj_weight`` (or of ``q_proj_weight``, ...)
    are whose, 0 for a role without projection; `biases` the same of ``in_proj_bias``.
    """
    rest = dict(arrays)
    told: dict[str, Any] = {}
    stacked, bias = rest.pop("in_proj_weight", None), rest.pop("in_proj_bias", None)
    if stacked is not None:
        told |= _rows(op, "in_proj_weight", stacked, widths, "weight")
    for name, letter in zip(widths, "qkv", strict=True):
        if f"{letter}_proj_weight" in rest:
            told[f"{name}.weight"] = rest.pop(f"{letter}_proj_weight")
    if bias is not None:
        parts = _rows(op, "in_proj_bias", bias, biases, "bias")
        # A bias of a role that has no projection is never used.
        told |= {name: part for name, part in parts.items() if widths[name.removesuffix(".bias")]}
    return told | rest


def _rows(op: str, name: str, array: Any, widths: Mapping[str, int], kind: str) -> dict[str, Any]:
    if array.ndim < 1 or len(array) != sum(widths.values()):
        raise ValueError(
            f"{op}: {name} has shape {array.shape} in the state dict; expected {sum(widths.values())} rows"
        )
    ends = np.cumsum(list(widths.values()))
    return {
        f"{role}.{kind}": array[end - rows : end]
        for (role, rows), end in zip(widths.items(), ends, strict=True)
        if rows
    }


_HOPFIELD_NAMES = {
    "out_proj.": "output.",
    "p_norm_": "norm_hopfield_space.",
    "bias_k": "bias_stored_pattern",
    "bias_v": "bias_pattern_projection",
}


def hopfield_arrays(op: str, state_dict: Any, rows: Mapping[str, int], biases: Mapping[str, int]) -> dict[str, Any]:
    """The arrays of a module of hopfield-layers; `rows` and `biases` as for `split_projections`."""
    arrays = plain_arrays(op, state_dict)
    arrays = renamed(renamed(arrays, {"hopfield.": ""}), {"association_core.": ""})
    arrays = renamed(arrays, _HOPFIELD_NAMES)
    for name, array in arrays.items():
        if name.startswith("bias_"):
            arrays[name] = array.reshape(-1)
        elif (
            name in ("pooling_weights", "lookup_weights", "target_weights") and array.ndim == 3 and 1 in array.shape[:2]
        ):
            arrays[name] = array.reshape(-1, array.shape[-1])  # (1, quantity, width), or (quantity, 1, width)
    return split_projections(op, arrays, rows, biases)


class TakesStateDicts(Layer[G]):
    """A layer that has a counterpart in hopfield-layers."""

    _rows: dict[str, int]  # how many rows each projection has
    _biases: dict[str, int]  # and how many entries each bias, in theirs

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], input_size: int | None = None, **options: Any) -> Self:
        """A layer with these options (those of the constructor) and the parameters of a state dict of the hopfield-layers module
        that was made with the same: a mapping from its names, such as ``association_core.in_proj_weight``, to arrays.

        Outputs are equal wherever that module does what its options say.

        Raises
        ------
        ValueError
            A name that is missing or unknown, a shape that does not fit the options.
        TypeError
            No mapping, an array whose dtype is no number, an unknown option.
        """
        make: Any = cls  # subclasses have constructors of their own
        layer: Self = make(input_size, **options)
        layer.load_state_dict(state_dict)
        return layer

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the parameters from a state dict; see `from_state_dict`."""
        self._load(hopfield_arrays(self.name, state_dict, self._rows, self._biases))
