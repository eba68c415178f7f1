"""What is benchmarked, as data. A new case is one entry of CASES; a new op one entry of OPS (see README.md).

Letters: H heads, n queries, N stored patterns, d pattern width, e value width.
A multiply and an add are two FLOP; exp and the like are not counted, so they show as distance from the peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import attention, backtracking, fast_weight, layers, ops, separations


@dataclass(frozen=True)
class Op:
    needs: tuple[str, ...]  # public names of the library; an op whose names are missing is reported, not failed
    inputs: Callable
    ours: Callable
    truth: Callable
    flops: Callable[..., float]  # one softmax, from the dimension letters
    elements: Callable[..., float]  # array elements that must at least be read or written
    slack: float = 1.0  # gradients pass through more roundings than values


@dataclass(frozen=True)
class Case:
    op: str
    shape: Mapping[str, int]
    peers: tuple[str, ...]
    limit: str | None  # the limit that counts: "fma", "bandwidth", or None where the call itself is the cost
    dtype: str = "float32"
    steps: int = 1  # number of softmaxes
    beta_scale: float = 1.0  # beta = beta_scale / sqrt(d)
    targets: Mapping[str, float] = field(default_factory=dict)  # peer -> how many times faster we must be
    of_limit: float | None = None  # fraction of the measured limit that we must reach

    def __post_init__(self):
        if strangers := set(self.targets) - set(self.peers):  # a target nobody is measured for is never missed
            raise ValueError(f"{self.name}: targets for {sorted(strangers)}, which are not among its peers")

    @property
    def name(self) -> str:
        parts = [self.op, *(f"{letter}{size}" for letter, size in self.shape.items())]
        parts += [f"steps{self.steps}"] if self.steps != 1 else []
        parts += [self.dtype] if self.dtype != "float32" else []
        return "-".join(parts)

    @property
    def flops(self) -> float:
        return OPS[self.op].flops(**self.shape) * self.steps

    @property
    def bytes(self) -> float:
        return OPS[self.op].elements(**self.shape) * self.steps * np.dtype(self.dtype).itemsize

    @property
    def work(self) -> float:
        """What is divided by the time to compare with the limit."""
        return self.bytes if self.limit == "bandwidth" else self.flops

    def error_bound(self, largest_score: float) -> float:
        """exp turns an absolute error of a score into a relative one, so the bound grows with the scores."""
        base = {"float32": 5e-6, "float64": 1e-13}[self.dtype]
        return base * max(1.0, largest_score / 10) * OPS[self.op].slack


OPS = {
    "retrieve": Op(
        needs=("hopfield.retrieve",),
        inputs=ops.hopfield_inputs,
        ours=ops.retrieve_ours,
        truth=ops.retrieve_truth,
        flops=lambda n, N, d, e=None, H=1: 2 * H * n * N * (d + (e or d)),
        elements=lambda n, N, d, e=None, H=1: H * (N * (d + (e or 0)) + n * (d + (e or d))),
    ),
    "energy": Op(
        needs=("hopfield.energy",),
        inputs=ops.hopfield_inputs,
        ours=ops.energy_ours,
        truth=ops.energy_truth,
        flops=lambda n, N, d, H=1: 2 * H * n * N * d,
        elements=lambda n, N, d, H=1: H * (N * d + n * d + n),
    ),
    # Five products: the scores again, d_out with the patterns, and one product each for d_state, keys and values.
    "retrieve_backward": Op(
        needs=("hopfield.retrieve", "vjp"),
        inputs=ops.hopfield_inputs,
        ours=ops.retrieve_backward_ours,
        truth=ops.retrieve_backward_truth,
        flops=lambda n, N, d, H=1: 10 * H * n * N * d,
        elements=lambda n, N, d, H=1: H * (2 * N * d + 3 * n * d),
        slack=4.0,
    ),
}

# Attention. A causal rule leaves half of the work, and only that half is counted.
for _name, _share in (("attend", 1.0), ("attend_causal", 0.5), ("attend_padded", 0.9)):
    OPS[_name] = Op(
        needs=("attention.attend",),
        inputs=attention.inputs,
        ours=attention.ours,
        truth=attention.truth,
        flops=lambda H, n, N, d, share=_share: share * 4 * H * n * N * d,
        elements=lambda H, n, N, d: 2 * H * (n + N) * d,
    )
    OPS[f"{_name}_backward"] = Op(
        needs=("attention.attend", "vjp"),
        inputs=attention.inputs,
        ours=attention.backward_ours,
        truth=attention.backward_truth,
        flops=lambda H, n, N, d, share=_share: share * 10 * H * n * N * d,
        elements=lambda H, n, N, d: 4 * H * (n + N) * d,
        slack=4.0,
    )

OPS["attend_top_k"] = Op(
    needs=("attention.attend",),
    inputs=attention.inputs,
    ours=attention.ours,
    truth=attention.truth,
    flops=lambda H, n, N, d, k: 2 * H * n * (N + k) * d,
    elements=lambda H, n, N, d, k: H * (N + 2 * n + n * k) * d,
)

# Separations that give weight to few patterns: the scores, and what has weight is not counted.
for _name in separations.SEPARATIONS:
    OPS[_name] = Op(
        needs=("hopfield.retrieve", "separations"),
        inputs=ops.hopfield_inputs,
        ours=separations.ours,
        truth=separations.truth,
        flops=lambda n, N, d: 2 * n * N * d,
        elements=lambda n, N, d: (N + 2 * n) * d,
        slack=4.0,
    )

# Multi-head attention with its four projections; training is forward and backward: each product has two more, and scores come again.
for _name, _ours, _truth, _products, _scores in (
    ("multi_head_attention", layers.ours, layers.truth, 1, 4),
    ("multi_head_attention_training", layers.training_ours, layers.training_truth, 3, 14),
):
    OPS[_name] = Op(
        needs=("layers.MultiHeadAttention",),
        inputs=layers.inputs,
        ours=_ours,
        truth=_truth,
        flops=lambda B, T, D, H, products=_products, scores=_scores: B * T * D * (8 * products * D + scores * T),
        elements=lambda B, T, D, H: 2 * B * T * D + 4 * D * D,
        slack=4.0,
    )

# One training step of a recurrent network: every product with a weight has two more in the gradient. tanh and reads are not counted.
for _name in ("lstm", "backtracking"):
    OPS[_name] = Op(
        needs=("backtracking.SparseBacktrackingLSTM",),
        inputs=backtracking.inputs,
        ours=backtracking.ours,
        truth=backtracking.truth,
        flops=lambda B, T, D, H, reads=2 * (_name != "lstm"), **_: 6 * B * T * H * (4 * (D + H) + reads * H),
        elements=lambda B, T, D, H, **_: B * T * (2 * D + 14 * H),
        slack=40.0,  # errors go round the recurrence, and a weight is a quotient of differences
    )
# Fast weights: 6 d^2 FLOP a token and head for the delta rule (what a key finds, what is written, what a query reads), 4 d^2 for the
# sum rule. A gradient has 14 d^2 (10 d^2) more: G is written to by b and q and read by k, the gradients of q, b and k are read from S
# and G, and S is written once more.
for _name, _forward in (("delta", 6), ("gated", 6), ("kimi", 6), ("linear", 4)):
    OPS[_name] = Op(
        needs=("fastweight.delta_rule",),
        inputs=fast_weight.inputs,
        ours=fast_weight.ours,
        truth=fast_weight.truth,
        flops=lambda H, T, d, count=_forward: count * H * T * d * d,
        elements=lambda H, T, d: 4 * H * T * d,
        slack=4.0,
    )
    OPS[f"{_name}_gradient"] = Op(
        needs=("fastweight.delta_rule", "vjp"),
        inputs=fast_weight.inputs,
        ours=fast_weight.gradient_ours,
        truth=fast_weight.gradient_truth,
        flops=lambda H, T, d, count=_forward: (20 if count == 6 else 14) * H * T * d * d,
        elements=lambda H, T, d: 12 * H * T * d,
        slack=16.0,
    )
# Features 2 m of queries and keys, 4 m d FLOP a row, and the sum rule over them; a gradient forms them again and pulls them back.
for _name, _times, _truth in (
    ("favor", 1, fast_weight.favor_truth),
    ("favor_gradient", 4, fast_weight.favor_gradient_truth),
):
    OPS[_name] = Op(
        needs=("fastweight.favor",),
        inputs=fast_weight.inputs,
        ours=fast_weight.ours if _times == 1 else fast_weight.gradient_ours,
        truth=_truth,
        flops=lambda H, T, d, m, times=_times: times * H * T * (4 * m * d + 8 * m * d),
        elements=lambda H, T, d, m: 4 * H * T * d,
        slack=16.0,
    )
# One token for every head: the state is read and written.
OPS["delta_step"] = Op(
    needs=("fastweight.delta_rule",),
    inputs=fast_weight.inputs,
    ours=fast_weight.step_ours,
    truth=fast_weight.truth,
    flops=lambda H, T, d: 6 * H * T * d * d,
    elements=lambda H, T, d: 2 * H * d * d + 4 * H * T * d,
    slack=4.0,
)

OPS["delta_step_memory"] = dataclasses.replace(
    OPS["delta_step"], needs=("fastweight.FastWeightMemory",), ours=fast_weight.memory_ours
)

_FORWARD = ("torch-sdpa", "torch-loop", "numpy")
_FEW = (*_FORWARD, "faiss-top10")

CASES = (
    # Retrieval, one step, keys = values
    Case("retrieve", dict(n=4096, N=4096, d=64), _FORWARD, "fma", targets={"torch-sdpa": 2.2}, of_limit=0.80),
    Case("retrieve", dict(n=1024, N=65536, d=64), _FORWARD, "fma", targets={"torch-sdpa": 2.2}, of_limit=0.80),
    Case("retrieve", dict(n=4096, N=16384, d=128), _FORWARD, "fma", targets={"torch-sdpa": 2.2}, of_limit=0.85),
    Case("retrieve", dict(n=256, N=300_000, d=64), _FORWARD, "fma", targets={"torch-sdpa": 2.2}, of_limit=0.80),
    # A million patterns, and a beta that still finds the right one among them. With sixteen queries reading the
    # patterns takes less time than the arithmetic on them; with one query it is the other way round.
    Case(
        "retrieve",
        dict(n=16, N=1_000_000, d=64),
        _FEW,
        "fma",
        beta_scale=2.0,
        targets={"torch-sdpa": 4.5, "faiss-top10": 6.0},
    ),
    Case(
        "retrieve",
        dict(n=1, N=1_000_000, d=64),
        _FEW,
        "bandwidth",
        beta_scale=2.0,
        targets={"torch-sdpa": 2.7, "faiss-top10": 1.3},
        of_limit=0.85,
    ),
    # Values of their own: a second operand is read, nothing else changes.
    Case("retrieve", dict(n=1024, N=65536, d=64, e=64), _FORWARD, "fma", targets={"torch-sdpa": 2.2}, of_limit=0.80),
    # Several steps: 3 updates and the read-out. "ours-one-step" is the price of one softmax: a step costs one
    # step, so it takes a quarter of the time (5 % allowed). A larger beta, as in retrieval that shall converge.
    Case(
        "retrieve",
        dict(n=1024, N=16384, d=64),
        ("torch-loop", "numpy", "hflayers", "ours-one-step"),
        "fma",
        steps=4,
        beta_scale=4.0,
        targets={"torch-loop": 5.5, "hflayers": 30.0, "ours-one-step": 0.25 * 0.95},
    ),
    # Backward, one head and a batch of sixteen
    *(
        Case("retrieve_backward", shape, peers, "fma", targets={"torch-sdpa": 1.8}, of_limit=0.65)
        for shape, peers in (
            (dict(n=4096, N=4096, d=64), ("torch-sdpa", "torch-loop")),
            (dict(n=4096, N=4096, d=128), ("torch-sdpa", "torch-loop")),
            (dict(H=16, n=4096, N=4096, d=64), ("torch-sdpa",)),
            (dict(H=16, n=4096, N=4096, d=128), ("torch-sdpa",)),
        )
    ),
    # Sizes that are no multiple of anything: right, and not slow
    *(
        Case("retrieve", dict(n=n, N=N, d=d), _FORWARD, "fma")
        for d in (7, 33, 100)
        for n, N in ((193, 191), (191, 193), (1023, 16385))
    ),
    Case("retrieve_backward", dict(n=1023, N=4097, d=33), ("torch-sdpa", "torch-loop"), "fma"),
    # float64
    Case("retrieve", dict(n=1024, N=16384, d=64), _FORWARD, "fma", dtype="float64"),
    Case("retrieve", dict(n=193, N=191, d=33), _FORWARD, "fma", dtype="float64"),
    Case("retrieve_backward", dict(n=1024, N=1024, d=64), ("torch-sdpa", "torch-loop"), "fma", dtype="float64"),
    # Energy: half of a retrieval
    Case("energy", dict(n=4096, N=4096, d=64), ("torch-loop", "numpy"), "fma"),
    Case("energy", dict(n=1, N=1_000_000, d=64), ("torch-loop", "numpy"), "bandwidth"),
    # Small problems, where the call is the cost: where does NumPy win?
    *(
        Case("retrieve", dict(n=n, N=N, d=d), ("numpy", "torch-sdpa"), None)
        for n, N, d in ((1, 16, 8), (1, 128, 32), (1, 1024, 64), (32, 64, 16))
    ),
    # Attention, sixteen heads
    *(
        Case(
            op,
            dict(H=16, n=4096, N=4096, d=d),
            ("torch-sdpa",),
            "fma",
            targets={"torch-sdpa": ratio},
            of_limit=of_limit,
        )
        for d in (64, 128)
        for op, ratio, of_limit in (
            ("attend", 2.2, 0.80 if d == 64 else 0.85),
            ("attend_causal", 2.2, 0.75),
            ("attend_backward", 1.8, 0.65),
            ("attend_causal_backward", 1.8, 0.65),
        )
    ),
    # A padding mask may cost 5 %, so it must be at least 0.95 times as fast as without it.
    Case(
        "attend_padded",
        dict(H=16, n=4096, N=4096, d=64),
        ("torch-sdpa", "ours-unpadded"),
        "fma",
        targets={"torch-sdpa": 2.2, "ours-unpadded": 0.95},
    ),
    # The best keys alone
    *(
        Case(
            "attend_top_k",
            dict(H=1, n=1024, N=100_000, d=64, k=k),
            ("faiss", "torch-matmul-topk"),
            "fma",
            targets={"faiss": 5.0, "torch-matmul-topk": 4.0},
            of_limit=0.6,
        )
        for k in (10, 32)
    ),
    # Sparse separations may take twice the time of softmax.
    *(
        Case(op, shape, ("ours-softmax",), "fma", targets={"ours-softmax": 0.5})
        for op in separations.SEPARATIONS
        for shape in (dict(n=4096, N=4096, d=64), dict(n=1024, N=65536, d=64))
    ),
    # Layers
    *(
        Case(op, dict(B=2, T=1024, D=1024, H=16), ("torch-mha",), "fma")
        for op in ("multi_head_attention", "multi_head_attention_training")
    ),
    # Recurrent networks, forward and backward
    Case(
        "backtracking",
        dict(B=20, T=320, D=10, H=128, k_top=5, k_att=1, k_trunc=5),
        ("torch-autograd", "torch-released"),
        "fma",
        targets={"torch-autograd": 25.0, "torch-released": 25.0},
    ),
    Case("lstm", dict(B=20, T=100, D=512, H=512), ("torch-lstm",), "fma", of_limit=0.5),
    # Fast weights, sixteen heads
    *(
        Case(op, dict(H=16, T=4096, d=d), peers, "fma", targets=targets, of_limit=of_limit)
        for d in (64, 128)
        for op, peers, targets, of_limit in (
            (
                "delta",
                ("torch-chunk32", "torch-chunk64", "torch-loop", "torch-sdpa-causal"),
                {"torch-chunk32": 14.0},
                0.68 if d == 64 else 0.62,
            ),
            ("gated", ("ours-ungated",), {}, 0.68 if d == 64 else 0.62),
            (
                "linear",
                ("torch-chunk32", "torch-chunk64", "torch-sdpa-causal"),
                {"torch-chunk32": 14.0},
                0.68 if d == 64 else 0.62,
            ),
            ("delta_gradient", ("torch-chunk32", "torch-chunk64"), {"torch-chunk32": 25.0}, 0.45),
        )
    ),
    # A million tokens: what a token costs does not depend on how many there are
    Case("delta", dict(H=1, T=1_000_000, d=64), ("torch-chunk64",), "fma"),
    Case("favor", dict(H=4, T=1024, d=64, m=256), ("torch-quadratic",), "fma"),
    Case("favor_gradient", dict(H=4, T=1024, d=64, m=256), ("torch-quadratic",), "fma"),
    # One token: states that come from memory, and sixteen that stay near, where the call itself counts
    *(
        Case(op, dict(H=4096, T=1, d=64), ("torch-step",), "bandwidth", targets={"torch-step": 20.0}, of_limit=0.8)
        for op in ("delta_step", "delta_step_memory")
    ),
    *(
        Case(op, dict(H=16, T=1, d=d), ("torch-step",), None)
        for op in ("delta_step", "delta_step_memory")
        for d in (64, 128)
    ),
)
