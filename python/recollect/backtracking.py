# SPDX-License-Identifier: BSD-3-Clause
"""Sparse attentive backtracking: recurrent networks that keep some of their past states and are reminded of a few of them.

Gradients go back a few steps at a time, and over any distance through the reminders (Ke et al. 2018,
https://arxiv.org/abs/1809.03702). What is computed, and which edges carry gradient, is written down in
``recollect/spec/backtracking.hpp``.

>>> import numpy as np, recollect as rc
>>> rng = np.random.default_rng(0)
>>> model = rc.backtracking.SparseBacktrackingLSTM(3, 8, k_top=2, k_att=2, k_trunc=4, rng=rng)
>>> outputs, tape = model.forward(rng.standard_normal((5, 20, 3)))
>>> outputs.shape
(5, 20, 16)
>>> d_x, gradients = model.backward(tape, np.ones_like(outputs))
>>> for name, parameter in model.parameters.items():
...     parameter -= 0.01 * gradients[name]
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from ._recurrent import Recurrent
from ._recurrent_state import State
from ._recurrent_tape import RecurrentGradients, RecurrentTape, ReminderGraph
from ._sparse_read import SparseRead, project, sparse_read

__all__ = [
    "GRU",
    "LSTM",
    "RecurrentGradients",
    "RecurrentTape",
    "ReminderGraph",
    "SparseBacktrackingGRU",
    "SparseBacktrackingLSTM",
    "SparseRead",
    "State",
    "project",
    "sparse_read",
]


class SparseBacktrackingLSTM(Recurrent):
    """An LSTM that is reminded of its own past: sparse attentive backtracking.

    ::

        hhat_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1})                  t = 1, 2, ...
        a_i = w3 . tanh(W1 m_i + W2 hhat_t)                        for every microstate m_i stored before t
        w = relu(a - the (k_top + 1)-th largest a), divided by its sum
        s_t = sum_i w_i m_i,    h_t = hhat_t + s_t                 outputs [h_t, s_t]
        if t mod k_att = 0: h_t becomes a microstate

    With at most `k_top` microstates w is the softmax of a; if all that are kept tie with the threshold w is uniform over them; with
    none s is 0. Among equal scores the earlier microstate comes first. Backward is the exact gradient but for the edges from step t - 1
    to step t, which carry none where (t - 1) mod k_trunc = 0; so a gradient that reaches a state, from its output or through a reminder,
    goes on to the start of the state's own window of `k_trunc` steps, and from any state on through what it was itself reminded of.

    Parameters
    ----------
    input_size : int
        D, length of an input.
    hidden_size : int
        H, length of a state.
    k_top : int or None
        How many microstates are read; 0: none, a plain LSTM; None: all, by a softmax (self-attention over the stored states).
    k_att : int
        Every `k_att`-th state is stored.
    k_trunc : int or None
        Length of a window; None: gradients go back to the first step.
    attention_size : int, optional
        A, width of the score's hidden layer; `hidden_size` if not given.
    max_memories : int, optional
        Only so many microstates, those stored last, can be read, and no more are kept in a state. All if not given.
    reminders : bool
        False: every microstate is a constant for the gradient, as value and in its score (the paper's ablation of mental updates).
    compat : 'released', optional
        Repeat the paper's public code instead of the paper, to compare with it: the score w3[:H] . tanh(hhat) + w3[H:] . tanh(m); a
        zero vector as first microstate; raw scores as weights with at most `k_top` microstates; otherwise
        relu(a - k_top-th largest - 1e-7) divided by its sum + 1e-7; windows that start where t mod k_trunc = 0.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.

    Raises
    ------
    ValueError
        A size below 1, k_top below 0, an unknown `compat`, `attention_size` with ``compat="released"``.
    TypeError
        A size that is no whole number, a dtype other than float32 and float64, an `rng` that is none.

    Notes
    -----
    ``parameters``, to be written in place: ``weight_ih`` (4 H, D), ``weight_hh`` (4 H, H), ``bias_ih``, ``bias_hh`` (4 H,), gates in the
    order input, forget, cell, output, as in torch.nn.LSTMCell, all U(-1/sqrt(H), 1/sqrt(H)); then ``w1`` (A, H), ``w2`` (A, H), uniform as
    of Glorot and Bengio, ``w3`` (A,), U(-1/sqrt(A), 1/sqrt(A)). They are drawn in this order. With ``compat="released"`` there are no w1
    and w2, and ``w3`` is (2 H,), N(0, 0.01^2). With `k_top` 0 the gradients of w1, w2 and w3 are zero.

    Methods: ``init(rng)``; ``forward(x, state=None)``, ``backward(tape, d_outputs)``; ``model(x, state=None)``, the outputs without a tape;
    ``initial_state(batch)`` and ``step(x, state)`` for streams; ``save(path)`` and ``load(path)``.

    In a stream far longer than the sequences it was trained on, each from a state of zeros, h = hhat + s can grow without bound: what is
    read holds what was read before (column `streams` of ``bench/experiments/characters.py``). A state begun anew, as in training, ends
    that.

    Cost of a step and row: O(D H + H^2 + A H + N A) for N microstates, 2 k_top rows read; the tape is O(T (H + k_top)) numbers a row.
    All results have the same bits for any number of threads; outputs also for any batch, and for a sequence given whole or in pieces.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> model = rc.backtracking.SparseBacktrackingLSTM(2, 4, k_top=3, k_att=2, k_trunc=2)
    >>> outputs, tape = model.forward(np.ones((1, 12, 2)))
    >>> tape.weights.shape, bool(np.allclose(tape.weights[:, 2:].sum(axis=-1), 1))
    ((1, 12, 3), True)
    >>> state = model.initial_state(1)
    >>> steps = [model.step(np.ones((1, 2)), state) for _ in range(12)]
    >>> bool((np.stack(steps, axis=1) == outputs).all()), state.count
    (True, 6)
    """

    cell = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        k_top: int | None,
        k_att: int,
        k_trunc: int | None,
        attention_size: int | None = None,
        max_memories: int | None = None,
        reminders: bool = True,
        compat: Literal["released"] | None = None,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        options: dict[str, Any] = dict(k_top=k_top, k_att=k_att, k_trunc=k_trunc, max_memories=max_memories)
        options |= dict(attention_size=attention_size, reminders=reminders, compat=compat)
        super().__init__(input_size, hidden_size, options, rng, dtype)


class SparseBacktrackingGRU(SparseBacktrackingLSTM):
    """A gated recurrent unit that is reminded of its own past: `SparseBacktrackingLSTM` with another cell.

    ::

        r, z = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h)          each with rows of its own
        n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))
        hhat_t = (1 - z) * n + z * hhat_{t-1}

    and then as there. h_{t-1} includes what step t - 1 was reminded of; what the cell interpolates does not, since reminders would add up
    in it without bound. With ``k_top=0`` it is the usual cell.

    Parameters, errors, methods and cost are those of `SparseBacktrackingLSTM`. ``weight_ih`` is (3 H, D), ``weight_hh`` (3 H, H), the biases
    (3 H,), gates in the order reset, update, new, as in torch.nn.GRUCell (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> model = rc.backtracking.SparseBacktrackingGRU(2, 4, k_top=3, k_att=2, k_trunc=2)
    >>> model(np.ones((1, 12, 2))).shape
    (1, 12, 8)
    """

    cell = "gru"


class LSTM(Recurrent):
    """A long short-term memory, with full or truncated backpropagation through time.

    ::

        i, f, o = sigmoid, g = tanh  of  W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
        c_t = f * c_{t-1} + i * g,    h_t = o * tanh(c_t)          outputs h_t

    It is `SparseBacktrackingLSTM` with ``k_top=0``, to the last bit, without the parameters of the score and without s in the outputs.

    Parameters
    ----------
    input_size : int
        D, length of an input.
    hidden_size : int
        H, length of a state.
    k_trunc : int, optional
        No gradient from step t to step t - 1 where (t - 1) mod k_trunc = 0. Full backpropagation if not given.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.

    Raises
    ------
    ValueError, TypeError
        As `SparseBacktrackingLSTM`.

    Notes
    -----
    Hochreiter and Schmidhuber 1997. ``parameters`` has the names, shapes and gates of torch.nn.LSTMCell: ``weight_ih`` (4 H, D), ``weight_hh``
    (4 H, H), ``bias_ih``, ``bias_hh`` (4 H,). Methods as in `SparseBacktrackingLSTM`; outputs are (B, T, H).

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> outputs, tape = rc.backtracking.LSTM(2, 4, k_trunc=5).forward(np.ones((1, 12, 2)))
    >>> outputs.shape
    (1, 12, 4)
    """

    cell = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        k_trunc: int | None = None,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        options: dict[str, Any] = dict(k_top=0, k_att=1, k_trunc=k_trunc, max_memories=None)
        options |= dict(attention_size=None, reminders=True, compat=None)
        super().__init__(input_size, hidden_size, options, rng, dtype, plain=True)


class GRU(LSTM):
    """A gated recurrent unit, with full or truncated backpropagation through time: `LSTM` with the cell of `SparseBacktrackingGRU`.

    Parameters and errors as `LSTM`; outputs h_t (B, T, H); ``parameters`` as torch.nn.GRUCell.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rc.backtracking.GRU(2, 4)(np.ones((1, 12, 2))).shape
    (1, 12, 4)
    """

    cell = "gru"
