# SPDX-License-Identifier: BSD-3-Clause
"""What the recurrent networks of `backtracking` share: parameters, forward, backward, streams, files."""

from __future__ import annotations

import json
from math import sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _array
from ._core import core
from ._files import PathLike, load_arrays, save_arrays
from ._recurrent_state import State
from ._recurrent_tape import RecurrentGradients, RecurrentTape
from .layers._base import Array, Layer, Start, xavier_uniform

_GATES = {"lstm": 4, "gru": 3}
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "w1", "w2", "w3")  # the order in which the core takes them
_CHUNK = 64  # steps at a time where no tape is wanted


def _uniform(size: int) -> Start:
    bound = 1 / sqrt(size)
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


class Recurrent(Layer[RecurrentGradients]):
    """A recurrent cell with a sparse read of its own past states; see `SparseBacktrackingLSTM`."""

    module = "backtracking"
    cell: ClassVar[str]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        options: dict[str, Any],
        rng: np.random.Generator | None,
        dtype: DTypeLike,
        plain: bool = False,
    ) -> None:
        super().__init__(dtype, rng)
        attention_size, compat = options["attention_size"], options["compat"]
        self.input_size, self.hidden_size = (
            self._count("input_size", input_size),
            self._count("hidden_size", hidden_size),
        )
        k_top, k_trunc, most = options["k_top"], options["k_trunc"], options["max_memories"]
        self.k_top = None if k_top is None else self._count("k_top", k_top, 0)
        self.k_att = self._count("k_att", options["k_att"])
        self.k_trunc = None if k_trunc is None else self._count("k_trunc", k_trunc)
        self.max_memories = None if most is None else self._count("max_memories", most)
        if compat not in (None, "released"):
            raise ValueError(f"{self.name}: compat is {compat!r}; expected None or 'released'")
        self.compat, self.reminders, self.plain = compat, bool(options["reminders"]), plain
        H = self.hidden_size
        if attention_size is not None and compat == "released":
            raise ValueError(f"{self.name}: attention_size is {attention_size}; expected None with compat='released'")
        self.attention_size = H if attention_size is None else self._count("attention_size", attention_size)
        rows = _GATES[self.cell] * H
        self._declare("weight_ih", (rows, self.input_size), _uniform(H))
        self._declare("weight_hh", (rows, H), _uniform(H))
        self._declare("bias_ih", (rows,), _uniform(H))
        self._declare("bias_hh", (rows,), _uniform(H))
        if compat == "released":
            self._declare("w3", (2 * H,), lambda rng, shape: rng.normal(0.0, 0.01, shape))
        elif not plain:
            self._declare("w1", (self.attention_size, H), xavier_uniform)
            self._declare("w2", (self.attention_size, H), xavier_uniform)
            self._declare("w3", (self.attention_size,), _uniform(self.attention_size))
        self._begin(rng)

    # ------------------------------------------------------------------------------------------------ whole sequences

    def __call__(self, x: ArrayLike, state: State | None = None) -> Array:
        """The outputs of `forward` alone, without a tape: memory beyond the outputs is that of the microstates."""
        array, begun = self._begin_sequence(x, state)
        outputs = np.empty((*array.shape[:2], self._width), self.dtype)
        moving = begun.copy()
        for first in range(0, array.shape[1], _CHUNK):
            outputs[:, first : first + _CHUNK] = self._advance(array[:, first : first + _CHUNK], moving)
        return outputs

    def forward(self, x: ArrayLike, state: State | None = None) -> tuple[Array, RecurrentTape]:
        """Runs x (B, T, D) from `state`, or from the start; T may be 0.

        Returns outputs (B, T, 2 H) = [h_t, s_t] (a plain network: (B, T, H)) and the tape, whose ``state`` is the one after the last step.
        `state` itself is not changed, and it is a constant for the gradient. Time is counted on from it, for k_att and for the windows.

        Raises
        ------
        ValueError
            x of another shape; a state of another batch, or of a network of other sizes, another cell or another k_att.
        TypeError
            x whose dtype is no number; a state that is none.
        """
        array, begun = self._begin_sequence(x, state)
        begun = begun.copy()
        memory: tuple[Array | None, Array | None] = (None, None)
        stored = self._stored_times(begun.time, array.shape[1])
        sources = np.concatenate([begun.times, stored])
        if self.k_top != 0:
            shape = (len(array), len(sources))
            memory = np.empty((*shape, self.hidden_size), self.dtype), np.empty((*shape, self._key_size), self.dtype)
            memory[0][:, : begun.count], memory[1][:, : begun.count] = begun.memories, begun.keys
        arrays = self._tape_arrays(array.shape[0], array.shape[1], len(sources))
        outputs = np.empty((*array.shape[:2], self._width), self.dtype)
        self._run(array, begun, memory, outputs, arrays)
        return outputs, RecurrentTape(self, outputs.shape, array, begun, memory, sources, arrays, self.max_memories)

    def backward(self, tape: Any, d_outputs: Any) -> RecurrentGradients:
        """Gradients of ``sum(d_outputs * outputs)``: a named tuple (x, parameters), the latter a dict by name. May be called more than
        once for one tape, with the parameters as they were.

        Raises
        ------
        ValueError
            A tape of another network, or `d_outputs` of another shape than the outputs.
        TypeError
            A `tape` that is none, or a `d_outputs` whose dtype is no number.
        """
        if not isinstance(tape, RecurrentTape):
            raise TypeError(f"{self.name}: tape is a {type(tape).__name__}; expected what forward returned")
        if tape.network is not self:
            raise ValueError(
                f"{self.name}: tape is of another network, {tape.network.name}; expected one of this network"
            )
        cotangent = np.ascontiguousarray(_array.floating(self.name, "d_outputs", d_outputs), self.dtype)
        if cotangent.shape != tape.shape:
            raise ValueError(f"{self.name}: d_outputs has shape {cotangent.shape}; expected {tape.shape}")
        self._check_parameters()
        begun, x = tape._begun, tape._x
        d_x = np.empty_like(x)
        gradients = {name: np.empty(array.shape, self.dtype) for name, array in self.parameters.items()}
        core.backtracking_backward(
            self.cell,
            x,
            begun.hidden,
            begun.carry,
            self._weights(),
            *tape._memory,
            begun.count,
            self._numbers(begun.time),
            tape._arrays,
            cotangent,
            d_x,
            tuple(gradients.get(name) for name in _NAMES),
        )
        return RecurrentGradients(d_x, gradients)

    # -------------------------------------------------------------------------------------------------------- streams

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first step of `batch` sequences."""
        B, H = self._count("batch", batch, 0), self.hidden_size
        seeds = 1 if self.compat == "released" and self.k_top != 0 else 0
        hidden = np.zeros((B, H), self.dtype)
        carry = np.zeros((B, H), self.dtype)
        memories, keys = np.zeros((B, seeds, H), self.dtype), np.zeros((B, seeds, self._key_size), self.dtype)
        return State((self.cell, self._storing), 0, hidden, carry, memories, keys, np.zeros(seeds, np.int64))

    def step(self, x: ArrayLike, state: State) -> Array:
        """One step of a stream: x (B, D) -> [h_t, s_t] (B, 2 H). `state` is moved on in place; nothing is kept for a gradient.

        Microstates stay, unless ``max_memories`` bounds them; then the oldest leaves when a new one comes. Raises as `forward`.
        """
        array = _array.floating(self.name, "x", x)
        if array.ndim != 2 or array.shape[1] != self.input_size:
            raise ValueError(f"{self.name}: x has shape {array.shape}; expected (B, D={self.input_size})")
        self._check_parameters()
        self._check_state(state, len(array))
        return self._advance(array[:, None], state)[:, 0]

    def _advance(self, x: Array, state: State) -> Array:
        """Outputs of some steps; the state is moved on in place."""
        S = x.shape[1]
        stored = self._stored_times(state.time, S)
        memory: tuple[Array | None, Array | None] = (None, None)
        if self.k_top != 0:
            state._reserve(len(stored))
            rows = slice(state._first, state._first + state.count + len(stored))
            state._times[rows][state.count :] = stored
            memory = state._memories[:, rows], state._keys[:, rows]
        outputs = np.empty((*x.shape[:2], self._width), self.dtype)
        arrays = self._tape_arrays(x.shape[0], S, state.count + len(stored))
        self._run(np.ascontiguousarray(x, self.dtype), state, memory, outputs, arrays)
        h, carry = arrays[2], arrays[3]
        if S and h is not None and carry is not None:
            state.hidden, state.carry = h[:, -1].copy(), carry[:, -1].copy()
        state.time += S
        state.count += len(stored)
        state._keep(self.max_memories)
        return outputs

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes parameters and options as one safetensors file, all or nothing. FileExistsError: `path` exists and `overwrite` is not
        set. Needs the safetensors package."""
        self._check_parameters()
        names = ["input_size", "hidden_size", "k_trunc"]
        if not self.plain:
            names += ["k_top", "k_att", "max_memories", "reminders", "compat"]
            names += ["attention_size"] if self.compat is None else []
        options = {name: getattr(self, name) for name in names} | {"dtype": self.dtype.name}
        metadata = {"options": json.dumps(options)}
        save_arrays(
            path, self.parameters, kind=self._kind(), metadata=metadata, overwrite=overwrite, who=f"{self.name}.save"
        )

    @classmethod
    def load(cls, path: PathLike) -> Any:
        """Reads what `save` wrote. FileNotFoundError: no such file. ValueError: damaged, or saved by another class."""
        who = f"backtracking.{cls.__name__}.load"
        arrays, metadata = load_arrays(path, kind=cls._kind(), mmap=False, who=who)
        try:
            network = cls(**json.loads(metadata["options"]))
            network._load(arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{who}: '{path}' is damaged ({error})") from None
        return network

    @classmethod
    def _kind(cls) -> str:
        return f"recollect.backtracking.{cls.__name__}"

    # --------------------------------------------------------------------------------------------------------- inside

    @property
    def _width(self) -> int:
        return self.hidden_size if self.plain else 2 * self.hidden_size

    @property
    def _key_size(self) -> int:
        return 1 if self.compat == "released" else self.attention_size

    @property
    def _storing(self) -> int:
        """Steps from one microstate to the next, 0 where none is stored."""
        return 0 if self.k_top == 0 else self.k_att

    def _stored_times(self, time: int, steps: int) -> NDArray[np.int64]:
        """The times of the microstates that so many steps after `time` store."""
        if self.k_top == 0:
            return np.empty(0, np.int64)
        return np.arange(time // self.k_att + 1, (time + steps) // self.k_att + 1, dtype=np.int64) * self.k_att

    def _tape_arrays(self, B: int, S: int, C: int) -> tuple[Array | None, ...]:
        """gates, hhat, h, carry, indices, weights, total, as the core fills them."""
        H, k = self.hidden_size, C if self.k_top is None else self.k_top
        units = [np.empty((B, S, width * H), self.dtype) for width in (4, 1, 1)]
        carry = np.empty((B, S, H), self.dtype) if self.cell == "lstm" else units[1]  # a GRU carries hhat
        if self.k_top == 0:
            return (*units, carry, None, None, None)
        indices, weights = np.empty((B, S, k + 1), np.int64), np.empty((B, S, k), self.dtype)
        return (*units, carry, indices, weights, np.empty((B, S), self.dtype))

    def _run(
        self,
        x: Array,
        state: State,
        memory: tuple[Array | None, Array | None],
        outputs: Array,
        arrays: tuple[Array | None, ...],
    ) -> None:
        core.backtracking_forward(
            self.cell,
            x,
            state.hidden,
            state.carry,
            self._weights(),
            *memory,
            state.count,
            self._numbers(state.time),
            outputs,
            arrays,
        )

    def _weights(self) -> tuple[Array | None, ...]:
        return tuple(
            np.ascontiguousarray(self.parameters[name]) if name in self.parameters else None for name in _NAMES
        )

    def _numbers(self, time: int) -> list[int]:
        """The options as the core takes them."""
        k_top = -1 if self.k_top is None else self.k_top
        return [
            k_top,
            self.k_att,
            self.k_trunc or 0,
            time,
            self.max_memories or 0,
            int(self.reminders),
            int(self.compat == "released"),
        ]

    def _begin_sequence(self, x: ArrayLike, state: State | None) -> tuple[Array, State]:
        self._check_parameters()
        array = _array.floating(self.name, "x", x)
        if array.ndim != 3 or array.shape[2] != self.input_size:
            raise ValueError(f"{self.name}: x has shape {array.shape}; expected (B, T, D={self.input_size})")
        if state is None:
            state = self.initial_state(len(array))
        self._check_state(state, len(array))
        return np.ascontiguousarray(array, self.dtype), state

    def _check_state(self, state: Any, batch: int) -> None:
        if not isinstance(state, State):
            raise TypeError(f"{self.name}: state is a {type(state).__name__}; expected a State")
        H = self.hidden_size
        if state.hidden.dtype != self.dtype:
            raise TypeError(f"{self.name}: state has dtype {state.hidden.dtype}; expected {self.dtype}")
        if state.hidden.shape != (batch, H):
            raise ValueError(f"{self.name}: state is of shape {state.hidden.shape}; expected (B={batch}, H={H})")
        if state.cell != self.cell:
            raise ValueError(f"{self.name}: state is of cell {state.cell!r}; expected {self.cell!r}")
        if self.k_top != 0 and state.k_att != self.k_att:
            of = f"k_att={state.k_att}" if state.k_att else "no microstates"
            raise ValueError(f"{self.name}: state is of a network with {of}; expected k_att={self.k_att}")
        if self.k_top != 0 and state.keys.shape[2] != self._key_size:
            raise ValueError(
                f"{self.name}: state has keys of shape {state.keys.shape}; expected (B, n, A={self._key_size})"
            )
