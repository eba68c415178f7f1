# SPDX-License-Identifier: BSD-3-Clause
"""Pullbacks of `hopfield.energy` and `hopfield.retrieve`: one call of the core for each step, last step first."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _array, _device, _device_vjp, _fixed_point
from . import _hopfield as hopfield
from ._core import core
from ._separation import Separation, split
from ._vjp import pullback_of

Array = NDArray[Any]

_RETRIEVE = "hopfield.retrieve"


def _like(ops: hopfield.Operands) -> dict[str, Array]:
    """Room for the gradient of every operand that was given, by name, in the signature's order."""
    room = {"state": np.empty(ops.state.shape, ops.dtype), "patterns": np.empty(ops.patterns.shape, ops.dtype)}
    room["beta"] = np.empty(ops.beta.shape, np.float64)
    if ops.values is not None:
        room["values"] = np.empty(ops.values.shape, ops.dtype)
    return room


def _room_to_keep(separation: Separation, shape: tuple[int, ...], dtype: Any) -> tuple[Array | None, Array | None]:
    """What the gradient of a softmax needs again; other separations keep nothing."""
    if separation != "softmax":
        return None, None
    return np.empty(shape, dtype), np.empty(shape, dtype)


def _named(room: dict[str, Array]) -> dict[str, Array]:
    return {f"d_{name}": gradient for name, gradient in room.items()}


def _result(op: str, ops: hopfield.Operands, gradients: dict[str, Array]) -> Any:
    gradients["beta"] = gradients["beta"].astype(ops.dtype, copy=False)
    return namedtuple(f"{op.title()}Gradients", gradients)(**gradients)


@pullback_of(hopfield.energy)
def energy(
    state: Any, patterns: Any, *, beta: Any, separation: Separation = "softmax", mask: Any = None, stream: Any = None
) -> tuple[Array, Callable[[Any], Any]]:
    op = "hopfield.energy"
    if _device.found(state, patterns):
        only = {"separation": (separation, "softmax")}
        return _device_vjp.energy(op, state, patterns, beta=beta, mask=mask, stream=stream, **only)
    _device.refuse_stream(op, stream)
    ops = hopfield.operands(op, state, patterns, None, beta, mask)
    out = np.empty(hopfield.rows_shape(op, ops), ops.dtype)
    name, parameter = split(op, separation)
    kept = _room_to_keep(separation, out.shape, ops.dtype)
    core.hopfield_energy(
        ops.state, ops.patterns, ops.beta, ops.mask, name, parameter, out=out, largest=kept[0], log_sum=kept[1]
    )

    def pullback(d_out: Any) -> Any:
        cotangent = _array.cotangent(op, d_out, out.shape, ops.dtype)
        to = _like(ops)
        core.hopfield_energy_backward(
            ops.state, ops.patterns, ops.beta, ops.mask, name, parameter, kept[0], kept[1], cotangent, **_named(to)
        )
        return _result("energy", ops, to)

    return out, pullback


class _Step:
    """One softmax: what went in, what came out, and which rows it moved (None: all of them)."""

    def __init__(self, ops: hopfield.Operands, separation: Separation, moved: NDArray[np.bool_] | None) -> None:
        self.ops, self.separation, self.moved = ops, split(_RETRIEVE, separation), moved
        shape = hopfield.rows_shape(_RETRIEVE, ops)
        memory = ops.patterns if ops.values is None else ops.values
        self.out: Array = np.empty((*shape, memory.shape[-1]), ops.dtype)
        self.kept = _room_to_keep(separation, shape, ops.dtype)
        core.hopfield_retrieve(
            ops.state, ops.patterns, ops.values, ops.beta, ops.mask, self.separation[0], self.separation[1], 1, -1.0, self.out,
            largest=self.kept[0], log_sum=self.kept[1],
        )  # fmt: skip

    def back(self, d_out: Array) -> dict[str, Array]:
        """Gradients of what this step read. Rows that it did not move pass their cotangent on as it is."""
        kept = None
        if self.moved is not None:
            kept = np.where(self.moved[..., None], 0, d_out)
            d_out = np.where(self.moved[..., None], d_out, 0)
        ops, to = self.ops, _like(self.ops)
        core.hopfield_retrieve_backward(
            ops.state, ops.patterns, ops.values, ops.beta, ops.mask, self.separation[0], self.separation[1],
            self.kept[0], self.kept[1], self.out, d_out, **_named(to),
        )  # fmt: skip
        if kept is not None:
            to["state"] += _array.sum_to_shape(kept, self.ops.state.shape).astype(self.ops.dtype, copy=False)
        return to

    def response(self, v: Array) -> Array:
        """J v, of the update at this state alone."""
        ops, d_state = self.ops, np.empty(self.ops.state.shape, self.ops.dtype)
        core.hopfield_retrieve_backward(
            ops.state, ops.patterns, ops.values, ops.beta, ops.mask, self.separation[0], self.separation[1],
            self.kept[0], self.kept[1], self.out, v, d_state=d_state,
        )  # fmt: skip
        return d_state


