# SPDX-License-Identifier: BSD-3-Clause
"""Layers: the library's ops with named parameters, forward and backward, without a framework.

Each is an object with ``parameters``, a dict of arrays by name to be written in place; ``init(rng)``; ``forward(...)``, which returns
the output and a tape; and ``backward(tape, d_out)``, which returns the gradients of the inputs and, last, those of the parameters by
name. ``layer(...)`` is the output alone.

>>> import numpy as np, recollect as rc
>>> rng = np.random.default_rng(0)
>>> layer = rc.layers.MultiHeadAttention(16, 4, rng=rng)
>>> out, tape = layer.forward(rng.standard_normal((2, 5, 16)))
>>> *_, gradients = layer.backward(tape, out)
>>> for name, parameter in layer.parameters.items():
...     parameter -= 0.01 * gradients[name]
"""

from .gaussian_head import GaussianHead, GaussianHeadGradients
from .hopfield import Hopfield, HopfieldGradients
from .hopfield_layer import HopfieldLayer, HopfieldLayerGradients
from .hopfield_pooling import HopfieldPooling, HopfieldPoolingGradients
from .layer_norm import LayerNorm, LayerNormGradients
from .multi_head_attention import MultiHeadAttention, MultiHeadAttentionGradients
from .transformer_encoder_block import TransformerEncoderBlock, TransformerEncoderBlockGradients, sinusoidal_positions

__all__ = [
    "GaussianHead",
    "GaussianHeadGradients",
    "Hopfield",
    "HopfieldGradients",
    "HopfieldLayer",
    "HopfieldLayerGradients",
    "HopfieldPooling",
    "HopfieldPoolingGradients",
    "LayerNorm",
    "LayerNormGradients",
    "MultiHeadAttention",
    "MultiHeadAttentionGradients",
    "TransformerEncoderBlock",
    "TransformerEncoderBlockGradients",
    "sinusoidal_positions",
]
