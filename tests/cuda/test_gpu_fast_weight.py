"""Fast weights on a card against the float64 oracles, into poisoned outputs. Not run, and saying so, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw
from tests.cuda import fast_weight_gradients
from tests.cuda.device import Errors, numbers, poisoned
from tests.reference import fastweight as oracle
from tests.reference import feature_maps

UNIT = "fast_weight"


def tokens(torch: Any, T: int, K: int, V: int) -> list[Any]:
    generator = torch.Generator(device="cuda").manual_seed(T + K)
    q, k = (torch.randn((2, 3, T, K), generator=generator, device="cuda") / K**0.5 for _ in range(2))
    v = torch.randn((2, 3, T, V), generator=generator, device="cuda")
    return [q, k, v, torch.rand((2, 3, T), generator=generator, device="cuda")]


@pytest.mark.parametrize("size", [(1, 64, 64), (17, 13, 18), (100, 128, 70), (40, 256, 64)], ids=str)
@pytest.mark.parametrize("decay", [None, "token", "channel"])
def test_delta_rule(torch: Any, errors: Errors, size: tuple[int, int, int], decay: str | None) -> None:
    T, K, V = size
    q, k, v, beta = tokens(torch, *size)
    fading = {
        None: None,
        "token": torch.rand((3, T), device="cuda"),
        "channel": torch.rand((2, 1, T, K), device="cuda"),
    }[decay]
    state = torch.randn((2, 3, K, V), device="cuda")
    told = None if fading is None else numbers(fading)[..., None] if decay == "token" else numbers(fading)
    phi = feature_maps.value(numbers(k), "identity", "l2"), feature_maps.value(numbers(q), "identity", "l2")
    wanted = oracle.delta_rule(
        phi[1], phi[0], numbers(v), numbers(beta), decay=told, state=oracle.State(numbers(state))
    )
    out = poisoned(torch, 2, 3, T, V)
    got = rc.fastweight.delta_rule(
        q, k, v, beta, normalize="l2", decay=fading, state=state, out=out, out_state=state, return_state=True
    )
    errors.check("delta rule", out, wanted.out, 2e-5)
    errors.check("delta rule state, in place", state, wanted.state.S, 2e-5)
    assert got.state is state


@pytest.mark.parametrize("normalize", [False, True])
def test_linear_attention(torch: Any, errors: Errors, normalize: bool) -> None:
    q, k, v, _ = tokens(torch, 50, 32, 20)
    phi = feature_maps.value(numbers(k), "elu1"), feature_maps.value(numbers(q), "elu1")
    wanted = oracle.sum_rule(phi[1], phi[0], numbers(v), normalize=normalize)
    got = rc.fastweight.linear_attention(q, k, v, normalize=normalize)
    errors.check("linear attention", got, wanted.out, 2e-5)


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["sum", "decayed sum", "delta", "gated delta", "delta, steps of 2"])
def test_chunks_on_tensor_cores(torch: Any, errors: Errors, d: int, dtype: str, rule: str) -> None:
    """Ragged chunks; tokens before heads, as models have them; the largest steps that are stable."""
    T, kind = 333, getattr(torch, dtype)
    q, k, v = (torch.randn((2, T, 3, d), device="cuda").to(kind).transpose(1, 2) for _ in range(3))
    k = (torch.nn.functional.normalize(k.float(), dim=-1)).to(kind)
    beta, decay = (torch.rand((2, 3, T), device="cuda").to(kind) for _ in range(2))
    if "steps" in rule:
        beta = torch.full_like(beta, 1.98)
    decay = (decay / 8 + 0.875).to(kind)
    state = torch.randn((2, 3, d, d), device="cuda")
    given: dict[str, Any] = {"state": oracle.State(numbers(state))}
    how: dict[str, Any] = {"out": poisoned(torch, 2, 3, T, d, dtype=kind), "state": state, "out_state": state}
    if "decayed" in rule or "gated" in rule:
        given["decay"], how["decay"] = numbers(decay)[..., None], decay
    if "sum" in rule:
        how |= {"feature_map": "identity", "normalize": False}
        wanted = oracle.sum_rule(numbers(q), numbers(k), numbers(v), **given)
        got = rc.fastweight.linear_attention(q, k, v, scale=1.0, return_state=True, **how)
    else:
        wanted = oracle.delta_rule(numbers(q), numbers(k), numbers(v), numbers(beta), **given)
        got = rc.fastweight.delta_rule(q, k, v, beta, scale=1.0, return_state=True, **how)
    bound = 1e-2 if dtype == "bfloat16" else 2e-3
    errors.check(f"{rule} in chunks, {dtype}", got.out, wanted.out, bound)
    errors.check(f"{rule} in chunks, state, {dtype}", state, wanted.state.S, bound)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("normalize", ["l2", "sum", "outputs"])
def test_maps_in_chunks(torch: Any, errors: Errors, normalize: str, dtype: str) -> None:
    """Queries and keys are mapped into 16 bits first; normalised outputs of float16 alone go token by token."""
    T, d, kind = 333, 64, getattr(torch, dtype)
    q, k, v = (torch.randn((2, T, 3, d), device="cuda").to(kind).transpose(1, 2) for _ in range(3))
    beta = torch.rand((2, 3, T), device="cuda").to(kind)
    name, norm = ("identity", "l2") if normalize == "l2" else ("elu1", None if normalize == "outputs" else "sum")
    phi = [feature_maps.value(numbers(a), name, *([norm] if norm else [])) for a in (q, k)]
    out = poisoned(torch, 2, 3, T, d, dtype=kind)
    if normalize == "outputs":
        wanted = oracle.sum_rule(*phi, numbers(v), normalize=True)
        rc.fastweight.linear_attention(q, k, v, out=out)
    else:
        wanted = oracle.delta_rule(*phi, numbers(v), numbers(beta))
        rc.fastweight.delta_rule(q, k, v, beta, feature_map=name, normalize=normalize, out=out)
    errors.check(f"{name} in chunks, {dtype}", out, wanted.out, 1e-2 if dtype == "bfloat16" else 2e-3)


GRADIENTS = {
    f"{name}, {size}": case
    for size in [(9, 5, 4), (150, 64, 40), (70, 128, 128), (40, 200, 20)]
    for name, case in fast_weight_gradients.cases(*size).items()
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(torch: Any, errors: Errors, name: str) -> None:
    found = []
    for _ in range(3):  # a race shows as a difference
        found.append([])
        for operand, got, wanted, size in fast_weight_gradients.witnesses(
            GRADIENTS[name], lambda a: torch.from_numpy(a).cuda(), numbers
        ):
            errors.check(f"d_{operand}", torch.from_numpy(got) / max(size, 1), wanted / max(size, 1), 2e-5)
            found[-1].append(got)
    assert all((a == b).all() for again in found for a, b in zip(again, found[0], strict=True))


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["sum", "delta", "gated delta", "log-gated delta"])
def test_gradients_in_chunks(torch: Any, errors: Errors, d: int, dtype: str, rule: str) -> None:
    """Ragged chunks, columns of two blocks, tokens before heads, a state and a scale that sequences share."""
    T, V, kind = 333, d + 40, getattr(torch, dtype)
    q, k, v, d_out = (torch.randn((2, T, 3, n), device="cuda").to(kind).transpose(1, 2) for n in (d, d, V, V))
    k = torch.nn.functional.normalize(k.float(), dim=-1).to(kind)
    beta, decay = (torch.rand((2, 3, T), device="cuda").to(kind) for _ in range(2))
    decay = (decay / 8 + 0.875).to(kind)
    given = {"query": q, "key": k, "value": v, "scale": torch.rand(3, device="cuda") + 0.5}
    given["state"] = torch.randn((3, d, V), device="cuda")
    op = "linear_attention" if rule == "sum" else "delta_rule"
    how: dict[str, Any] = {"feature_map": "identity", "normalize": False} if rule == "sum" else {}
    if rule != "sum":
        given["beta"] = beta
    if "gated" in rule:
        given["log_decay" if "log" in rule else "decay"] = decay.log() if "log" in rule else decay
    d_state = torch.randn((2, 3, d, V), device="cuda")
    plain = {name: numbers(a) for name, a in given.items()} | how
    exact, _ = fw.expected_gradients(op, plain, numbers(d_out), numbers(d_state), kind=np.float64)
    _, pullback = rc.vjp(getattr(rc.fastweight, op), **given, **how, return_state=True)
    found = []
    for _ in range(3):  # a race shows as a difference
        got = pullback((d_out, d_state))
        found.append([numbers(a) for a in got])
        for name in got._fields:
            wanted = exact[name][0] if name == "state" else exact[name]
            size = np.sqrt(np.mean(wanted**2))
            bound = 2e-2 if dtype == "bfloat16" else 4e-3
            mine = getattr(got, name).double() / float(size)
            errors.check(f"{rule}, d_{name} in chunks, {dtype}", mine, wanted / size, bound)
    assert all((a == b).all() for again in found for a, b in zip(again, found[0], strict=True))
