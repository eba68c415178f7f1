"""What others have for a CUDA device, by name: PyTorch's backends of attention, and what is installed of xformers, CuPy and
flash-linear-attention. Each is `call(i)` on input set i."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

Peers = dict[str, Callable[[int], Any]]

SDPA_BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def sdpa(torch: Any, q: list[Any], x: list[Any], scale: float) -> Peers:
    """Every backend, with the patterns as keys and values at once, and with a copy of them as values."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(backend: Any, query: Any, key: Any, value: Any) -> Any:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                query[None, None], key[None, None], value[None, None], scale=scale
            )

    copies = [a.clone() for a in x]
    peers: Peers = {}
    for name in SDPA_BACKENDS:
        backend = getattr(SDPBackend, name)
        for kind, values in (("k is v", x), ("k, v apart", copies)):
            peers[f"SDPA {name}, {kind}"] = lambda i, b=backend, v=values: call(b, q[i], x[i], v[i])
    return peers


def sdpa_gradient(torch: Any, given: Sequence[Any], d_out: Any, scale: float) -> Peers:
    """Every backend, forward and backward: of queries, keys and values, or of queries and of what is keys and values at once."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(backend: Any) -> Any:
        leaves = [a.detach().requires_grad_() for a in given]
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(leaves[0], leaves[1], leaves[-1], scale=scale)
            return torch.autograd.grad(out, leaves, d_out)

    return {f"SDPA {name}": lambda _, n=name: call(getattr(SDPBackend, n)) for name in SDPA_BACKENDS}


def split_k(q: list[Any], x: list[Any], scale: float) -> Peers:
    """Triton's split-K of xformers, made for few queries."""
    if not installed("xformers"):
        return {}

    def call(i: int) -> Any:
        from xformers.ops import fmha

        rows, memory = q[i][None, :, None], x[i][None, :, None]  # (batch, rows, heads, d)
        return fmha.memory_efficient_attention_forward(rows, memory, memory, scale=scale, op=fmha.triton_splitk.FwOp)

    return {"xformers split-K": call}


def cupy_softmax(q: list[Any], x: list[Any], scale: float) -> Peers:
    """The definition in CuPy, float32: all scores in memory."""
    if not installed("cupy") or str(q[0].dtype) != "torch.float32":
        return {}

    def call(i: int) -> Any:
        import cupy

        rows, memory = cupy.from_dlpack(q[i]), cupy.from_dlpack(x[i])
        scores = scale * (rows @ memory.T)
        weights = cupy.exp(scores - scores.max(-1, keepdims=True))
        return weights @ memory / weights.sum(-1, keepdims=True)

    return {"CuPy": call}


def fla(rule: str, q: list[Any], k: list[Any], v: list[Any], beta: list[Any], states: list[Any]) -> Peers:
    """flash-linear-attention, which wants (B, T, H, d): the chunk form, or for one token the recurrent one."""
    if not installed("fla"):
        return {}
    rows = [[a.transpose(1, 2).contiguous() for a in each] for each in (q, k, v, beta)]
    how = {"scale": 1.0, "output_final_state": True}

    def call(i: int) -> Any:
        from fla.ops import delta_rule, linear_attn

        given = [each[i] for each in rows]
        if rule == "sum rule":
            return linear_attn.chunk_linear_attn(*given[:3], initial_state=states[i], normalize=False, **how)
        one = given[0].shape[1] == 1
        run = delta_rule.fused_recurrent_delta_rule if one else delta_rule.chunk_delta_rule
        return run(*given, initial_state=states[i], **how)

    return {"flash-linear-attention": call}


def fla_gradient(given: dict[str, Any], d_out: Any) -> Peers:
    """The same of flash-linear-attention, with autograd."""
    if not installed("fla"):
        return {}
    import torch

    rows = {name: a.transpose(1, 2).contiguous().requires_grad_() for name, a in given.items()}
    cotangent = d_out.transpose(1, 2).contiguous()

    def call(_: int) -> Any:
        from fla.ops import delta_rule, gated_delta_rule

        q, k, v, beta = (rows[name] for name in ("query", "key", "value", "beta"))
        if "log_decay" in rows:
            out, _ = gated_delta_rule.chunk_gated_delta_rule(q, k, v, rows["log_decay"], beta, scale=1.0)
        else:
            out, _ = delta_rule.chunk_delta_rule(q, k, v, beta, scale=1.0)
        return torch.autograd.grad(out, list(rows.values()), cotangent)

    return {"flash-linear-attention": call}