@pullback_of(hopfield.retrieve)
def retrieve(
    state: Any,
    patterns: Any,
    *,
    beta: Any,
    values: Any = None,
    separation: Separation = "softmax",
    steps: int | None = 1,
    tol: float | None = None,
    mask: Any = None,
    return_info: bool = False,
    out: Any = None,
    stream: Any = None,
) -> tuple[Array, Callable[[Any], Any]]:
    op = _RETRIEVE
    if return_info:
        raise ValueError(f"{op}: return_info is True; expected False in vjp, where only the state has a gradient")
    if out is not None:
        raise ValueError(f"{op}: out is given; expected None in vjp, which keeps what it computes")
    if _device.found(state, patterns, values):
        if steps is None:
            raise ValueError(f"{op}: steps is None; expected a whole number in vjp on a CUDA device so far")
        count, tolerance = hopfield.step_rule(op, steps, tol, np.dtype(np.float32))
        options: dict[str, Any] = {"beta": beta, "values": values, "mask": mask, "stream": stream}
        options |= {"steps": count, "tol": tolerance}
        only = {"separation": (separation, "softmax")}
        return _device_vjp.retrieve(op, state, patterns, **options, **only)
    _device.refuse_stream(op, stream)
    ops = hopfield.operands(op, state, patterns, values, beta, mask)
    count, tolerance = hopfield.step_rule(op, steps, tol, ops.dtype)
    if steps is None:
        return _until_rest(ops, separation, count, tolerance)
    done = _forward(ops, separation, count, tolerance)

    def pullback(d_out: Any) -> Any:
        total = done[-1].back(_array.cotangent(op, d_out, done[-1].out.shape, ops.dtype))
        for step in reversed(done[:-1]):
            earlier = step.back(total["state"])
            total["state"] = earlier.pop("state")
            for name, gradient in earlier.items():
                total[name] += gradient
        return _result("retrieve", ops, total)

    return done[-1].out.copy(), pullback


def _forward(ops: hopfield.Operands, separation: Separation, count: int, tol: float) -> list[_Step]:
    """The same steps as `hopfield.retrieve` takes, each kept: O(steps n d) memory."""
    update = ops._replace(values=None)
    updates = count if ops.values is None else count - 1
    done: list[_Step] = []
    moving = np.ones(hopfield.rows_shape(_RETRIEVE, update), np.bool_)
    current = ops.state
    for _ in range(updates):
        if not moving.any() and done:
            break
        step = _Step(update._replace(state=current), separation, None if moving.all() else moving.copy())
        if step.moved is not None:
            step.out = np.where(step.moved[..., None], step.out, current)
        if tol >= 0:
            moving &= np.sqrt(np.square(step.out.astype(np.float64) - current).sum(-1)) > tol
        done.append(step)
        current = step.out
    if ops.values is not None:
        done.append(_Step(ops._replace(state=current), separation, None))
    return done


def _until_rest(
    ops: hopfield.Operands, separation: Separation, count: int, tol: float
) -> tuple[Array, Callable[[Any], Any]]:
    """Retrieval with ``steps=None``: the gradient is that of the point of rest, whatever the way there. O(n d) memory."""
    op = _RETRIEVE
    update = ops._replace(values=None)
    state = _settled(update, separation, count if ops.values is None else count - 1, tol)[0]
    out = state if ops.values is None else _Step(ops._replace(state=state), separation, None).out

    def at(point: Array) -> tuple[Array, Callable[[Array], Array]]:
        step = _Step(update._replace(state=point), separation, None)
        return step.out, step.response

    def pullback(d_out: Any) -> Any:
        g = _array.cotangent(op, d_out, out.shape, ops.dtype)
        # A loose tol stops early; the gradient is that of where the state was going.
        near, rests = _settled(
            update._replace(state=state), separation, count, hopfield.step_rule(op, None, None, ops.dtype)[1]
        )
        asked = (g != 0).any(axis=-1)
        _fixed_point.refuse(op, asked & ~rests, f"have not come to rest in {count} steps")
        fixed = _fixed_point.polish(near, at)
        total = {}
        if ops.values is not None:
            total = _Step(ops._replace(state=fixed), separation, None).back(g)
            g = total["state"]
        step = _Step(update._replace(state=fixed), separation, None)
        adjoint, definite = _fixed_point.solve(step.response, g)
        _fixed_point.refuse(
            op, asked & ~definite, "rest where the energy has no strict minimum (I - J is not positive definite)"
        )
        found = step.back(adjoint)
        for name in ("patterns", "beta"):
            found[name] += total.get(name, 0)
        found["state"] = np.zeros(ops.state.shape, ops.dtype)
        if "values" in total:
            found["values"] = total["values"]
        return _result("retrieve", ops, found)

    return out.copy(), pullback


def _settled(
    update: hopfield.Operands, separation: Separation, count: int, tol: float
) -> tuple[Array, NDArray[np.bool_]]:
    """The states after updates until each moves by no more than tol, and whether it does."""
    shape = hopfield.rows_shape(_RETRIEVE, update)
    state, rests = np.empty((*shape, update.patterns.shape[-1]), update.dtype), np.empty(shape, np.bool_)
    name, parameter = split(_RETRIEVE, separation)
    core.hopfield_retrieve(
        update.state,
        update.patterns,
        None,
        update.beta,
        update.mask,
        name,
        parameter,
        count,
        tol,
        state,
        converged=rests,
    )
    return state, rests
