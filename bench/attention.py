"""Attention: inputs, ours, truth and peers of the ops named attend*. `keep` is who may attend to what, in one place for all of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from . import oracle
from .peers import peer


def keep(case, rows: np.ndarray) -> np.ndarray:
    """(rows, N) True where a query may attend; the last keys are padding in the padded case."""
    n, N = case.shape["n"], case.shape["N"]
    if case.op.startswith("attend_causal"):
        return np.arange(N) <= rows[:, None] + (N - n)
    if case.op.startswith("attend_padded"):
        return np.broadcast_to(np.arange(N) < N - N // 10, (len(rows), N))
    return np.ones((len(rows), N), bool)


def inputs(case):
    rng = np.random.default_rng(0)
    H, n, N, d = (case.shape[letter] for letter in "HnNd")
    shape = {"query": n, "key": N, "value": N, "d_out": n}
    return SimpleNamespace(
        **{name: rng.standard_normal((H, length, d), dtype=case.dtype) for name, length in shape.items()},
        beta=case.beta_scale / d**0.5,
    )


def _options(case):
    if case.op.startswith("attend_causal"):
        return {"causal": True}
    if "k" in case.shape:
        return {"top_k": case.shape["k"]}
    if case.op.startswith("attend_padded"):
        return {"mask": keep(case, np.array([0]))[0]}
    return {}


def ours(rc, case, x):
    attend, options = rc.attention.attend, _options(case)
    return lambda: attend(x.query, x.key, x.value, scale=x.beta, **options)


def backward_ours(rc, case, x):
    """The pullback alone."""
    _, pullback = rc.vjp(rc.attention.attend, x.query, x.key, x.value, scale=x.beta, **_options(case))

    def run():
        gradients = pullback(x.d_out)
        return gradients.query, gradients.key, gradients.value

    return run


def _weights(case, x, head, rows, dtype):
    scores = dtype(x.beta) * (x.query[head, rows].astype(dtype) @ x.key[head].astype(dtype).T)
    scores = np.where(keep(case, rows), scores, -np.inf)
    if "k" in case.shape:
        least = np.partition(scores, -case.shape["k"], axis=1)[:, -case.shape["k"], None]
        scores = np.where(scores >= least, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True), float(np.abs(scores[np.isfinite(scores)]).max())


def truth(case, x):
    rows, heads, dtype = oracle.some(case.shape["n"]), sorted({0, case.shape["H"] - 1}), oracle.above(case.dtype)
    parts = [_weights(case, x, head, rows, dtype) for head in heads]
    out = np.stack([p @ x.value[head].astype(dtype) for (p, _), head in zip(parts, heads, strict=True)])
    return oracle.Truth(((np.ix_(heads, rows), out),), max(largest for _, largest in parts))


def backward_truth(case, x):
    """All rows of one head: a key's gradient comes from every query."""
    dtype, every = oracle.above(case.dtype), np.arange(case.shape["n"])
    rows, columns = oracle.some(case.shape["n"]), oracle.some(case.shape["N"])
    p, largest = _weights(case, x, 0, every, dtype)
    query, key, value, d_out = (getattr(x, name)[0].astype(dtype) for name in ("query", "key", "value", "d_out"))
    d_p = d_out @ value.T
    d_s = p * (d_p - (p * d_p).sum(axis=1, keepdims=True)) * dtype(x.beta)
    parts = (d_s[rows] @ key, d_s[:, columns].T @ query, p[:, columns].T @ d_out)
    places = (rows, columns, columns)
    return oracle.Truth(tuple((np.ix_([0], at), part[None]) for at, part in zip(places, parts, strict=True)), largest)


def _torch_options(case):
    import torch

    if case.op.startswith("attend_causal"):
        return {"is_causal": True}
    if case.op.startswith("attend_padded"):
        return {"attn_mask": torch.from_numpy(keep(case, np.array([0])).copy())[None, None]}
    return {}


def _sdpa(case, x):
    import torch

    attend, options = torch.nn.functional.scaled_dot_product_attention, _torch_options(case)
    query, key, value = (torch.from_numpy(array)[None] for array in (x.query, x.key, x.value))
    return lambda: attend(query, key, value, scale=x.beta, **options)[0]


def _sdpa_backward(case, x):
    import torch

    tensors = [torch.from_numpy(array)[None].requires_grad_() for array in (x.query, x.key, x.value)]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, scale=x.beta, **_torch_options(case))
    d_out = torch.from_numpy(x.d_out)[None]
    return lambda: tuple(g[0] for g in torch.autograd.grad(out, tensors, d_out, retain_graph=True))


for _op in ("attend", "attend_causal", "attend_padded"):
    peer(_op, "torch-sdpa")(_sdpa)
    peer(f"{_op}_backward", "torch-sdpa")(_sdpa_backward)


@peer("attend_padded", "ours-unpadded", same_job=False)
def _unpadded(case, x):
    """What the padding mask costs: the same call without it."""
    import recollect as rc

    attend = rc.attention.attend
    return lambda: attend(x.query, x.key, x.value, scale=x.beta)


@peer("attend_top_k", "faiss", same_job=False)
def _faiss(case, x):
    """Only finds the keys; reading the values would come on top."""
    import faiss

    index = faiss.IndexFlatIP(case.shape["d"])
    index.add(x.key[0])
    return lambda: index.search(x.query[0], case.shape["k"])


@peer("attend_top_k", "torch-matmul-topk")
def _torch_top_k(case, x):
    import torch

    query, key, value = (torch.from_numpy(array) for array in (x.query, x.key, x.value))

    def run():
        scores, index = torch.topk(x.beta * (query @ key.mT), case.shape["k"])
        rows = torch.take_along_dim(value[:, None], index[..., None], dim=2)
        return (torch.softmax(scores, -1)[..., None] * rows).sum(2)

    return run
