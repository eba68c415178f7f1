"""Times on a CUDA device: ours beside what PyTorch has, against the limits of the card measured in the same run.

python -m bench.gpu --json out.json            all cases; says "not run" where there is no device
python -m bench.gpu --only retrieve            those whose name has the word

Every case is checked against float64 before it is timed. Times are medians of CUDA events around several calls; inputs rotate through more
memory than the card's cache holds; nothing waits for the device between the calls of a sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

from . import gpu_peers as peers
from .environment import commit, library, versions
from .gpu_case import Case, relative
from .gpu_gradient import fast_weight_gradient

_ROTATED_BYTES = 256 << 20  # more than any card's cache
_SAMPLE_SECONDS = 0.004
_SAMPLES = 25


def device() -> tuple[Any, str]:
    """torch, or None and why there is no device for both of us."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return None, "torch finds no CUDA device"
    if library() is None:
        return None, "recollect is not installed"
    from recollect import _backend

    if _backend.place() is None:
        return None, "the CUDA backend is not built"
    count, why = _backend.load().cards()
    return (torch, "") if count else (None, why)


def timed(torch: Any, call: Callable[[int], Any], sets: int) -> dict[str, float]:
    """Seconds of one call: median, and the tenth and ninetieth of a hundred."""

    def sample(number: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for i in range(number):
            call(i % sets)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / number

    for _ in range(2):
        sample(sets)
    number = max(1, min(2000, math.ceil(_SAMPLE_SECONDS / sample(max(2, sets)))))
    times = sorted(sample(number) for _ in range(_SAMPLES))
    return {"median": statistics.median(times), "p10": times[_SAMPLES // 10], "p90": times[-1 - _SAMPLES // 10]}


def ceilings(torch: Any) -> dict[str, float]:
    """Bytes read and written by a copy, and operations of a bfloat16 matrix product, per second; of random numbers."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = timed(torch, lambda _: target.copy_(source), 1)["median"]
    a, b = (torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    product = timed(torch, lambda _: torch.mm(a, b, out=c), 1)["median"]
    return {"bytes_per_second": 2 * source.nbytes / copy, "bf16_flops_per_second": 2 * 8192**3 / product}


def sets_for(bytes_of_one: float) -> int:
    return max(1, min(16, math.ceil(_ROTATED_BYTES / bytes_of_one)))


def recalled(torch: Any, q: Any, k: Any, v: Any, scale: float) -> Any:
    """Some rows in float64."""
    return torch.softmax(scale * (q.double() @ k.double().T), -1) @ v.double()


def retrieval(torch: Any, rc: Any, Q: int, N: int, d: int, dtype: str, stored: bool = False) -> Case:
    """`stored`: in memories that stay on the device."""
    kind, beta = getattr(torch, dtype), 1 / math.sqrt(d)
    size = torch.finfo(kind).bits // 8
    sets = sets_for((N + 2 * Q) * d * size)
    x = [torch.randn((N, d), device="cuda").to(kind) for _ in range(sets)]
    q = [torch.randn((Q, d), device="cuda").to(kind) for _ in range(sets)]
    out = torch.full((Q, d), float("nan"), device="cuda", dtype=kind)

    memories = [rc.hopfield.HopfieldMemory.from_patterns(a, beta=beta) for a in x] if stored else []

    def ours(i: int) -> Any:
        if stored:
            return memories[i].retrieve(q[i], out=out)
        return rc.hopfield.retrieve(q[i], x[i], beta=beta, out=out)

    def error() -> float:
        ours(0)
        rows = slice(max(0, Q - 64), Q)
        return relative(out[rows], recalled(torch, q[0][rows], x[0], x[0], beta))

    return Case(
        f"retrieve {dtype}{', stored' if stored else ''}",
        f"Q={Q} N={N} d={d}",
        4.0 * Q * N * d,
        (N + 2.0 * Q) * d * size,
        sets,
        error,
        2e-5 if dtype == "float32" else 1e-2,
        ours,
        peers.sdpa(torch, q, x, beta) | peers.split_k(q, x, beta) | peers.cupy_softmax(q, x, beta),
    )


def attention(torch: Any, rc: Any, n: int, m: int, d: int, dtype: str) -> Case:
    """Values of their own, one head."""
    case = retrieval(torch, rc, n, m, d, dtype)
    kind, scale = getattr(torch, dtype), 1 / math.sqrt(d)
    q, k, v = (torch.randn((rows, d), device="cuda").to(kind) for rows in (n, m, m))

    def error() -> float:
        return relative(rc.attention.attend(q, k, v)[-64:], recalled(torch, q[-64:], k, v, scale))

    apart = {name: lambda _, p=p: p(0) for name, p in case.peers.items() if "apart" in name}
    return Case(
        f"attend {dtype}",
        f"n={n} m={m} d={d}",
        case.flops,
        case.bytes + m * d * 2,
        1,
        error,
        1e-2,
        lambda _: rc.attention.attend(q, k, v),
        apart,
    )


def attention_gradient(torch: Any, rc: Any, heads: int, n: int, d: int, dtype: str) -> Case:
    """Forward and backward together; 2 and 5 products of n x n x d."""
    kind, scale = getattr(torch, dtype), 1 / math.sqrt(d)
    q, k, v, d_out = (torch.randn((1, heads, n, d), device="cuda").to(kind) for _ in range(4))

    def ours(_: int = 0) -> Any:
        return rc.vjp(rc.attention.attend, q, k, v)[1](d_out)

    def error() -> float:
        one = [a[0, 0].double().requires_grad_() for a in (q, k, v)]
        out = recalled(torch, *one, scale)
        wanted = torch.autograd.grad(out, one, d_out[0, 0].double())
        return max(relative(got[0, 0], there) for got, there in zip(ours(), wanted, strict=True))

    return Case(
        f"attend and its gradient {dtype}",
        f"H={heads} n={n} d={d}",
        14.0 * heads * n * n * d,
        8.0 * heads * n * d * torch.finfo(kind).bits / 8,
        1,
        error,
        2e-5 if dtype == "float32" else 2e-2,
        ours,
        peers.sdpa_gradient(torch, (q, k, v), d_out, scale),
    )


def retrieval_gradient(torch: Any, rc: Any, Q: int, N: int, d: int, dtype: str) -> Case:
    """Forward and backward together, of state and patterns; 2 and 5 products of Q x N x d."""
    kind, beta = getattr(torch, dtype), 1 / math.sqrt(d)
    q, x, d_out = (torch.randn((rows, d), device="cuda").to(kind) for rows in (Q, N, Q))

    def ours(_: int = 0) -> Any:
        return rc.vjp(rc.hopfield.retrieve, q, x, beta=beta)[1](d_out)

    def error() -> float:
        given = [a.double().requires_grad_() for a in (q, x)]
        wanted = torch.autograd.grad(recalled(torch, given[0], given[1], given[1], beta), given, d_out.double())
        return max(relative(got, there) for got, there in zip(ours(), wanted, strict=False))  # ours: of beta too

    return Case(
        f"retrieve and its gradient {dtype}",
        f"Q={Q} N={N} d={d}",
        14.0 * Q * N * d,
        (3.0 * N + 5.0 * Q) * d * torch.finfo(kind).bits / 8,
        1,
        error,
        2e-2,
        ours,
        peers.sdpa_gradient(torch, [a[None, None] for a in (q, x)], d_out[None, None], beta),
    )


def largest_scores(torch: Any, rc: Any, n: int, m: int, d: int, top_k: int) -> Case:
    """Attention to the `top_k` largest scores, beside scores in memory, torch.topk and a gather."""
    sets = sets_for(4.0 * (2 * m + 2 * n) * d)
    k, v = ([torch.randn((m, d), device="cuda") for _ in range(sets)] for _ in range(2))
    q = [torch.randn((n, d), device="cuda") for _ in range(sets)]
    out, scale = torch.full((n, d), float("nan"), device="cuda"), 1 / math.sqrt(d)

    def selected(query: Any, key: Any, value: Any) -> Any:
        best = torch.topk(scale * (query @ key.T), top_k)
        return (torch.softmax(best.values, -1)[:, None] @ value[best.indices])[:, 0]

    def error() -> float:
        rc.attention.attend(q[0], k[0], v[0], top_k=top_k, out=out)
        rows = slice(max(0, n - 64), n)
        return relative(out[rows], selected(q[0][rows].double(), k[0].double(), v[0].double()))

    return Case(
        "attend to the largest",
        f"n={n} m={m} d={d} top_k={top_k}",
        2.0 * n * m * d,
        4.0 * (2 * m + 2 * n) * d,
        sets,
        error,
        1e-4,
        lambda i: rc.attention.attend(q[i], k[i], v[i], top_k=top_k, out=out),
        {"torch matmul, topk, gather": lambda i: selected(q[i], k[i], v[i])},
    )


def fast_weight(torch: Any, rc: Any, rule: str, B: int, T: int, H: int, d: int, dtype: str) -> Case:
    """The sum rule or the delta rule. T of 1 is a step of decoding: the state is updated in place."""
    kind = getattr(torch, dtype)
    size = torch.finfo(kind).bits // 8
    numbers = B * H * T * (4 * d + 1) * size + 2 * B * H * d * d * 4
    sets = sets_for(numbers)

    def draw(*shape: int) -> Any:
        return torch.randn((B, H, T, *shape), device="cuda").to(kind)

    q, v = ([draw(d) for _ in range(sets)] for _ in range(2))
    k = [torch.nn.functional.normalize(draw(d).float(), dim=-1).to(kind) for _ in range(sets)]
    beta = [draw().float().sigmoid().to(kind) for _ in range(sets)]
    states = [torch.randn((B, H, d, d), device="cuda") / d for _ in range(sets)]
    out = torch.full((B, H, T, d), float("nan"), device="cuda", dtype=kind)

    def ours(i: int) -> Any:
        how = {"scale": 1.0, "state": states[i], "out": out, "out_state": states[i], "return_state": True}
        if rule == "sum rule":
            return rc.fastweight.linear_attention(q[i], k[i], v[i], feature_map="identity", normalize=False, **how)
        return rc.fastweight.delta_rule(q[i], k[i], v[i], beta[i], **how)

    def error() -> float:
        S = states[0][0, 0].double()
        wanted = []
        for t in range(T):
            key = k[0][0, 0, t].double()
            value = v[0][0, 0, t].double()
            S = S + torch.outer(key, value if rule == "sum rule" else beta[0][0, 0, t].double() * (value - key @ S))
            wanted.append(q[0][0, 0, t].double() @ S)
        ours(0)
        return relative(out[0, 0], torch.stack(wanted))

    return Case(
        f"{rule}{', decode step' if T == 1 else ''} {dtype}",
        f"B={B} T={T} H={H} d={d}",
        (4.0 if rule == "sum rule" else 6.0) * B * T * H * d * d,
        numbers,
        sets,
        error,
        2e-5 if dtype == "float32" else 1e-2,
        ours,
        peers.fla(rule, q, k, v, beta, states),
    )


def cases(torch: Any, rc: Any) -> Iterator[Callable[[], Case]]:
    yield lambda: retrieval(torch, rc, 4096, 65536, 64, "bfloat16")
    yield lambda: retrieval(torch, rc, 4096, 65536, 128, "bfloat16")
    yield lambda: retrieval(torch, rc, 65536, 65536, 128, "bfloat16")
    yield lambda: retrieval(torch, rc, 1, 10_000_000, 128, "bfloat16")
    yield lambda: retrieval(torch, rc, 4096, 65536, 64, "bfloat16", stored=True)
    yield lambda: retrieval(torch, rc, 4096, 65536, 128, "bfloat16", stored=True)
    yield lambda: retrieval(torch, rc, 1, 10_000_000, 64, "bfloat16", stored=True)
    yield lambda: retrieval(torch, rc, 1, 10_000_000, 128, "bfloat16", stored=True)
    yield lambda: retrieval(torch, rc, 64, 10_000_000, 128, "bfloat16", stored=True)
    yield lambda: retrieval(torch, rc, 4096, 65536, 64, "float32")
    yield lambda: attention(torch, rc, 16384, 16384, 128, "float16")
    yield lambda: attention_gradient(torch, rc, 16, 4096, 64, "float32")
    yield lambda: attention_gradient(torch, rc, 16, 4096, 64, "bfloat16")
    yield lambda: attention_gradient(torch, rc, 16, 4096, 128, "bfloat16")
    yield lambda: retrieval_gradient(torch, rc, 4096, 16384, 128, "bfloat16")
    yield lambda: largest_scores(torch, rc, 4096, 65536, 128, 32)
    yield lambda: largest_scores(torch, rc, 1, 4_000_000, 128, 32)
    yield lambda: fast_weight(torch, rc, "delta rule", 64, 1, 16, 128, "float32")
    yield lambda: fast_weight(torch, rc, "delta rule", 8, 4096, 16, 128, "float32")
    yield lambda: fast_weight(torch, rc, "delta rule", 8, 4096, 16, 64, "bfloat16")
    yield lambda: fast_weight(torch, rc, "delta rule", 8, 4096, 16, 128, "bfloat16")
    yield lambda: fast_weight(torch, rc, "delta rule", 8, 4096, 16, 128, "float16")
    yield lambda: fast_weight(torch, rc, "sum rule", 8, 4096, 16, 128, "bfloat16")
    yield lambda: fast_weight_gradient(torch, rc, 8, 4096, 16, 64, "bfloat16", False)
    yield lambda: fast_weight_gradient(torch, rc, 8, 4096, 16, 128, "bfloat16", False)
    yield lambda: fast_weight_gradient(torch, rc, 8, 4096, 16, 128, "bfloat16", True)
    yield lambda: fast_weight_gradient(torch, rc, 8, 4096, 16, 128, "float16", False)


def measured(torch: Any, case: Case, limits: dict[str, float]) -> dict[str, Any]:
    error = case.error()
    row: dict[str, Any] = {"name": case.name, "shape": case.shape, "error": error, "bound": case.bound, "peers": {}}
    if not error <= case.bound:
        return row | {"wrong": True}
    floor = max(case.flops / limits["bf16_flops_per_second"], case.bytes / limits["bytes_per_second"])
    row |= {"sets": case.sets, "floor": floor, "ours": timed(torch, case.ours, case.sets)}
    for name, peer in case.peers.items():
        try:
            row["peers"][name] = timed(torch, peer, case.sets)
        except Exception as problem:  # whatever a peer says of inputs that it does not take
            row["peers"][name] = "unavailable: " + (str(problem).splitlines() or [type(problem).__name__])[0]
    return row


def line(row: dict[str, Any]) -> str:
    head = f"{row['name']:32} {row['shape']:28} error {row['error']:.1e}"
    if "ours" not in row:
        return f"{head}  WRONG (bound {row['bound']:.0e}), not timed"
    ours = row["ours"]["median"]
    times = [f"{name} {t['median'] * 1e3:.3f}" for name, t in row["peers"].items() if isinstance(t, dict)]
    text = f"{head}  {ours * 1e3:8.3f} ms  {row['floor'] / ours:4.0%} of the limit"
    return text + "".join(f"\n    {peer} ms" for peer in times)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Times on a CUDA device.")
    parser.add_argument("--json", help="write the record here")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    arguments = parser.parse_args()
    torch, why = device()
    record: dict[str, Any] = {"commit": commit(), "versions": versions()}
    wrong = False
    if torch is None:
        print(f"not run (no device): {why}")
        record["not_run"] = why
    else:
        rc = library()
        record |= {"device": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "ceilings": ceilings(torch)}
        limits = record["ceilings"]
        print(record["device"], {name: f"{limit:.3e}" for name, limit in limits.items()}, flush=True)
        record["cases"] = []
        for make in cases(torch, rc):
            case = make()
            if arguments.only in case.name:
                record["cases"].append(measured(torch, case, limits))
                print(line(record["cases"][-1]), flush=True)
                wrong |= "wrong" in record["cases"][-1]
            del case
            torch.cuda.empty_cache()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=2)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
