# SPDX-License-Identifier: BSD-3-Clause
"""The Hopfield memory of arrays on a CUDA device."""

from __future__ import annotations

import threading
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ._device import Call, type_name
from ._device_ops import unsupported
from ._hopfield import step_rule
from ._memory import HopfieldMemory

__all__ = ["DeviceMemory"]


class Bank(NamedTuple):
    """Rows as kernels read them: an array of lines, each a packed tile of patterns or, where nothing is packed, one."""

    lines: Any
    patterns_of_line: int
    width: int
    dtype: str

    @property
    def packed(self) -> bool:
        return self.patterns_of_line > 1

    @classmethod
    def like(cls, call: Call, rows: Any, alike: bool) -> Bank:
        """An empty one. `alike`: no other rows go with them, or rows of the same type and width."""
        patterns, numbers = call.module.bank_line(call.place, call.capsule(rows), alike)
        return cls(call.empty((0, numbers), type_name(rows)), patterns, rows.shape[1], type_name(rows))

    def appended(self, call: Call, name: str, rows: Any, count: int) -> Bank:
        """With rows behind the first `count`: written into room that is left, or into a larger copy."""
        need, have = -(-(count + rows.shape[0]) // self.patterns_of_line), self.lines.shape[0]
        lines = self.lines
        if need > have:
            lines = call.empty((max(need, 2 * have), lines.shape[1]), self.dtype)
            if count:
                call.module.copy(call.place, call.capsule(self.lines), call.capsule(lines))
        where = (call.capsule(rows), call.capsule(lines), count, self.packed)
        call.module.store(call.place, call.op, name, *where)
        return self._replace(lines=lines)

    def check(self, call: Call, name: str, letter: str, rows: Any) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(
                f"{call.op}: {name} has shape {tuple(rows.shape)}; expected (n, {letter}={self.width}), as what is stored"
            )
        self.check_type(call, name, rows)

    def check_type(self, call: Call, name: str, rows: Any) -> None:
        if type_name(rows) != self.dtype:
            raise TypeError(f"{call.op}: {name} has dtype {type_name(rows)}; expected {self.dtype}, as what is stored")


class Held(NamedTuple):
    """What a reader works on. Rows behind `size` may be written meanwhile; it does not look there."""

    patterns: Bank
    values: Bank | None
    size: int


def _refused(name: str) -> Any:
    def refuse(self: DeviceMemory, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"HopfieldMemory.{name}: the memory is on cuda:{self.card}, where it can add and retrieve alone so far; "
            "for the rest make one of arrays in the memory of this process"
        )

    return refuse


class DeviceMemory(HopfieldMemory):
    """What ``HopfieldMemory.from_patterns`` makes of arrays of a CUDA device (PyTorch, CuPy, JAX): a memory that stays there.

    It holds copies, of the type that came, in the layout that the kernels of the device read: on compute capability 9.0, of float16 or
    bfloat16, 64 or 128 wide, without values or with such of the same type and width, packed for tensor cores once for all retrievals.
    ``retrieve`` takes cues of the stored type and gives results of it; it and ``add`` take the ``stream`` to queue their work on, and
    nothing waits: what is added on one stream and read on another is for the caller to put in order. Ids count up from 0. Everything
    else a HopfieldMemory can do, and every argument that a device has no use for, is refused by name.
    """

    def __init__(
        self, who: str, patterns: Any, values: Any, *, beta: float | None, stream: int | None, **rest: Any
    ) -> None:
        unsupported(who, **{name: (value, False if name == "check_finite" else None) for name, value in rest.items()})
        call = Call(who, stream, {"patterns": patterns, "values": values})
        for name, letter, rows in (("patterns", "d", patterns), ("values", "e", values)):
            if rows is not None and rows.ndim != 2:
                raise ValueError(f"{who}: {name} has shape {tuple(rows.shape)}; expected (N, {letter})")
        alike = values is None or (type_name(values), values.shape[1]) == (type_name(patterns), patterns.shape[1])
        self.card, self.beta = call.card, beta
        self._lock = threading.Lock()
        readout = None if values is None else Bank.like(call, values, alike)
        self._held = Held(Bank.like(call, patterns, alike), readout, 0)
        self._append(call, patterns, values)

    def _append(self, call: Call, patterns: Any, values: Any) -> npt.NDArray[np.int64]:
        with self._lock:
            held = self._held
            held.patterns.check(call, "patterns", "d", patterns)
            readout = held.values
            if (readout is None) != (values is None):
                have = "no values" if readout is None else f"values of width {readout.width}"
                raise ValueError(
                    f"{call.op}: this memory has {have}; {'none' if values is None else 'some'} were given"
                )
            if readout is not None:
                readout.check(call, "values", "e", values)
                if values.shape[0] != patterns.shape[0]:
                    shape, n = tuple(values.shape), patterns.shape[0]
                    raise ValueError(f"{call.op}: values has shape {shape}; expected (n={n}, e={readout.width})")
                readout = readout.appended(call, "values", values, held.size)
            rows = held.patterns.appended(call, "patterns", patterns, held.size)
            size = held.size + patterns.shape[0]
            self._held = Held(rows, readout, size)  # one assignment: all of it or nothing
        return np.arange(held.size, size, dtype=np.int64)

    def __len__(self) -> int:
        return self._held.size

    @property
    def d(self) -> int:
        return self._held.patterns.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, that of the arithmetic; results have the type of the cues."""
        return np.dtype(np.float32)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self), dtype=np.int64)

    def __repr__(self) -> str:
        patterns, values, count = self._held
        parts = [f"{count} patterns", f"d={patterns.width}"]
        parts += [f"values={values.width}"] if values is not None else []
        parts += [f"beta={self.beta}", f"storage={patterns.dtype}", f"on cuda:{self.card}"]
        parts += ["packed"] if patterns.packed else []
        return f"HopfieldMemory({', '.join(parts)})"

    def add(
        self,
        patterns: Any,
        values: Any = None,
        ids: Any = None,
        *,
        check_finite: bool = False,
        stream: int | None = None,
    ) -> npt.NDArray[np.int64]:
        who = "HopfieldMemory.add"
        unsupported(who, ids=(ids, None), check_finite=(check_finite, False))
        call = Call(who, stream, {"patterns": patterns, "values": values}, card=self.card)
        return self._append(call, patterns, values)

    def retrieve(
        self,
        cues: Any,
        *,
        beta: float | None = None,
        steps: int | None = 1,
        tol: float | None = None,
        read: Literal["patterns", "values"] | None = None,
        return_info: bool = False,
        stream: int | None = None,
        out: Any = None,
    ) -> Any:
        who = "HopfieldMemory.retrieve"
        unsupported(who, return_info=(return_info, False))
        patterns, values, count = self._held
        if read not in (None, "patterns", "values") or (read == "values" and values is None):
            have = "patterns" if values is None else "patterns or values"
            raise ValueError(f"{who}: read is {read!r}; this memory can read {have}")
        call = Call(who, stream, {"cues": cues}, card=self.card)
        rule = step_rule(who, steps, tol, self.dtype)
        number = self._given_beta(beta, "retrieve")
        if not count:
            raise ValueError(f"{who}: the memory is empty; add patterns first")
        if cues.ndim == 0 or cues.shape[-1] != patterns.width:
            raise ValueError(f"{who}: cues has shape {tuple(cues.shape)}; expected (..., d={patterns.width})")
        patterns.check_type(call, "cues", cues)
        readout = None if read == "patterns" else values
        width = patterns.width if readout is None else readout.width
        result = call.output(out, (*cues.shape[:-1], width), patterns.dtype)
        rows, to = (cues, result) if cues.ndim > 1 else (cues.reshape(1, -1), result.reshape(1, -1))
        call.module.retrieve_stored(
            call.place,
            call.capsule(rows),
            call.capsule(patterns.lines),
            None if readout is None else call.capsule(readout.lines),
            (count, patterns.width, patterns.packed),
            number,
            *rule,
            call.capsule(to),
        )
        return result

    remove, energy, nearest, get, save = map(_refused, ("remove", "energy", "nearest", "get", "save"))
    patterns, values = property(_refused("patterns")), property(_refused("values"))
    __reduce__ = _refused("__reduce__")
