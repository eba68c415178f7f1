"""Recurrent networks, one training step (forward and backward): inputs, ours, truth and peers of the ops `backtracking` and `lstm`.

The truth is written from the equations of Ke et al. 2018 (arXiv 1809.03702), algorithm 1, in NumPy and float64, for the first and the last
sequence of the batch; gradients of the inputs are compared with those of torch in float64, if it is installed.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from . import oracle
from .peers import peer

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def inputs(case):
    rng = np.random.default_rng(0)
    B, T, D, H = (case.shape[letter] for letter in "BTDH")
    shapes = {"weight_ih": (4 * H, D), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
    if case.op == "backtracking":
        shapes |= {"w1": (H, H), "w2": (H, H), "w3": (H,)}
    parameters = {name: (rng.uniform(-1, 1, shape) / H**0.5).astype(case.dtype) for name, shape in shapes.items()}
    width = 2 * H if case.op == "backtracking" else H
    return SimpleNamespace(
        x=rng.standard_normal((B, T, D)).astype(case.dtype),
        d_outputs=rng.standard_normal((B, T, width)).astype(case.dtype),
        parameters=parameters,
    )


def ours(rc, case, x):
    D, H = case.shape["D"], case.shape["H"]
    if case.op == "backtracking":
        options = {name: case.shape[name] for name in ("k_top", "k_att", "k_trunc")}
        network = rc.backtracking.SparseBacktrackingLSTM(D, H, **options, dtype=case.dtype)
    else:
        network = rc.backtracking.LSTM(D, H, dtype=case.dtype)
    for name, array in x.parameters.items():
        network.parameters[name][...] = array

    def run():
        outputs, tape = network.forward(x.x)
        return outputs, network.backward(tape, x.d_outputs).x

    return run


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _read(p, hhat, memory, projected, k_top):
    """The sparse read of each row: memory and projected (B, N, H)."""
    scores = np.tanh(projected + (hhat @ p["w2"].T)[:, None]) @ p["w3"]
    if memory.shape[1] <= k_top:
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    else:
        weights = np.maximum(0, scores - np.sort(scores, axis=1)[:, -k_top - 1, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None] * memory).sum(axis=1)


def _outputs(case, x, rows):
    p = {name: array.astype(np.float64) for name, array in x.parameters.items()}
    H, reads = case.shape["H"], case.op == "backtracking"
    h = carry = np.zeros((len(rows), H))
    memory, projected, outputs = [], [], []
    for t, x_t in enumerate(np.moveaxis(x.x[rows].astype(np.float64), 1, 0), start=1):
        sums = x_t @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"]
        i, f, g, o = np.split(sums, 4, axis=1)
        carry = _sigmoid(f) * carry + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(carry)
        s = np.zeros_like(h)
        if reads and memory:
            s = _read(p, h, np.stack(memory, 1), np.stack(projected, 1), case.shape["k_top"])
        h = h + s
        if reads and t % case.shape["k_att"] == 0:
            memory.append(h)
            projected.append(h @ p["w1"].T)
        outputs.append(np.concatenate([h, s], axis=1) if reads else h)
    return np.stack(outputs, 1)


def truth(case, x):
    rows = np.array([0, case.shape["B"] - 1])
    few = SimpleNamespace(x=x.x[rows], d_outputs=x.d_outputs[rows], parameters=x.parameters)
    try:
        d_x = _torch_step(case, few, np.float64)()[1]
        gradient = (rows, d_x.numpy())
    except ImportError:
        gradient = (slice(0, 0), np.empty((0, *x.x.shape[1:])))
    return oracle.Truth(((rows, _outputs(case, x, rows)), gradient), 0.0)


def _torch_cell(p, x_t, h, carry):
    import torch

    sums = x_t @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"]
    i, f, g, o = sums.chunk(4, dim=1)
    carry = torch.sigmoid(f) * carry + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(carry), carry


def _torch_read(p, hhat, memory, projected, k_top):
    import torch

    scores = torch.tanh(projected + (hhat @ p["w2"].T)[:, None]) @ p["w3"]
    if memory.shape[1] <= k_top:
        weights = torch.softmax(scores, dim=1)
    else:
        weights = torch.relu(scores - torch.topk(scores, k_top + 1, dim=1)[0][:, -1:])
        weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, None] @ memory)[:, 0]


def _torch_released_read(w, hhat, memory, k_top):
    """The read of the code that was released with the paper: scores w . tanh([hhat, m]) of all pairs."""
    import torch

    pairs = torch.cat([hhat[:, None].expand(-1, memory.shape[1], -1), memory], dim=2)
    scores = torch.tanh(pairs) @ w
    if memory.shape[1] > k_top:
        scores = torch.relu(scores - torch.topk(scores, k_top, dim=1)[0][:, -1:] - 1e-7)
        scores = scores / (scores.sum(dim=1, keepdim=True) + 1e-7)
    return (scores[:, None] @ memory)[:, 0]


def _torch_network(case, p, x):
    """The recurrence, W1 m computed once, memories grown by one concatenation a step as in the released code; with ``w`` the read of
    that code."""
    import torch

    H, reads, k_trunc = case.shape["H"], case.op == "backtracking", case.shape.get("k_trunc", 0)
    h = carry = x.new_zeros(len(x), H)
    memory, projected, outputs = x.new_zeros(len(x), 0, H), None, []
    for t, x_t in enumerate(x.unbind(1), start=1):
        if k_trunc and (t - 1) % k_trunc == 0:
            h, carry = h.detach(), carry.detach()
        h, carry = _torch_cell(p, x_t, h, carry)
        s = torch.zeros_like(h)
        if "w" in p and memory.shape[1]:
            s = _torch_released_read(p["w"], h, memory, case.shape["k_top"])
        elif projected is not None:
            s = _torch_read(p, h, memory, projected, case.shape["k_top"])
        h = h + s
        if reads and t % case.shape["k_att"] == 0:
            memory = torch.cat([memory, h[:, None]], dim=1)
            if "w" not in p:
                key = (h @ p["w1"].T)[:, None]
                projected = key if projected is None else torch.cat([projected, key], dim=1)
        outputs.append(torch.cat([h, s], dim=1) if reads else h)
    return torch.stack(outputs, 1)


def _torch_step(case, x, dtype=None):
    import torch

    def tensor(array):
        return torch.from_numpy(array.astype(dtype or array.dtype))

    p = {name: tensor(array).requires_grad_() for name, array in x.parameters.items()}
    start, d_outputs = tensor(x.x).requires_grad_(), tensor(x.d_outputs)

    def run():
        outputs = _torch_network(case, p, start)
        d_x, *_ = torch.autograd.grad(outputs, [start, *p.values()], d_outputs)
        return outputs.detach(), d_x

    return run


@peer("backtracking", "torch-autograd")
def _autograd(case, x):
    return _torch_step(case, x)


@peer("backtracking", "torch-released", same_job=False)
def _released(case, x):
    """The released code's form of the model, ported: another score, all of it computed anew in each step."""
    H = case.shape["H"]
    parameters = {name: x.parameters[name] for name in _CELL}
    parameters["w"] = np.random.default_rng(1).normal(0, 0.01, 2 * H).astype(case.dtype)
    return _torch_step(case, SimpleNamespace(x=x.x, d_outputs=x.d_outputs, parameters=parameters))


@peer("lstm", "torch-lstm")
def _torch_lstm(case, x):
    """The fused LSTM of torch."""
    import torch

    network = torch.nn.LSTM(case.shape["D"], case.shape["H"], batch_first=True)
    with torch.no_grad():
        for name in _CELL:
            getattr(network, f"{name}_l0").copy_(torch.from_numpy(x.parameters[name]))
    start, d_outputs = torch.from_numpy(x.x).requires_grad_(), torch.from_numpy(x.d_outputs)

    def run():
        outputs = network(start)[0]
        d_x, *_ = torch.autograd.grad(outputs, [start, *network.parameters()], d_outputs)
        return outputs.detach(), d_x

    return run
