"""Cases of bench.gpu with gradients of fast weights."""

from __future__ import annotations

from typing import Any

from . import gpu_peers as peers
from .gpu_case import Case, relative


def fast_weight_gradient(torch: Any, rc: Any, B: int, T: int, H: int, d: int, dtype: str, gated: bool) -> Case:
    """The delta rule, with a decay of each token or none, forward and backward."""
    kind = getattr(torch, dtype)

    def draw(*shape: int) -> Any:
        return torch.randn((B, H, T, *shape), device="cuda").to(kind)

    given = {"query": draw(d), "key": torch.nn.functional.normalize(draw(d), dim=-1), "value": draw(d)}
    given["beta"], d_out = draw().sigmoid(), draw(d)
    if gated:
        given["log_decay"] = -draw().sigmoid() / 8

    def ours() -> Any:
        _, pullback = rc.vjp(rc.fastweight.delta_rule, **given)
        return pullback(d_out)

    def error() -> float:
        one = {name: a[0, 0].double().requires_grad_() for name, a in given.items()}
        S, out = torch.zeros((d, d), device="cuda", dtype=torch.float64), []
        for t in range(T):
            key = one["key"][t]
            S = S * one["log_decay"][t].exp() if gated else S
            S = S + torch.outer(key, one["beta"][t] * (one["value"][t] - key @ S))
            out.append(one["query"][t] @ S)
        wanted = torch.autograd.grad(torch.stack(out), list(one.values()), d_out[0, 0].double())
        got = ours()
        return max(relative(getattr(got, name)[0, 0], there) for name, there in zip(one, wanted, strict=True))

    size = torch.finfo(kind).bits / 8
    return Case(
        f"{'gated ' if gated else ''}delta rule and its gradient {dtype}",
        f"B={B} T={T} H={H} d={d}",
        20.0 * B * T * H * d * d,  # ten products of a row with a state, three of them forward
        (12.0 * d + 4) * B * T * H * size,
        1,
        error,
        1e-4 if dtype == "float32" else 2e-2,
        lambda _: ours(),
        peers.fla_gradient(given, d_out),
    )
