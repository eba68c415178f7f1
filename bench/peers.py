"""What a user would take instead, each in its best mode and with the same inputs.

A peer is one function, registered for an op under a name: peer(case, x) -> a function without arguments
that does the job once. Imports are inside, so that a package that is not installed is only a missing row.
Arrays are shared with torch without a copy; everything that can be prepared is prepared before the clock.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Peer:
    prepare: Callable
    same_job: bool = True  # False: less or other work than ours, so its result is not compared


PEERS: dict[tuple[str, str], Peer] = {}


def peer(op: str, name: str, **options):
    def register(prepare):
        PEERS[op, name] = Peer(prepare, **options)
        return prepare

    return register


def pin_threads(count: int) -> dict[str, str]:
    """The same number of threads for everybody who has them. -> what was pinned, for the record"""
    done = {}
    try:
        import torch

        torch.set_num_threads(count)
        done["torch"] = str(torch.get_num_threads())
    except ImportError:
        done["torch"] = "not installed"
    try:
        import faiss

        faiss.omp_set_num_threads(count)
        done["faiss"] = str(faiss.omp_get_max_threads())
    except ImportError:
        done["faiss"] = "not installed"
    try:
        import threadpoolctl

        # Last, when every BLAS and OpenMP runtime is loaded. Kept for the life of the process.
        threadpoolctl.threadpool_limits(limits=count)
        pools = threadpoolctl.threadpool_info()
        done["pools"] = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in pools)
    except ImportError:
        done["pools"] = "threadpoolctl not installed: BLAS keeps its own count"
    return done


def as_arrays(result) -> tuple[np.ndarray, ...]:
    """Results of any kind as a tuple of NumPy arrays."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(part.detach() if hasattr(part, "detach") else part) for part in parts)


def _tensors(x, grad: bool = False):
    import torch

    tensors = [torch.from_numpy(x.state), torch.from_numpy(x.patterns)]
    if grad:
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    state, patterns = tensors
    return state, patterns, patterns if x.values is None else torch.from_numpy(x.values)


def _four_axes(tensor):
    """(batch, heads, rows, width): torch's fused CPU kernel takes nothing else."""
    return tensor.reshape((1,) * (4 - tensor.ndim) + tuple(tensor.shape))


# Retrieval


@peer("retrieve", "torch-sdpa")
def retrieve_torch_sdpa(case, x):
    import torch

    assert case.steps == 1, "scaled_dot_product_attention has no update steps"
    attend = torch.nn.functional.scaled_dot_product_attention
    query, key, value = (_four_axes(tensor) for tensor in _tensors(x))
    shape = (*x.state.shape[:-1], value.shape[-1])
    return lambda: attend(query, key, value, scale=x.beta).view(shape)


def _torch_loop(state, patterns, values, beta, steps):
    """What hopfield-layers does, without what it adds to it."""
    import torch

    for step in range(steps):
        weights = torch.softmax((beta * state) @ patterns.mT, dim=-1)
        state = weights @ (values if step == steps - 1 else patterns)
    return state


@peer("retrieve", "torch-loop")
def retrieve_torch_loop(case, x):
    state, patterns, values = _tensors(x)
    return lambda: _torch_loop(state, patterns, values, x.beta, case.steps)


@peer("retrieve", "numpy")
def retrieve_numpy(case, x):
    values = x.patterns if x.values is None else x.values
    beta = np.asarray(x.beta, x.state.dtype)

    def run():
        state = x.state
        for step in range(case.steps):
            scores = (beta * state) @ x.patterns.swapaxes(-1, -2)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            state = (scores @ (values if step == case.steps - 1 else x.patterns)) / total
        return state

    return run


@peer("retrieve", "faiss-top10", same_job=False)
def retrieve_faiss(case, x):
    """Only finds the ten best patterns; reading them out would come on top."""
    import faiss

    index = faiss.IndexFlatIP(case.shape["d"])
    index.add(x.patterns)
    return lambda: index.search(x.state, 10)


@peer("retrieve", "hflayers")
def retrieve_hflayers(case, x):
    """The module with everything fixed and switched off that is not the update itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import hflayers
    import torch

    module = hflayers.Hopfield(
        scaling=float(x.beta),
        update_steps_max=case.steps - 1,  # counted on top of the first softmax
        update_steps_eps=1e-30,  # all steps: its criterion would stop the whole batch early
        normalize_stored_pattern=False,
        normalize_stored_pattern_affine=False,
        normalize_state_pattern=False,
        normalize_state_pattern_affine=False,
        normalize_pattern_projection=False,
        normalize_pattern_projection_affine=False,
        stored_pattern_as_static=True,
        state_pattern_as_static=True,
        pattern_projection_as_static=True,
        disable_out_projection=True,
    ).eval()
    state, patterns, values = (tensor.unsqueeze(0) for tensor in _tensors(x))

    def run():
        with torch.inference_mode():
            return module((patterns, state, values)).squeeze(0)

    return run


@peer("retrieve", "ours-one-step", same_job=False)
def retrieve_one_step(case, x):
    """Not a rival: the price of a single softmax, to hold several steps against."""
    import recollect as rc

    return lambda: rc.hopfield.retrieve(x.state, x.patterns, beta=x.beta)


# Energy


@peer("energy", "torch-loop")
def energy_torch(case, x):
    import torch

    state, patterns, _ = _tensors(x)

    def run():
        lse = torch.logsumexp((x.beta * state) @ patterns.mT, dim=-1)
        constant = np.log(case.shape["N"]) / x.beta + patterns.square().sum(dim=-1).max() / 2
        return -lse / x.beta + state.square().sum(dim=-1) / 2 + constant

    return run


@peer("energy", "numpy")
def energy_numpy(case, x):
    beta = np.asarray(x.beta, x.state.dtype)

    def run():
        scores = (beta * x.state) @ x.patterns.swapaxes(-1, -2)
        peak = scores.max(axis=-1, keepdims=True)
        scores -= peak
        np.exp(scores, out=scores)
        lse = np.log(scores.sum(axis=-1)) + peak[..., 0]
        squares = np.einsum("...d,...d->...", x.patterns, x.patterns)
        constant = np.log(case.shape["N"]) / x.beta + squares.max() / 2
        return -lse / beta + np.einsum("...d,...d->...", x.state, x.state) / 2 + constant.astype(beta.dtype)

    return run


# Backward: the forward pass is over and its graph kept when the clock starts


@peer("retrieve_backward", "torch-sdpa")
def backward_torch_sdpa(case, x):
    import torch

    state, patterns, _ = _tensors(x, grad=True)
    query, key = _four_axes(state), _four_axes(patterns)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, key, scale=x.beta)
    d_out = _four_axes(torch.from_numpy(x.d_out))
    return lambda: torch.autograd.grad(out, (state, patterns), d_out, retain_graph=True)


@peer("retrieve_backward", "torch-loop")
def backward_torch_loop(case, x):
    import torch

    state, patterns, _ = _tensors(x, grad=True)
    out = _torch_loop(state, patterns, patterns, x.beta, case.steps)
    d_out = torch.from_numpy(x.d_out)
    return lambda: torch.autograd.grad(out, (state, patterns), d_out, retain_graph=True)
