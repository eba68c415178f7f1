# SPDX-License-Identifier: BSD-3-Clause
"""Fast weight ops as the core takes them: operands of any kind to arrays, one call forwards, one call backwards."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _array, _device, _feature_map
from ._core import core
from ._device_ops import fast_weight as on_device
from ._device_ops import fast_weight_backward as back_on_device

Array = NDArray[Any]

DEFAULT_CHUNK = 64
NAMES = ("query", "key", "value", "beta", "a", "b", "decay", "channel_decay", "scale", "state")
_OWN_AXES = {"beta": 1, "decay": 1, "scale": 0}  # of the others two
_NOTHING: dict[str, Any] = dict.fromkeys(NAMES)


class FastWeights(NamedTuple):
    """What a fast weight op returns with ``return_state=True``."""

    out: NDArray[Any]
    state: NDArray[Any]


class Rule(NamedTuple):
    """What is written, and what is divided by: see spec/fast_weight.hpp."""

    op: str
    rule: str  # "sum", "delta" or "general"
    normalise: str = "none"  # "outputs" or "outputs_and_removals"

    @property
    def normalised(self) -> bool:
        return self.normalise != "none"

    def options(self, log_decay: bool, chunk: int) -> tuple[str, str, str, bool, int]:
        """As the core takes them."""
        return (self.op, self.rule, self.normalise, log_decay, chunk)


class Problem(NamedTuple):
    """Everything but outputs, ready for the core."""

    rule: Rule
    arrays: dict[str, Array]  # by the names of NAMES, those that were given
    feature_map: tuple[str, str, int, Any]
    log_decay: bool
    chunk: int
    dtype: np.dtype[Any]
    leading: tuple[int, ...]
    sizes: tuple[int, int, int]  # T, K, V
    columns: int  # of a state: V and those behind the values
    on_device: bool = False  # a CUDA device, where arrays are whatever they came as

    def operands(self) -> dict[str, Any]:
        """The arguments that every call of the core begins with."""
        return {**_NOTHING, **self.arrays, "feature_map": self.feature_map, "options": self.options()}

    def options(self) -> tuple[str, str, str, bool, int]:
        return self.rule.options(self.log_decay, self.chunk)

    def out_shape(self) -> tuple[int, ...]:
        return (*self.leading, self.sizes[0], self.sizes[2])

    def state_shape(self) -> tuple[int, ...]:
        return (*self.leading, self.sizes[1], self.columns)

    def tape_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        chunks = -(-self.sizes[0] // self.chunk)
        return self.out_shape(), (*self.leading, chunks, *self.state_shape()[len(self.leading) :])


def problem(
    rule: Rule,
    given: dict[str, Any],
    *,
    feature_map: Any = None,
    decay: Any = None,
    log_decay: Any = None,
    scale: Any = None,
    chunk: Any = None,
    row_norm: str | None = None,
) -> Problem:
    """Types and the sizes of outputs; shapes are checked by the core. `given` holds query, key, value, beta, a, b and state."""
    op = rule.op
    phi = _feature_map.as_map(op, feature_map)
    if row_norm is not None:
        phi = _feature_map.FeatureMap(phi.name, row_norm, phi.nu, phi.matrix)
    if decay is not None and log_decay is not None:
        raise ValueError(f"{op}: decay and log_decay are both given; expected one of them")
    on_device = _device.found(*given.values(), decay, log_decay)
    floating = _as_it_is if on_device else _array.floating
    arrays = {name: floating(op, name, value) for name, value in given.items() if value is not None}
    name = "decay" if log_decay is None else "log_decay"
    fading = None if decay is None and log_decay is None else floating(op, name, log_decay if decay is None else decay)
    dtype = np.dtype(np.float32) if on_device else _array.arithmetic(*arrays.values(), fading)
    if not on_device:
        arrays = {name: _array.typed(array, dtype) for name, array in arrays.items()}
    rows = arrays["query"] if "query" in arrays else arrays["key"]
    T, d = rows.shape[-2:] if rows.ndim >= 2 else (0, 0)
    K = _feature_map.width(op, phi, d)
    if fading is not None:
        arrays[_kind(op, name, fading, rows, T, K)] = fading if on_device else _array.typed(fading, dtype)
    arrays["scale"] = scale if _device.holds(scale) else _array.scalars(op, "scale", 1.0 if scale is None else scale)
    size = (
        DEFAULT_CHUNK
        if chunk is None
        else _array.whole(op, "chunk", chunk, 1, expected="1 or more", kind="a whole number or None")
    )
    behind = core.fast_weight_columns_behind(phi.choice(), rule.options(False, size), d) if rule.normalised else 0
    if "value" in arrays:
        V = arrays["value"].shape[-1] if arrays["value"].ndim else 0
    else:
        V = (arrays["state"].shape[-1] if arrays["state"].ndim else 0) - behind
    V = max(V, 0)
    leading = _array.leading_axes(op, *[(name, array, _OWN_AXES.get(name, 2)) for name, array in arrays.items()])
    sizes = (T, K, V)
    return Problem(
        rule, arrays, phi.choice(), log_decay is not None, size, dtype, leading, sizes, V + behind, on_device
    )


def _as_it_is(op: str, name: str, value: Any) -> Any:
    """An array of a device; that it is one is checked by the call."""
    if not hasattr(value, "shape"):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}; expected an array on the CUDA device of the others")
    return value


def _kind(op: str, name: str, decay: Array, rows: Array, T: int, K: int) -> str:
    """Whether a decay is a number a token or one for each channel."""
    by_channel = decay.ndim >= 2 and decay.shape[-2:] == (T, K)
    by_token = decay.ndim >= 1 and decay.shape[-1] == T
    if not by_channel and not by_token:
        raise ValueError(f"{op}: {name} has shape {decay.shape}; expected (..., T={T}) or (..., T={T}, K={K})")
    return "channel_decay" if by_channel and (not by_token or decay.ndim >= rows.ndim) else "decay"


def run(p: Problem, out: Array | None, out_state: Array | None, **tape: Any) -> None:
    core.fast_weight(**p.operands(), out=out, out_state=out_state, **tape)


def apply(p: Problem, out: Any, return_state: bool, out_state: Any = None, stream: int | None = None) -> Any:
    """The public result: out, or out and the state."""
    if p.on_device:
        read_out, new_state = on_device(p, out, return_state, out_state, stream)
        return FastWeights(read_out, new_state) if return_state else read_out
    _device.refuse_stream(p.rule.op, stream)
    result = _array.output(p.rule.op, out, p.out_shape(), p.dtype, *p.arrays.values())
    state = room_for_state(p, out_state) if return_state or out_state is not None else None
    run(p, result, state)
    return FastWeights(result, state) if return_state and state is not None else result


def room_for_state(p: Problem, out_state: Any) -> Array:
    """Where the state is written: a caller's own array, which may be the state that came in but share memory with nothing else."""
    given = p.arrays.get("state")
    in_place = out_state is given or (
        isinstance(out_state, np.ndarray)
        and given is not None
        and out_state.__array_interface__["data"][0] == given.__array_interface__["data"][0]
        and out_state.strides == given.strides
    )
    inputs = [array for name, array in p.arrays.items() if not (in_place and name == "state")]
    try:
        return _array.output(p.rule.op, out_state, p.state_shape(), p.dtype, *inputs)
    except (TypeError, ValueError) as problem:
        raise type(problem)(str(problem).replace(": out ", ": out_state ", 1)) from None


