"""Layers: multi-head self attention with its projections, forward, and forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from . import oracle
from .peers import peer


def inputs(case):
    """Parameters are those of torch.nn.MultiheadAttention, by its names."""
    rng = np.random.default_rng(0)
    B, T, D = (case.shape[letter] for letter in "BTD")

    def drawn(*shape):
        return rng.standard_normal(shape, dtype=case.dtype)

    weights = {
        "in_proj_weight": drawn(3 * D, D) / np.asarray(D**0.5, case.dtype),
        "in_proj_bias": drawn(3 * D),
        "out_proj.weight": drawn(D, D) / np.asarray(D**0.5, case.dtype),
        "out_proj.bias": drawn(D),
    }
    return SimpleNamespace(x=drawn(B, T, D), d_out=drawn(B, T, D), weights=weights)


def _layer(rc, case, x):
    layer = rc.layers.MultiHeadAttention(case.shape["D"], case.shape["H"], dtype=case.dtype)
    layer.load_state_dict(x.weights)
    return layer


def ours(rc, case, x):
    layer = _layer(rc, case, x)
    return lambda: layer.forward(x.x)[0]


def training_ours(rc, case, x):
    """Forward and backward; the output and the gradient of the input are compared."""
    layer = _layer(rc, case, x)

    def run():
        out, tape = layer.forward(x.x)
        return out, layer.backward(tape, x.d_out).query

    return run


def _projected(case, x, dtype):
    """Queries, keys and values of the first batch entry, (heads, T, d)."""
    T, D, H = (case.shape[letter] for letter in "TDH")
    stacked = x.x[0].astype(dtype) @ x.weights["in_proj_weight"].astype(dtype).T + x.weights["in_proj_bias"]
    return [part.reshape(T, H, D // H).swapaxes(0, 1) for part in np.split(stacked, 3, axis=1)]


def _attention(q, k, dtype):
    scores = q @ k.swapaxes(-1, -2) / dtype(q.shape[-1]) ** dtype(0.5)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True), float(np.abs(scores).max())


def _together(heads):
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


def truth(case, x):
    dtype = oracle.above(case.dtype)
    q, k, v = _projected(case, x, dtype)
    p, largest = _attention(q, k, dtype)
    out = _together(p @ v) @ x.weights["out_proj.weight"].astype(dtype).T + x.weights["out_proj.bias"]
    return oracle.Truth(((slice(0, 1), out[None]),), largest)


def training_truth(case, x):
    dtype = oracle.above(case.dtype)
    q, k, v = _projected(case, x, dtype)
    p, largest = _attention(q, k, dtype)
    merged = x.d_out[0].astype(dtype) @ x.weights["out_proj.weight"].astype(dtype)
    g = merged.reshape(q.shape[1], q.shape[0], -1).swapaxes(0, 1)
    d_p = g @ v.swapaxes(-1, -2)
    d_s = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True)) / dtype(q.shape[-1]) ** dtype(0.5)
    parts = (d_s @ k, d_s.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g)
    d_x = np.concatenate([_together(part) for part in parts], axis=1) @ x.weights["in_proj_weight"].astype(dtype)
    return oracle.Truth((*truth(case, x).parts, (slice(0, 1), d_x[None])), largest)


def _torch(case, x):
    import torch

    layer = torch.nn.MultiheadAttention(case.shape["D"], case.shape["H"], batch_first=True)
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in x.weights.items()})
    return layer, torch.from_numpy(x.x)


@peer("multi_head_attention", "torch-mha")
def _torch_forward(case, x):
    """In its inference mode, with its fast path."""
    import torch

    layer, given = _torch(case, x)
    layer.eval()

    def run():
        with torch.inference_mode():
            return layer(given, given, given, need_weights=False)[0]

    return run


@peer("multi_head_attention_training", "torch-mha")
def _torch_training(case, x):
    import torch

    layer, given = _torch(case, x)
    given.requires_grad_()
    d_out, parameters = torch.from_numpy(x.d_out), list(layer.parameters())

    def run():
        out = layer(given, given, given, need_weights=False)[0]
        return out.detach(), torch.autograd.grad(out, [given, *parameters], d_out)[0]

    return run
