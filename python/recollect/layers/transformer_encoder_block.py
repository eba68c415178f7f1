# SPDX-License-Identifier: BSD-3-Clause
"""The encoder block of a Transformer, and the positions that are added to what goes into the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._attention_operands import Causal
from ._base import Array, Back, Gradients, Layer, Tape, ones, xavier_uniform, zeros
from ._functions import add, layer_norm, linear
from ._state_dict import plain_arrays, renamed, split_projections
from .multi_head_attention import MultiHeadAttention

_TORCH_NAMES = {
    "self_attn.out_proj.": "attention.output.",
    "self_attn.": "",
    "linear1.": "expand.",
    "linear2.": "contract.",
    "norm1.": "norm_attention.",
    "norm2.": "norm_feed_forward.",
}


def sinusoidal_positions(length: int, width: int, *, dtype: DTypeLike = np.float32) -> Array:
    """Position encodings.

    ::

        PE[t, 2 i] = sin(t / 10000^(2 i / width)),    PE[t, 2 i + 1] = cos(t / 10000^(2 i / width))

    Parameters
    ----------
    length, width : int
        How many positions t = 0, 1, ..., and how many numbers for each; an odd width ends with a sine.
    dtype : float32 or float64
        Of the result; computed in float64.

    Returns
    -------
    array (length, width)

    Raises
    ------
    ValueError
        A negative size.

    Notes
    -----
    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5.

    Examples
    --------
    >>> import recollect as rc
    >>> rc.layers.sinusoidal_positions(2, 4, dtype=float).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]])
    """
    for name, size in (("length", length), ("width", width)):
        if size < 0:
            raise ValueError(f"layers.sinusoidal_positions: {name} is {size}; expected at least 0")
    column = np.arange(width)
    angle = np.arange(length)[:, None] * 10000.0 ** (-(column - column % 2) / max(width, 1))
    return np.where(column % 2, np.cos(angle), np.sin(angle)).astype(dtype)


class TransformerEncoderBlockGradients(NamedTuple):
    """What `TransformerEncoderBlock.backward` returns."""

    x: Array
    parameters: Gradients


class TransformerEncoderBlock(Layer[TransformerEncoderBlockGradients]):
    """Self attention and a feed-forward network, each with a residual and a normalisation.

    ::

        post:  h = LN(x + MHA(x)),    out = LN(h + FFN(h))            FFN(z) = W2 relu(W1 z + b1) + b2
        pre:   h = x + MHA(LN(x)),    out = h + FFN(LN(h))

    Parameters
    ----------
    width, heads : int
        Of `MultiHeadAttention`.
    feed_forward : int
        How many units the feed-forward network has inside.
    norm : 'post' or 'pre'
        Where the normalisations are.
    bias : bool
        Whether the projections of attention and of the feed-forward network have a bias.
    eps : float
        Of both normalisations.
    dtype : float32 or float64
        Of the parameters and of the arithmetic; inputs are converted to it.
    rng : numpy.random.Generator, optional
        Draws the parameters; ``default_rng(0)`` if not given.

    Raises
    ------
    ValueError
        A size below 1, heads that do not divide the width, another `norm`.
    TypeError
        A dtype other than float32 and float64, a size that is no whole number.

    Notes
    -----
    Parameters: those of `MultiHeadAttention` after ``attention.``; ``expand.weight`` (feed_forward, width), W1, and
    ``contract.weight`` (width, feed_forward), W2, with ``.bias``; ``norm_attention`` and ``norm_feed_forward``, each ``.weight`` and
    ``.bias`` (width,). Weights start as U(-a, a), a = sqrt(6 / (in + out)), normalisations as 1 and 0, biases as 0. There is no
    dropout. Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1; pre-norm: Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745.

    Examples
    --------
    >>> import numpy as np, recollect as rc
    >>> block = rc.layers.TransformerEncoderBlock(8, 2, 16, norm="pre", dtype=np.float64)
    >>> x = np.random.default_rng(0).standard_normal((3, 5, 8)) + rc.layers.sinusoidal_positions(5, 8)
    >>> out, tape = block.forward(x, causal=True)
    >>> d_x, gradients = block.backward(tape, np.ones_like(out))
    >>> d_x.shape, gradients["attention.query.weight"].shape, gradients["expand.bias"].shape
    ((3, 5, 8), (8, 8), (16,))
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        *,
        norm: Literal["post", "pre"] = "post",
        bias: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(dtype, rng)
        if norm not in ("post", "pre"):
            raise ValueError(f"{self.name}: norm is {norm!r}; expected 'post' or 'pre'")
        self.width, self.feed_forward = self._count("width", width), self._count("feed_forward", feed_forward)
        self.heads, self.norm, self.eps = self._count("heads", heads), norm, self._positive("eps", eps)
        self._head_width("heads", self.width, self.heads)
        self.attention = MultiHeadAttention(self.width, self.heads, bias=bias, dtype=dtype)
        self.attention.name = self.name
        self._adopt(self.attention, "attention.")
        self._declare_linear("expand", self.width, self.feed_forward, bias, xavier_uniform)
        self._declare_linear("contract", self.feed_forward, self.width, bias, xavier_uniform)
        for name in ("norm_attention", "norm_feed_forward"):
            self._declare(f"{name}.weight", (self.width,), ones)
            self._declare(f"{name}.bias", (self.width,), zeros)
        self._begin(rng)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the parameters from the arrays of a torch.nn.TransformerEncoderLayer, by its names: ``self_attn.in_proj_weight`` and
        so on, ``linear1``, ``linear2``, ``norm1`` and ``norm2``.

        Raises
        ------
        ValueError
            A name that is missing or unknown, a shape that does not fit.
        TypeError
            No mapping, an array whose dtype is no number.
        """
        arrays = renamed(plain_arrays(self.name, state_dict), _TORCH_NAMES)
        rows = dict.fromkeys(("attention.query", "attention.key", "attention.value"), self.width)
        self._load(split_projections(self.name, arrays, rows, rows))

    def __call__(
        self,
        x: ArrayLike,
        *,
        causal: Causal = False,
        mask: ArrayLike | None = None,
        key_padding_mask: ArrayLike | None = None,
    ) -> Array:
        return self.forward(x, causal=causal, mask=mask, key_padding_mask=key_padding_mask)[0]

    def forward(
        self,
        x: ArrayLike,
        *,
        causal: Causal = False,
        mask: ArrayLike | None = None,
        key_padding_mask: ArrayLike | None = None,
    ) -> tuple[Array, Tape[TransformerEncoderBlockGradients]]:
        """One block.

        Parameters
        ----------
        x : array (..., n, width)
        causal, mask, key_padding_mask
            As in `MultiHeadAttention.forward`, with m = n.

        Returns
        -------
        array (..., n, width)
        Tape
            For `backward`, which gives ``(x, parameters)``.

        Raises
        ------
        ValueError, TypeError
            As `MultiHeadAttention.forward`.

        Notes
        -----
        O(n width (width + feed_forward) + n^2 width) time; the tape keeps O(n (width + feed_forward)) numbers.
        """
        self._check_parameters()
        array = self._input("x", x, f"(..., n, width={self.width})", self.width)

        def attend(z: Array) -> tuple[Array, Back]:
            out, tape = self.attention.forward(z, causal=causal, mask=mask, key_padding_mask=key_padding_mask)

            def back(d_out: Array, into: Gradients) -> Array:
                d_z, _, _, gradients = tape.pullback(d_out)
                for name, g in gradients.items():
                    add(into, f"attention.{name}", g)
                return d_z

            return out, back

        h, back_first = self._residual(array, attend, "norm_attention.")
        out, back_second = self._residual(h, self._feed, "norm_feed_forward.")

        def pullback(d_out: Array) -> TransformerEncoderBlockGradients:
            into: Gradients = {}
            d_x = back_first(back_second(d_out, into), into)
            return TransformerEncoderBlockGradients(d_x, {name: into[name] for name in self._starts})

        return out, Tape(self, out.shape, pullback)

    def _residual(self, x: Array, branch: Callable[[Array], tuple[Array, Back]], norm: str) -> tuple[Array, Back]:
        """``LN(x + branch(x))``, or ``x + branch(LN(x))``."""
        if self.norm == "post":
            inner, back_branch = branch(x)
            out, back_norm = layer_norm(x + inner, self.parameters, norm, self.eps)
        else:
            normal, back_norm = layer_norm(x, self.parameters, norm, self.eps)
            inner, back_branch = branch(normal)
            out = x + inner

        def back(d_out: Array, into: Gradients) -> Array:
            if self.norm == "post":
                d_sum = back_norm(d_out, into)
                return d_sum + back_branch(d_sum, into)
            return d_out + back_norm(back_branch(d_out, into), into)

        return out, back

    def _feed(self, z: Array) -> tuple[Array, Back]:
        expanded, back_expand = linear(z, self.parameters, "expand")
        active = expanded > 0
        out, back_contract = linear(np.where(active, expanded, 0), self.parameters, "contract")
        return out, lambda d_out, into: back_expand(np.where(active, back_contract(d_out, into), 0), into)