class Tape:
    """A forward pass that keeps what its gradient needs: on a device the operands alone."""

    def __init__(self, p: Problem, out: bool = True, state: bool = True, stream: int | None = None) -> None:
        self.problem, self.stream = p, stream
        self.out: Array | None
        self.state: Array | None
        if p.on_device:
            self.out, self.state = on_device(p, None, state, None, stream)
            return
        _device.refuse_stream(p.rule.op, stream)
        written, checkpoints = p.tape_shapes()
        self.out = np.empty(p.out_shape(), p.dtype) if out else None
        self.state = np.empty(p.state_shape(), p.dtype) if state else None
        self.kept: dict[str, Array] = {"checkpoints": np.empty(checkpoints, p.dtype)}
        if p.rule.rule != "sum" and "key" in p.arrays:
            self.kept["written"] = np.empty(written, p.dtype)
        run(p, self.out, self.state, **self.kept)

    def result(self) -> Any:
        """What the op returns."""
        if self.out is None or self.state is None:
            return self.out
        return FastWeights(self.out, self.state)

    def last_state(self) -> Array:
        assert self.state is not None
        return self.state

    def back(self, d_out: Array | None, d_state: Array | None) -> dict[str, Array]:
        """Gradients by the names of NAMES."""
        p = self.problem
        if p.on_device:
            return self.named(back_on_device(p, d_out, d_state, self.stream))
        room: dict[str, Any] = {name: np.empty(array.shape, array.dtype) for name, array in p.arrays.items()}
        core.fast_weight_backward(
            **p.operands(),
            written=self.kept.get("written"),
            checkpoints=self.kept["checkpoints"],
            d_out=d_out,
            d_out_state=d_state,
            **{f"d_{name}": gradient for name, gradient in room.items()},
        )
        room["scale"] = room["scale"].astype(p.dtype, copy=False)
        return self.named(room)

    def named(self, room: dict[str, Any]) -> dict[str, Any]:
        """By the names that the op has for decays."""
        if "channel_decay" in room:
            room["decay"] = room.pop("channel_decay")
        if self.problem.log_decay:
            room["log_decay"] = room.pop("decay")
        return room


def cotangents(op: str, given: Any, p: Problem, with_state: bool) -> tuple[Array, Array | None]:
    """d_out, or (d_out, d_state) where the state was returned too."""
    if with_state and (not isinstance(given, tuple) or len(given) != 2):
        raise TypeError(
            f"{op}: d_out is a {type(given).__name__}; expected a tuple (d_out, d_state), as the state is returned too"
        )
    d_out, d_state = given if with_state else (given, None)
    if p.on_device:
        return _as_it_is(op, "d_out", d_out), _as_it_is(op, "d_state", d_state) if with_state else None
    if not with_state:
        return _array.cotangent(op, d_out, p.out_shape(), p.dtype), None
    d_state = _array.typed(_array.floating(op, "d_state", d_state), p.dtype)
    if d_state.shape != p.state_shape():
        raise ValueError(f"{op}: d_state has shape {d_state.shape}; expected {p.state_shape()}")
    return _array.cotangent(op, d_out, p.out_shape(), p.dtype), d_state
