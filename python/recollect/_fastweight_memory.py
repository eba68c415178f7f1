# SPDX-License-Identifier: BSD-3-Clause
"""The stateful fast weight memory: associations are written into a matrix and read from it, one by one or many at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._fastweight_files import load_memory, save_memory
from ._fastweight_form import Form
from ._feature_map import FeatureMap
from ._files import PathLike

__all__ = ["FastWeightMemory"]

Array = npt.NDArray[Any]


class FastWeightMemory:
    """A matrix of fast weights as an object: it takes associations of keys and values and is of the same size for any number of them.

    With phi a feature map, D a decay and beta a write strength, a write and a read are::

        rule="delta":  S <- D S,  S <- S + beta phi(k) (v - S^T phi(k))^T        what k held is replaced
        rule="sum":    S <- D S + phi(k) v^T                                    values of one key add up
        read:          S^T phi(q)

    Parameters
    ----------
    d : int
        Width of keys and queries.
    values : int
        Width V of values.
    rule : {'delta', 'sum'}
        How a write changes the matrix.
    feature_map : str, FeatureMap or None
        phi, a name of `feature_maps()` or a FeatureMap; None is the identity. Its width is K.
    normalize : {'none', 'sum', 'l2', 'attention'}
        Divide phi by its sum or its length, or divide what is read by z.phi(q) (and, with the delta rule, what is removed by z.phi(k)),
        z the faded sum of all phi(k). A divisor of 0 makes zeros.
    shape : tuple of int
        Memories side by side, say (B, H): keys, values, strengths and queries have these axes in front.
    dtype : float32 or float64
        The dtype of the matrix, the arithmetic and the results. What is given is converted to it.

    Notes
    -----
    A write and a read of one token cost O(K V) time each, as long as it takes to move the matrix through the processor, and
    no memory; `step` does both in one walk. T tokens at once take the chunked kernel of `delta_rule`. A call that is refused has changed nothing.
    Calls from several threads take turns. Schlag et al. 2021, https://arxiv.org/abs/2102.11174, eq. 17 to 26.

    Examples
    --------
    >>> import numpy as np
    >>> from recollect.fastweight import FastWeightMemory
    >>> memory = FastWeightMemory(3, 2)
    >>> memory.write([1, 0, 0], [5, 6])
    >>> memory.write([[0, 1, 0], [1, 0, 0]], [[7, 8], [9, 9]])  # the first key once more: its value is replaced
    >>> memory.read([[1, 0, 0], [0, 1, 0]])
    array([[9., 9.],
           [7., 8.]], dtype=float32)
    >>> memory.capacity, int(memory.rank())
    (3, 2)
    """

    def __init__(
        self,
        d: int,
        values: int,
        *,
        rule: Literal["delta", "sum"] = "delta",
        feature_map: str | FeatureMap | None = None,
        normalize: Literal["none", "sum", "l2", "attention"] = "none",
        shape: Sequence[int] = (),
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._adopt(Form.of(d, values, rule, feature_map, normalize, shape, dtype))

    def _adopt(self, form: Form) -> None:
        self._form = form
        self._state = form.empty()
        # Of the sum rule, in logarithms: how far a state from before the first write would have faded.
        self._fading = np.zeros(self._state.shape[:-1])
        self._lock = threading.Lock()

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> Array:
        """(*shape, K, V), read-only and always the present one: copy it to keep it. Normalised by attention it has a column z more,
        as the states of `linear_attention` and `delta_rule` have."""
        view: Array = self._state.view()
        view.flags.writeable = False
        return view

    @property
    def d(self) -> int:
        """Width of keys and queries."""
        return self._form.d

    @property
    def values(self) -> int:
        """Width V of values."""
        return self._form.values

    @property
    def shape(self) -> tuple[int, ...]:
        """The memories side by side."""
        return self._form.shape

    @property
    def rule(self) -> str:
        """'delta' or 'sum'."""
        return self._form.rule

    @property
    def feature_map(self) -> FeatureMap:
        """phi."""
        return self._form.phi

    @property
    def normalize(self) -> str:
        """What phi or a read is divided by."""
        return self._form.normalize

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the matrix and of what is read."""
        return self._form.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices, whatever has been written."""
        return self._state.nbytes

    @property
    def capacity(self) -> int:
        """K, the width of phi: so many keys can be orthogonal, and no more can be held without interference."""
        return int(self._state.shape[-2])

    def __repr__(self) -> str:
        form = self._form
        side = f"shape={form.shape}, " if form.shape else ""
        options = f"rule={form.rule!r}, feature_map={form.phi.name!r}, normalize={form.normalize!r}"
        return f"FastWeightMemory(d={form.d}, values={form.values}, {options}, {side}dtype={form.dtype})"

    # -- writing -------------------------------------------------------------------------------------------------

    def write(
        self,
        key: npt.ArrayLike,
        value: npt.ArrayLike,
        beta: npt.ArrayLike | None = None,
        *,
        decay: npt.ArrayLike | None = None,
        log_decay: npt.ArrayLike | None = None,
    ) -> None:
        """Writes ``value`` (*shape, V) at ``key`` (*shape, d), or T of them in order: (*shape, T, V) at (*shape, T, d).

        ``beta`` (*shape) or (*shape, T), or one number, is the write strength of the delta rule, 1 if not given: the value is replaced
        where |phi(k)| = 1. ``decay``, in (0, 1], or its logarithm ``log_decay``, a number for each token or for each channel
        of phi, is what the matrix fades by before the write.

        ValueError: a shape that does not fit, a decay out of bounds, a strength for the sum rule. TypeError: not real numbers.
        """
        self._run("write", None, key, value, beta, decay, log_decay)

    def step(
        self,
        query: npt.ArrayLike,
        key: npt.ArrayLike,
        value: npt.ArrayLike,
        beta: npt.ArrayLike | None = None,
        *,
        decay: npt.ArrayLike | None = None,
        log_decay: npt.ArrayLike | None = None,
    ) -> Array:
        """`write`, and what ``query`` reads then, in one walk over the matrix; of T tokens, each reads after it has written.

        ``query`` has the shape of ``key``; the answer that of ``value``. Errors as in `write`.
        """
        out: Array = self._run("step", query, key, value, beta, decay, log_decay)
        return out

    def merge(self, other: FastWeightMemory) -> None:
        """Takes in what ``other`` holds, as if its writes had come after the own ones. For the sum rule, whose writes can be
        made apart and merged; ``other`` is left as it is.

        ValueError: the delta rule, where a write depends on what is held; a memory of other widths, shape, map or normalisation.
        """
        who = "FastWeightMemory.merge"
        if not isinstance(other, FastWeightMemory):
            raise TypeError(f"{who}: other is a {type(other).__name__}; expected a FastWeightMemory")
        if self._form.rule != "sum":
            raise ValueError(
                f"{who}: the rule is '{self._form.rule}', whose writes depend on what is held; expected rule 'sum'"
            )
        if not self._form.same(other._form):
            raise ValueError(f"{who}: other is {other!r}; expected one made as {self!r}, with the same map")
        state, fading = other._copied()
        with self._lock:
            self._state = self._form.merged(self._state, fading, state)
            self._fading = self._fading + fading

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._state, self._fading = self._form.empty(), np.zeros_like(self._fading)

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, query: npt.ArrayLike) -> Array:
        """What ``query`` (*shape, d) or (*shape, n, d) retrieves: (*shape, V) or (*shape, n, V). ValueError: a wrong shape."""
        who = "FastWeightMemory.read"
        rows, one = self._form.tokens(who, "query", query, self._form.d)
        out = np.empty((*rows.shape[:-1], self._form.values), self._form.dtype)
        with self._lock:
            self._form.run(who, out, None, {"query": rows, "state": self._state})
        return out[..., 0, :] if one else out

    def rank(self, tol: float | None = None) -> npt.NDArray[np.int64]:
        """How many independent associations are held, for each memory: the numerical rank of S, at most `capacity` and V. ``tol`` is
        the smallest singular value that counts, as in `numpy.linalg.matrix_rank`."""
        return np.asarray(np.linalg.matrix_rank(self._copied()[0][..., : self._form.values], tol=tol))

    def interference(self, key: npt.ArrayLike, value: npt.ArrayLike) -> Array:
        """How far the memory is from holding ``value`` (*shape, n, V) at ``key`` (*shape, n, d): |read(k) - v| / |v|, (*shape, n).

        0 is exact recall, 1 is nothing or as much noise as signal. Errors as in `write`."""
        who = "FastWeightMemory.interference"
        rows, one = self._form.tokens(who, "key", key, self._form.d)
        wanted = self._form.tokens(who, "value", value, self._form.values, rows.shape[-2])[0].astype(np.float64)
        difference, size = (np.linalg.norm(x, axis=-1) for x in (self.read(rows) - wanted, wanted))
        with np.errstate(divide="ignore", invalid="ignore"):
            share: Array = np.where(difference == 0, 0.0, difference / size).astype(self._form.dtype)
        return share[..., 0] if one else share

    # -- copies and files ----------------------------------------------------------------------------------------

    def copy(self) -> FastWeightMemory:
        """A memory of its own with the same contents, bit for bit."""
        other = object.__new__(FastWeightMemory)
        other.__setstate__(self.__getstate__())
        return other

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Writes one safetensors file, all or nothing. FileExistsError: ``path`` exists and ``overwrite`` is not set. Needs the
        safetensors package."""
        state, fading = self._copied()
        save_memory(path, self._form, state, fading, overwrite=overwrite)

    @classmethod
    def load(cls, path: PathLike) -> FastWeightMemory:
        """Reads what `save` wrote, bit for bit. FileNotFoundError: no such file. ValueError: truncated, damaged, or not a saved
        FastWeightMemory."""
        form, state, fading = load_memory(path)
        memory = object.__new__(cls)
        memory._adopt(form)
        memory._state, memory._fading = state, fading
        return memory

    # -- inside --------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        kept["_state"], kept["_fading"] = self._copied()
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._lock = threading.Lock()

    def _copied(self) -> tuple[Array, Array]:
        with self._lock:
            return self._state.copy(), self._fading.copy()

    def _run(self, name: str, query: Any, key: Any, value: Any, beta: Any, decay: Any, log_decay: Any) -> Any:
        who, form = f"FastWeightMemory.{name}", self._form
        rows, one = form.tokens(who, "key", key, form.d)
        count = rows.shape[-2]
        given = {"key": rows, "value": form.tokens(who, "value", value, form.values, count)[0]}
        if query is not None:
            given["query"] = form.tokens(who, "query", query, form.d, count)[0]
        if form.rule == "delta":
            given["beta"] = form.numbers(who, "beta", 1.0 if beta is None else beta, one, count)
        elif beta is not None:
            raise ValueError(f"{who}: beta is given; expected None, as the sum rule writes everything in full")
        fading = {
            argument: form.numbers(who, argument, number, one, count, self.capacity)
            for argument, number in (("decay", decay), ("log_decay", log_decay))
            if number is not None
        }
        out = None if query is None else np.empty((*rows.shape[:-1], form.values), form.dtype)
        if len(fading) == 2:
            raise ValueError(f"{who}: decay and log_decay are both given; expected one of them")
        with self._lock:
            form.run(who, out, self._state, {**given, **fading, "state": self._state})
            if form.rule == "sum":
                for argument, number in fading.items():
                    self._fading = self._fading + _total(number, argument == "log_decay", self._fading.ndim)
        return out[..., 0, :] if one and out is not None else out


def _total(number: Array, logarithm: bool, axes: int) -> Array:
    """The logarithms of all decays, added up: (*shape, 1) or (*shape, K)."""
    logarithms = number.astype(np.float64) if logarithm else np.log(number.astype(np.float64))
    by_channel = logarithms.ndim == axes + 1
    total: Array = logarithms.sum(axis=-2) if by_channel else logarithms.sum(axis=-1)[..., None]
    return total
