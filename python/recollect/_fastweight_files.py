# SPDX-License-Identifier: BSD-3-Clause
"""A fast weight memory in a file: its matrix, the projections of its map, and what it was made with."""

from __future__ import annotations

import json
from typing import Any

from numpy.typing import NDArray

from ._fastweight_form import Form
from ._feature_map import FeatureMap
from ._files import PathLike, load_arrays, save_arrays

_KIND = "recollect.FastWeightMemory"

Array = NDArray[Any]


def save_memory(path: PathLike, form: Form, state: Array, fading: Array, *, overwrite: bool) -> None:
    arrays = {"state": state, "fading": fading}
    if form.phi.matrix is not None:
        arrays["matrix"] = form.phi.matrix
    metadata = {"form": json.dumps(form.plain())}
    save_arrays(path, arrays, kind=_KIND, metadata=metadata, overwrite=overwrite, who="FastWeightMemory.save")


def load_memory(path: PathLike) -> tuple[Form, Array, Array]:
    """The form, the state, and how far a state from before the first write would have faded."""
    who = "FastWeightMemory.load"
    arrays, metadata = load_arrays(path, kind=_KIND, mmap=False, who=who)
    try:
        plain: dict[str, Any] = json.loads(metadata["form"])
        name, normalize, nu = plain.pop("phi")
        form = Form.of(**plain, feature_map=FeatureMap(name, normalize, nu, arrays.get("matrix")))
        state, fading = arrays["state"], arrays["fading"]
        like = form.empty()
        if state.shape != like.shape or state.dtype != like.dtype or fading.shape != like.shape[:-1]:
            raise ValueError(
                f"state has shape {state.shape} and dtype {state.dtype}; expected {like.shape} and {like.dtype}"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: '{path}' is damaged ({error})") from None
    return form, state, fading
