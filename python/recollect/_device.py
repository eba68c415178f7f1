# SPDX-License-Identifier: BSD-3-Clause
"""Arrays of a CUDA device: how they are told, and the way to the compiled backend and back. Nothing here imports a framework;
arrays are any that speak DLPack (CuPy, PyTorch, JAX), and results are of the kind that came."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _backend

__all__ = ["Call", "found", "holds", "refuse_stream", "type_name"]

_CUDA = (2, 13)  # DLPack's device types: memory of the device, and managed memory
_HALVES = ("float16", "bfloat16")


def holds(value: Any) -> bool:
    """Whether an object is an array in the memory of a CUDA device."""
    if type(value) is np.ndarray or value is None:
        return False
    asked = getattr(value, "__dlpack_device__", None)
    return asked is not None and not isinstance(value, np.ndarray) and asked()[0] in _CUDA


def found(*values: Any) -> bool:
    """Whether any of some arguments is one."""
    for value in values:  # noqa: SIM110 (a small call on the CPU feels the difference)
        if type(value) is not np.ndarray and holds(value):
            return True
    return False


def refuse_stream(op: str, stream: Any) -> None:
    """A stream has no meaning for arrays in the memory of this process."""
    if stream is not None:
        raise ValueError(f"{op}: stream is given, but no array is on a CUDA device")


def type_name(value: Any) -> str:
    """'float32' and so on, whatever the framework calls it."""
    return str(value.dtype).rpartition(".")[2]


def backend(op: str, name: str) -> Any:
    """The compiled module, once a device answers; `name` is the argument that needs it."""
    try:
        module = _backend.load()
    except ModuleNotFoundError:
        raise RuntimeError(
            f"{op}: {name} is on a CUDA device; this build of recollect has no CUDA backend: "
            "build it with -Ccmake.define.RECOLLECT_CUDA=ON, have a recollect-cu13 of the same version beside it, "
            "or copy the array to the memory of this process"
        ) from None
    except ImportError as problem:
        raise RuntimeError(
            f"{op}: {name} is on a CUDA device, but the CUDA backend cannot be loaded: {problem}"
        ) from None
    count, why = module.cards()
    if not count:
        raise RuntimeError(f"{op}: {name} is on a CUDA device, but CUDA does not answer: {why}")
    return module


class Call:
    """One call of an op on one device: its inputs, checked to lie there, and its outputs. `given` are the arguments by name; those that
    are None are left out. `card` is that of a memory which is not among them."""

    def __init__(self, op: str, stream: Any, given: dict[str, Any], *, card: int | None = None) -> None:
        self.op = op
        self.like: Any
        name, self.like = next(((name, value) for name, value in given.items() if holds(value)), ("", None))
        self.card: int = int(self.like.__dlpack_device__()[1]) if card is None else card
        name = name if card is None else "the memory"
        self.stream = _handle(op, stream)
        for other, value in given.items():
            self._check(other, value, name)
        self.module = backend(op, name)

    @property
    def place(self) -> tuple[int, int]:
        return self.card, self.stream

    def _check(self, name: str, value: Any, first: str) -> None:
        if value is None:
            return
        if getattr(value, "requires_grad", False):
            raise TypeError(
                f"{self.op}: {name} is a tensor that requires grad, and its graph would be lost here; pass a detached tensor "
                "and take gradients with recollect.vjp"
            )
        if not holds(value):
            kind = type(value).__name__
            raise TypeError(
                f"{self.op}: {name} ({kind}) is not on a CUDA device; expected cuda:{self.card}, as {first}"
            )
        card = value.__dlpack_device__()[1]
        if card != self.card:
            raise TypeError(f"{self.op}: {name} is on cuda:{card}; expected cuda:{self.card}, as {first}")

    def capsule(self, value: Any) -> Any:
        """The array for the module. Its framework makes sure that it is ready where our stream is."""
        return None if value is None else value.__dlpack__(stream=self.stream or 1)  # 1 is the default stream to DLPack

    def scale(self, name: str, value: Any, default: float) -> tuple[float, Any]:
        """A number, or an array of the device, as the module takes them."""
        if value is None:
            return default, None
        if holds(value):
            self._check(name, value, name)
            return 1.0, self.capsule(value)
        try:
            return float(value), None
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise TypeError(
                f"{self.op}: {name} is a {kind}; expected a number, or an array on cuda:{self.card} as the other arguments"
            ) from None

    def output(self, out: Any, shape: tuple[int, ...], dtype: str, name: str = "out") -> Any:
        """`out`, or a fresh array of the caller's kind. Shape and type of a given one are checked by the module."""
        if out is None:
            return self.empty(shape, dtype)
        self._check(name, out, "the inputs")
        if type_name(out) != dtype:
            raise TypeError(f"{self.op}: {name} has dtype {type_name(out)}; expected {dtype}")
        if tuple(out.shape) != tuple(shape):
            raise ValueError(f"{self.op}: {name} has shape {tuple(out.shape)}; expected {tuple(shape)}")
        return out

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        namespace = _namespace(self.like)
        if hasattr(self.like, "new_empty"):  # PyTorch, from its own pool
            return self.like.new_empty(shape, dtype=getattr(namespace, dtype))
        return namespace.from_dlpack(self.module.empty(self.card, list(shape), dtype))


def _handle(op: str, stream: Any) -> int:
    """A cudaStream_t as a number; None is the default stream."""
    if stream is None:
        return 0
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise TypeError(f"{op}: stream is {stream!r}; expected the handle of a CUDA stream as a number, or None")
    return stream


def _namespace(array: Any) -> Any:
    """The module whose arrays it is one of."""
    asked = getattr(array, "__array_namespace__", None)
    return asked() if asked is not None else sys.modules[type(array).__module__.partition(".")[0]]
