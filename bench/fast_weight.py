"""Fast weights: inputs, ours, truth and peers of the ops named delta*, gated*, linear*, favor*. Everything from the equations

S <- g_t S,    S <- S + beta_t k_t (v_t - S^T k_t)^T,    o_t = S^T q_t        (the sum rule without S^T k_t)
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from . import oracle
from .peers import peer


def inputs(case):
    rng = np.random.default_rng(0)
    H, T, d = (case.shape[letter] for letter in "HTd")
    query, key, value, d_out = (rng.standard_normal((H, T, d), dtype=case.dtype) for _ in range(4))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    beta = rng.random((H, T), dtype=case.dtype)
    by_channel = case.op.startswith("kimi")
    decay = 1 - np.asarray(0.1, case.dtype) * rng.random((H, T, d) if by_channel else (H, T), dtype=case.dtype)
    state = rng.standard_normal((H, d, d), dtype=case.dtype) if case.op.startswith("delta_step") else None
    if not case.op.startswith(("gated", "kimi")):
        decay = None
    matrix = rng.standard_normal((case.shape["m"], d)) if case.op.startswith("favor") else None
    return SimpleNamespace(
        query=query, key=key, value=value, beta=beta, decay=decay, d_out=d_out, state=state, matrix=matrix
    )


def _call(rc, case, x):
    """The op with its operands, and its options."""
    if case.op.startswith("favor"):
        return rc.fastweight.linear_attention, (x.query, x.key, x.value), {"feature_map": rc.fastweight.favor(x.matrix)}
    if case.op.startswith("linear"):
        return rc.fastweight.linear_attention, (x.query, x.key, x.value), {"feature_map": None, "normalize": False}
    return rc.fastweight.delta_rule, (x.query, x.key, x.value, x.beta), {"decay": x.decay}


def ours(rc, case, x):
    op, operands, options = _call(rc, case, x)
    return lambda: op(*operands, **options)


def gradient_ours(rc, case, x):
    """Forward and backward together, as a training step needs them."""
    op, operands, options = _call(rc, case, x)

    def run():
        gradients = rc.vjp(op, *operands, **options)[1](x.d_out)
        return gradients.query, gradients.key, gradients.value

    return run


def step_ours(rc, case, x):
    """One token for every head, the state changed where it lies: every call goes on from the one before."""
    state, out, step = x.state.copy(), np.empty_like(x.value), rc.fastweight.delta_rule
    return lambda: step(x.query, x.key, x.value, x.beta, state=state, out=out, out_state=state)


def _decays(case, x, head, t, dtype):
    return 1 if x.decay is None else np.atleast_1d(x.decay[head, t].astype(dtype))[:, None]


def _scan(case, x, head, dtype):
    """Outputs and what was written, token by token."""
    q, k, v, beta = (array[head].astype(dtype) for array in (x.query, x.key, x.value, x.beta))
    S = np.zeros((q.shape[1], v.shape[1]), dtype) if x.state is None else x.state[head].astype(dtype)
    out, written = np.empty_like(v), np.empty_like(v)
    for t in range(len(q)):
        S = _decays(case, x, head, t, dtype) * S
        written[t] = v[t] if case.op.startswith("linear") else beta[t] * (v[t] - k[t] @ S)
        S = S + np.outer(k[t], written[t])
        out[t] = q[t] @ S
    return out, written


def truth(case, x):
    heads, dtype = sorted({0, case.shape["H"] - 1}), oracle.above(case.dtype)
    out = np.stack([_scan(case, x, head, dtype)[0] for head in heads])
    return oracle.Truth(((np.array(heads), out),), 1.0)


def gradient_truth(case, x):
    """The first head. G is the gradient of the state: backwards for keys and values, and a second scan forwards for queries and keys."""
    dtype, head = oracle.above(case.dtype), 0
    q, k, v, beta, g = (array[head].astype(dtype) for array in (x.query, x.key, x.value, x.beta, x.d_out))
    _, written = _scan(case, x, head, dtype)
    removes = not case.op.startswith("linear")
    d_q, d_k, d_w = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    G = np.zeros((q.shape[1], v.shape[1]), dtype)
    for t in reversed(range(len(q))):
        G = G + np.outer(q[t], g[t])
        d_k[t], d_w[t] = G @ written[t], k[t] @ G
        if removes:
            G = G - beta[t] * np.outer(k[t], d_w[t])
        G = _decays(case, x, head, t, dtype) * G
    S = np.zeros_like(G)
    for t in range(len(q)):
        S = _decays(case, x, head, t, dtype) * S
        if removes:
            d_k[t] -= beta[t] * (S @ d_w[t])
        S = S + np.outer(k[t], written[t])
        d_q[t] = S @ g[t]
    d_v = beta[:, None] * d_w if removes else d_w
    return oracle.Truth(tuple((np.array([head]), part[None]) for part in (d_q, d_k, d_v)), 1.0)


def _favor(x, matrix, exp, concatenate):
    """phi but for its factor, which a normaliser takes out."""
    x = x * x.shape[-1] ** -0.25
    scores, half = x @ matrix.T, (x * x).sum(-1)[..., None] / 2
    return concatenate([exp(scores - half), exp(-scores - half)], -1)


def favor_truth(case, x):
    """All weights of the first head, normalised."""
    q, k, v = (array[0].astype(np.float64) for array in (x.query, x.key, x.value))
    weights = np.tril(_favor(q, x.matrix, np.exp, np.concatenate) @ _favor(k, x.matrix, np.exp, np.concatenate).T)
    return oracle.Truth(((np.array([0]), (weights @ v / weights.sum(-1, keepdims=True))[None]),), 1.0)


def favor_gradient_truth(case, x):
    """With e_tf,s = phi(q)_tf phi(k)_sf g_t . (v_s - o_t) / n_t, its sums over s and over t are the gradients of log phi; the first head."""
    q, k, v, g = (array[0].astype(np.float64) for array in (x.query, x.key, x.value, x.d_out))
    d, m = q.shape[-1], len(x.matrix)
    phi_q, phi_k = (_favor(a, x.matrix, np.exp, np.concatenate) for a in (q, k))
    weights = np.tril(phi_q @ phi_k.T)
    weights_sum = weights.sum(-1, keepdims=True)
    out = weights @ v / weights_sum
    slopes = np.tril(g @ v.T - (g * out).sum(-1, keepdims=True)) / weights_sum

    def pulled(rows, d_log):
        both = d_log.sum(-1, keepdims=True)
        return d**-0.25 * ((d_log[:, :m] - d_log[:, m:]) @ x.matrix - both * d**-0.25 * rows)

    parts = (pulled(q, phi_q * (slopes @ phi_k)), pulled(k, phi_k * (slopes.T @ phi_q)), (weights / weights_sum).T @ g)
    return oracle.Truth(tuple((np.array([0]), part[None]) for part in parts), 1.0)


def _chunked(case, query, key, value, beta, size):
    """The chunk form in torch: with A the strict lower triangle of diag(beta) K K^T, (I + A) U = diag(beta) V, (I + A) W = diag(beta) K."""
    import torch

    H, T, d = query.shape
    q, k, v = (x.reshape(H, T // size, size, -1) for x in (query, key, value))
    lower = torch.ones(size, size, dtype=torch.bool).tril()
    scores = (q @ k.mT).masked_fill(~lower, 0)
    if case.op.startswith("linear"):
        u, w = v, None
    else:
        b = beta.reshape(H, T // size, size, 1)
        system = torch.eye(size, dtype=q.dtype) + ((b * k) @ k.mT).tril(-1)
        solved = torch.linalg.solve_triangular(system, torch.cat([b * v, b * k], -1), upper=False, unitriangular=True)
        u, w = solved.split([v.shape[-1], d], -1)
    state, out = q.new_zeros(H, d, v.shape[-1]), []
    for i in range(T // size):
        written = u[:, i] if w is None else u[:, i] - w[:, i] @ state
        out.append(q[:, i] @ state + scores[:, i] @ written)
        state = state + k[:, i].mT @ written
    return torch.cat(out, 1)


def _recurrent(case, query, key, value, beta):
    import torch

    H, T, d = query.shape
    state, out = query.new_zeros(H, d, value.shape[-1]), []
    for t in range(T):
        k, v = key[:, t, :, None], value[:, t, None, :]
        written = v if case.op.startswith("linear") else beta[:, t, None, None] * (v - k.mT @ state)
        state = state + k * written
        out.append(query[:, t, None, :] @ state)
    return torch.cat(out, 1)


def _tensors(x, grad=False):
    import torch

    tensors = [torch.from_numpy(array) for array in (x.query, x.key, x.value, x.beta)]
    return [tensor.clone().requires_grad_() for tensor in tensors] if grad else tensors


def _chunk_peer(size):
    def prepare(case, x):
        tensors = _tensors(x)
        return lambda: _chunked(case, *tensors, size)

    return prepare


def _gradient_peer(size):
    def prepare(case, x):
        import torch

        tensors, d_out = _tensors(x, grad=True), torch.from_numpy(x.d_out)
        return lambda: torch.autograd.grad(_chunked(case, *tensors, size), tensors[:3], d_out)

    return prepare


for _op in ("delta", "linear"):
    for _size in (32, 64):
        peer(_op, f"torch-chunk{_size}")(_chunk_peer(_size))
        peer(f"{_op}_gradient", f"torch-chunk{_size}")(_gradient_peer(_size))


def _quadratic(x, query, key, value):
    """All weights at once, without a maximum taken out."""
    import torch

    matrix = torch.from_numpy(x.matrix).to(query.dtype)
    weights = (_favor(query, matrix, torch.exp, torch.cat) @ _favor(key, matrix, torch.exp, torch.cat).mT).tril()
    return weights @ value / weights.sum(-1, keepdim=True)


@peer("favor", "torch-quadratic")
def _favor_peer(case, x):
    tensors = _tensors(x)[:3]
    return lambda: _quadratic(x, *tensors)


@peer("favor_gradient", "torch-quadratic")
def _favor_gradient_peer(case, x):
    import torch

    tensors, d_out = _tensors(x, grad=True)[:3], torch.from_numpy(x.d_out)
    return lambda: torch.autograd.grad(_quadratic(x, *tensors), tensors, d_out)


@peer("delta", "torch-loop")
def _loop(case, x):
    tensors = _tensors(x)
    return lambda: _recurrent(case, *tensors)


@peer("gated", "ours-ungated", same_job=False)
def _ungated(case, x):
    """What a decay costs: the same call without it."""
    import recollect as rc

    return lambda: rc.fastweight.delta_rule(x.query, x.key, x.value, x.beta)


@peer("delta_step", "torch-step", same_job=False)
def _torch_step(case, x):
    """The same step in torch, in place."""
    import torch

    query, key, value, beta = _tensors(x)
    state = torch.from_numpy(x.state.copy())

    def run():
        written = beta[..., None] * (value - key @ state)
        state.add_(key.mT * written)
        return query @ state

    return run
