# SPDX-License-Identifier: BSD-3-Clause
"""The sparse read of sparse attentive backtracking, usable over any memory."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _array, _device
from ._core import core
from ._device_read import sparse_read as read_on_device
from ._sparse_read_checks import check_axes, check_parameters


class SparseRead(NamedTuple):
    """What `sparse_read` returns."""

    value: NDArray[Any]
    indices: NDArray[np.int64]
    weights: NDArray[Any]


def project(memory: ArrayLike, w1: ArrayLike) -> NDArray[Any]:
    """W1 m for every memory, to be computed once, when it is stored: memory (..., N, d), w1 (A, d) -> keys (..., N, A).

    >>> import recollect as rc
    >>> rc.backtracking.project([[1.0, 2.0]], [[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    array([[1., 3., 6.]])
    """
    op = "backtracking.project"
    rows, weight = _array.floating(op, "memory", memory), _array.floating(op, "w1", w1)
    dtype = _array.arithmetic(rows, weight)
    if rows.ndim < 2:
        raise ValueError(f"{op}: memory has shape {rows.shape}; expected (..., N, d)")
    if weight.ndim != 2 or weight.shape[1] != rows.shape[-1]:
        raise ValueError(f"{op}: w1 has shape {weight.shape}; expected (A, d={rows.shape[-1]})")
    keys: NDArray[Any] = _array.typed(rows, dtype) @ _array.typed(weight, dtype).T
    return keys


def sparse_read(
    query: ArrayLike,
    memory: ArrayLike,
    *,
    k_top: int | None,
    score: Literal["additive", "dot", "bilinear"] = "additive",
    w1: ArrayLike | None = None,
    w2: ArrayLike | None = None,
    w3: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    stream: int | None = None,
) -> SparseRead:
    """Read a few memories: those with the largest scores, weighted by how far they are above the next one.

    ::

        a_i = w3 . tanh(w1 m_i + w2 q)  (additive),   q . m_i  (dot),   q . weight m_i  (bilinear)
        u_i = max(0, a_i - the (k_top + 1)-th largest),   w_i = u_i / sum_j u_j,   value = sum_i w_i m_i

    With at most `k_top` memories w is the softmax of a over all of them; if all that are kept tie with the threshold w is uniform over
    them; without memories the value is 0. Among equal scores the lower index comes first.

    Parameters
    ----------
    query : array (..., n, e), float32 or float64
        Queries, one a row. Leading axes broadcast as in `numpy.matmul`.
    memory : array (..., N, d)
        Memories, one a row.
    k_top : int or None
        How many memories are read, 1 or more; None: all.
    score : 'additive', 'dot' or 'bilinear'
        How a query is compared with a memory.
    w1 : array (A, d)
        Of the additive score; not needed if `keys` is given.
    w2 : array (A, e)
        Of the additive score.
    w3 : array (A,)
        Of the additive score.
    weight : array (e, d)
        Of the bilinear score.
    keys : array (..., N, A), optional
        ``project(memory, w1)``, if it was computed when the memories were stored.
    lengths : int array broadcast to the leading axes, optional
        Only the first so many memories are read.
    stream : int, optional
        The CUDA stream to queue the work on where the arrays are on a CUDA device (see `attention.attend`). There `k_top` is at most
        127, `lengths` are int64, and projections are products of the caller's framework.

    Returns
    -------
    SparseRead
        A named tuple: value (..., n, d); indices (..., n, k), int64, and weights (..., n, k), k = min(k_top, N). Memories are listed in
        falling order of their score, or in the order of their index where all are read; -1 and 0 fill places beyond `lengths`.

    Raises
    ------
    ValueError
        Shapes that do not fit, k_top below 1, a parameter that the score needs and that is not given or the other way round.
    TypeError
        A dtype that is no number, `lengths` that are no whole numbers.

    Notes
    -----
    Cost: O(n N A) for the additive score and O(n N d) for the others, O(k d) for what is read; the pullback of `recollect.vjp`, a function of
    d_value, costs O(n k (A + d)) and touches only the memories that were read and the one that gave the threshold. It returns gradients
    of query, memory and the parameters that were given (of keys instead of w1, if they were). Where softmax or equal scores leave no
    threshold it has none. Ke et al. 2018, https://arxiv.org/abs/1809.03702, algorithm 1.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> read = rc.backtracking.sparse_read(np.ones((1, 1)), [[1.0], [2.0], [4.0]], k_top=2, score="dot")
    >>> read.value, read.indices, read.weights
    (array([[3.5]]), array([[2, 1]]), array([[0.75, 0.25]]))
    """
    parameters = dict(w1=w1, w2=w2, w3=w3, weight=weight, keys=keys)
    if _device.found(query, memory):
        return SparseRead(*read_on_device(query, memory, k_top, score, parameters, lengths, stream))
    _device.refuse_stream("backtracking.sparse_read", stream)
    return Reading(query, memory, k_top, score, parameters, lengths).result


class Reading:
    """One sparse read: its operands as the core takes them, its results, and its pullback."""

    op = "backtracking.sparse_read"

    def __init__(
        self, query: Any, memory: Any, k_top: Any, score: str, parameters: dict[str, Any], lengths: Any
    ) -> None:
        op = self.op
        given = {name: _array.floating(op, name, value) for name, value in parameters.items() if value is not None}
        self.query, self.memory = _array.floating(op, "query", query), _array.floating(op, "memory", memory)
        self.dtype = _array.arithmetic(self.query, self.memory, *given.values())
        self.given = {name: _array.typed(array, self.dtype) for name, array in given.items()}
        self.query, self.memory = _array.typed(self.query, self.dtype), _array.typed(self.memory, self.dtype)
        self.score = score
        check_axes(op, query=self.query, memory=self.memory, keys=self.given.get("keys"))
        shapes = {name: array.shape for name, array in self.given.items()}
        check_parameters(op, score, self.query.shape, self.memory.shape, shapes)
        count = self.memory.shape[-2]
        self.k = count if k_top is None else min(_array.whole(op, "k_top", k_top, 1, expected="1 or more"), count)
        self.lengths = self._lengths(lengths)
        self.asked, self.keys = self._projected()
        self.compared = [np.ascontiguousarray(a) if a.strides[-1] != a.itemsize else a for a in (self.asked, self.keys)]
        self.rows = (
            np.ascontiguousarray(self.memory) if self.memory.strides[-1] != self.memory.itemsize else self.memory
        )
        own = (
            ("query", self.asked, 2),
            ("keys", self.given.get("keys"), 2),
            ("memory", self.memory, 2),
            ("lengths", self.lengths, 0),
        )
        lead = (*_array.leading_axes(op, *own), self.query.shape[-2])
        self.value = np.empty((*lead, self.memory.shape[-1]), self.dtype)
        self.indices, self.weights = np.empty((*lead, self.k), np.int64), np.empty((*lead, self.k), self.dtype)
        self.kept = np.empty(lead, np.int64), np.empty(lead, self.dtype)
        core.backtracking_sparse_read(*self._operands(), self.value, self.indices, self.weights, *self.kept)

    @property
    def result(self) -> SparseRead:
        return SparseRead(self.value, self.indices, self.weights)

    def _operands(self) -> tuple[Any, Any, Any, Any, Any]:
        w3 = self.given.get("w3")
        return (
            self.compared[0],
            self.compared[1],
            self.rows,
            None if w3 is None else np.ascontiguousarray(w3),
            self.lengths,
        )

    def _lengths(self, lengths: Any) -> NDArray[np.int64] | None:
        if lengths is None:
            return None
        array = _array.plain(self.op, "lengths", lengths)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{self.op}: lengths has dtype {array.dtype}; expected whole numbers")
        count = self.memory.shape[-2]
        if array.size and not (array.min() >= 0 and array.max() <= count):
            raise ValueError(
                f"{self.op}: lengths has values from {array.min()} to {array.max()}; expected 0 to N={count}"
            )
        return array.astype(np.int64)

    def _projected(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the core compares: rows that stand for the queries, and for the memories."""
        if self.score == "additive":
            keys = self.given["keys"] if "keys" in self.given else project(self.memory, self.given["w1"])
            return self.query @ self.given["w2"].T, keys
        return (self.query @ self.given["weight"] if self.score == "bilinear" else self.query), self.memory

    # ------------------------------------------------------------------------------------------------------- backward

    def pullback(self, d_value: Any) -> dict[str, NDArray[Any]]:
        """Gradients by name; of memory and keys they are zero but in the rows that were read."""
        cotangent = np.ascontiguousarray(_array.cotangent(self.op, d_value, self.value.shape, self.dtype, "d_value"))
        lead, k, a, d = self.weights.shape[:-1], self.k, self.compared[0].shape[-1], self.memory.shape[-1]
        d_asked, d_rows = np.empty((*lead, a), self.dtype), np.empty((*lead, k, d), self.dtype)
        d_keys = np.empty((*lead, k + 1, a), self.dtype)
        d_w3 = np.empty(a, self.dtype) if "w3" in self.given else None
        core.backtracking_sparse_read_backward(
            *self._operands(),
            self.value,
            self.indices,
            self.weights,
            *self.kept,
            cotangent,
            d_asked,
            d_keys,
            d_rows,
            d_w3,
        )
        where = np.concatenate([self.indices, self.kept[0][..., None]], axis=-1)
        d_memory = np.zeros(self.memory.shape, self.dtype)
        _scatter(d_memory, self.indices, d_rows)
        to = {"query": _array.sum_to_shape(d_asked, self.asked.shape), "memory": d_memory}
        if self.score == "additive":
            self._pull_additive(to, where, d_keys)
            if d_w3 is not None:
                to["w3"] = d_w3
        else:
            _scatter(d_memory, where, d_keys)
            if self.score == "bilinear":
                d_asked_own, weight = to["query"], self.given["weight"]
                to["weight"] = _flat(self.query).T @ _flat(d_asked_own)
                to["query"] = d_asked_own @ weight.T
        return to

    def _pull_additive(self, to: dict[str, NDArray[Any]], where: NDArray[np.int64], d_keys: NDArray[Any]) -> None:
        d_asked = to["query"]
        to["w2"] = _flat(d_asked).T @ _flat(self.query)
        to["query"] = d_asked @ self.given["w2"]
        if "keys" in self.given:
            to["keys"] = np.zeros(self.keys.shape, self.dtype)
            _scatter(to["keys"], where, d_keys)
            return
        entries, rows = _flat(d_keys), _gather(self.memory, where)
        to["w1"] = entries.T @ rows
        _scatter(to["memory"], where, (entries @ self.given["w1"]).reshape(*where.shape, self.memory.shape[-1]))


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(-1, array.shape[-1])


def _places(shape: tuple[int, ...], where: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of an array (..., N, d), its leading axes taken as one, that `where` (..., n, k) means; -1 stays."""
    lead = shape[:-2]
    entry = np.arange(int(np.prod(lead))).reshape(*lead, 1, 1) * shape[-2]
    return np.where(where < 0, -1, where + entry).reshape(-1)


def _scatter(to: NDArray[Any], where: NDArray[np.int64], rows: NDArray[Any]) -> None:
    places = _places(to.shape, where)
    real = places >= 0
    np.add.at(_flat(to), places[real], _flat(rows)[real])


def _gather(array: NDArray[Any], where: NDArray[np.int64]) -> NDArray[Any]:
    """The rows at `where`, zeros for -1."""
    places = _places(array.shape, where)
    rows = np.zeros((len(places), array.shape[-1]), array.dtype)
    rows[places >= 0] = _flat(array)[places[places >= 0]]
    return rows
