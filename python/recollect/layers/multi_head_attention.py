# SPDX-License-Identifier: BSD-3-Clause
"""Multi-head attention: self, cross, masked and causal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _array
from .._attention_operands import Causal
from .._core import core
from .._separation import Separation, split
from .._vjp import vjp
from ..attention import attend
from ._base import Array, Gradients, Layer, Tape, xavier_uniform
from ._functions import linear, merge_heads, projected, split_heads
from ._state_dict import plain_arrays, renamed, split_projections


class MultiHeadAttentionGradients(NamedTuple):
    """What `MultiHeadAttention.backward` returns; an input that was not given has None, its part is in the one that stood for it."""

    query: Array
    key: Array | None
    value: Array | None
    parameters: Gradients


class MultiHeadAttention(Layer[MultiHeadAttentionGradients]):
    """Attention of several heads, each with its own projections of queries, keys and values.

    ::

        head_h = attend(Q Wq_h^T + bq_h, K Wk_h^T + bk_h, V Wv_h^T + bv_h)        out = [head_1, ..., head_H] Wo^T + bo

    Parameters
    ----------
    width : int
        Length of a query and of an output.
    heads : int
        H, how many heads.
    key_width, value_width : int, optional
        Length of a key and of a value; `width` if not given.
    head_width : int, optional
        d, the length of a projected query, key and value of one head; width / heads if not given.
    separation : str or (str, number)
        How scores become weights; `recollect.separations` lists the names.
    bias : bool
        Whether the four projections have a bias.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.

    Raises
    ------
    ValueError
        A size below 1; heads that do not divide the width, without a `head_width`.
    TypeError
        A dtype other than float32 and float64, a size that is no whole number.

    Notes
    -----
    Parameters, with weights (out, in) as PyTorch has them: ``query.weight`` (H d, width), ``key.weight`` (H d, key_width),
    ``value.weight`` (H d, value_width), ``output.weight`` (width, H d), and a ``.bias`` each; rows h d ... (h + 1) d of the first
    three, and those columns of the last, belong to head h. torch.nn.MultiheadAttention stacks the first three in ``in_proj_weight``;
    `load_state_dict` takes its arrays. Weights start as U(-a, a), a = sqrt(6 / (in + out)), biases as 0.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> rng = np.random.default_rng(0)
    >>> layer = rc.layers.MultiHeadAttention(8, 2, rng=rng, dtype=np.float64)
    >>> x = rng.standard_normal((3, 5, 8))
    >>> out, tape = layer.forward(x, causal=True)
    >>> d_x, d_key, d_value, gradients = layer.backward(tape, np.ones_like(out))
    >>> out.shape, d_x.shape, d_key, gradients["query.weight"].shape
    ((3, 5, 8), (3, 5, 8), None, (8, 8))
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        head_width: int | None = None,
        separation: Separation = "softmax",
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(dtype, rng)
        self.width, self.heads = self._count("width", width), self._count("heads", heads)
        core.separation_margin(self.name, *split(self.name, separation))  # refuses what is none
        self.separation = separation
        self.key_width = self.width if key_width is None else self._count("key_width", key_width)
        self.value_width = self.width if value_width is None else self._count("value_width", value_width)
        if head_width is None:
            self.head_width = self._head_width("heads", self.width, self.heads)
        else:
            self.head_width = self._count("head_width", head_width)
        inner = self.heads * self.head_width
        self._declare_linear("query", self.width, inner, bias, xavier_uniform)
        self._declare_linear("key", self.key_width, inner, bias, xavier_uniform)
        self._declare_linear("value", self.value_width, inner, bias, xavier_uniform)
        self._declare_linear("output", inner, self.width, bias, xavier_uniform)
        self._begin(rng)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the parameters from the arrays of a torch.nn.MultiheadAttention, by its names: ``in_proj_weight`` or ``q_proj_weight``,
        ``k_proj_weight``, ``v_proj_weight``; ``in_proj_bias``; ``out_proj.weight`` and ``out_proj.bias``.

        Raises
        ------
        ValueError
            A name that is missing or unknown (``bias_k`` and ``bias_v`` have no counterpart here), a shape that does not fit.
        TypeError
            No mapping, an array whose dtype is no number.
        """
        arrays = renamed(plain_arrays(self.name, state_dict), {"out_proj.": "output."})
        rows = dict.fromkeys(("query", "key", "value"), self.heads * self.head_width)
        self._load(split_projections(self.name, arrays, rows, rows))

    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        causal: Causal = False,
        mask: ArrayLike | None = None,
        key_padding_mask: ArrayLike | None = None,
    ) -> Array:
        return self.forward(query, key, value, causal=causal, mask=mask, key_padding_mask=key_padding_mask)[0]

    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        causal: Causal = False,
        mask: ArrayLike | None = None,
        key_padding_mask: ArrayLike | None = None,
    ) -> tuple[Array, Tape[MultiHeadAttentionGradients]]:
        """Attends from queries to keys; with `query` alone, self attention.

        Parameters
        ----------
        query : array (..., n, width)
        key : array (..., m, key_width), optional
            `query` if not given.
        value : array (..., m, value_width), optional
            `key` if not given.
        causal : bool or 'top-left'
            As in `recollect.attention.attend`.
        mask : bool array, broadcast to (..., H, n, m), optional
            True where a query may attend to a key; a mask for each batch entry is (B, 1, n, m).
        key_padding_mask : bool array (..., m), optional
            True where a key is padding, as PyTorch has it. Alone it costs nothing of size n m. Padding must be finite, for the sake
            of the gradients of projections.

        Returns
        -------
        array (..., n, width)
            ``bo`` for a query that may attend to nothing.
        Tape
            For `backward`, which gives ``(query, key, value, parameters)``.

        Raises
        ------
        ValueError
            A shape that does not fit, an unknown causal rule.
        TypeError
            A dtype that is no number, a mask that is not bool, an array of another device, a tensor that requires grad.

        Notes
        -----
        O((n + m) width H d) for the projections and O(n m H d) for attention, in time; the projections are kept, (n + m) H d numbers.
        """
        self._check_parameters()
        q = self._input("query", query, f"(..., n, width={self.width})", self.width)
        k = q if key is None else self._input("key", key, f"(..., m, key_width={self.key_width})", self.key_width)
        v = (
            k
            if value is None
            else self._input("value", value, f"(..., m, value_width={self.value_width})", self.value_width)
        )
        for name, array, expected in (
            ("query", k, self.key_width),
            ("key" if key is not None else "query", v, self.value_width),
        ):
            if array.shape[-1] != expected:
                raise ValueError(
                    f"{self.name}: {name} has shape {array.shape}; expected (..., m, {expected}) where it stands for another"
                )
        if k.shape[-2] != v.shape[-2]:
            raise ValueError(
                f"{self.name}: value has shape {v.shape}; expected as many rows as key has, m={k.shape[-2]}"
            )
        leading = _array.leading_axes(self.name, ("query", q, 2), ("key", k, 2), ("value", v, 2))
        shape = (*leading, self.heads, q.shape[-2], k.shape[-2])
        keep = self._keep(mask, key_padding_mask, "key_padding_mask", shape, k.shape[:-1])
        if causal not in (False, True, "top-left"):
            raise ValueError(f"{self.name}: causal is {causal!r}; expected False, True or 'top-left'")

        p, heads = self.parameters, self.heads
        (q_heads, back_q), (k_heads, back_k), (v_heads, back_v) = (
            projected(x, p, name, heads) for x, name in ((q, "query"), (k, "key"), (v, "value"))
        )
        read, back_attend = vjp(attend, q_heads, k_heads, v_heads, causal=causal, mask=keep, separation=self.separation)
        out, back_output = linear(merge_heads(read), p, "output")

        def pullback(d_out: Array) -> MultiHeadAttentionGradients:
            gradients: Gradients = {}
            inner = back_attend(split_heads(back_output(d_out, gradients), heads))
            d_query, d_key = back_q(inner.query, gradients), back_k(inner.key, gradients)
            d_value = back_v(inner.value, gradients)
            if value is None:
                d_key = d_key + d_value
            if key is None:
                d_query = d_query + d_key
            ordered = {name: gradients[name] for name in p}
            return MultiHeadAttentionGradients(
                d_query, None if key is None else d_key, None if value is None else d_value, ordered
            )

        return out, Tape(self, out.shape, pullback)
