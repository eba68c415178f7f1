"""Attention and retrieval on a card against the float64 oracles, into poisoned outputs. Not run, and saying so, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recollect as rc
from recollect import _backend

from tests.cuda.device import Errors, arrays, numbers, poisoned
from tests.reference import attention as oracle
from tests.reference import hopfield

SIZES = [(1, 1, 1, 1), (1, 1000, 64, 64), (65, 63, 5, 3), (300, 257, 64, 64), (130, 500, 128, 100), (70, 90, 256, 200)]
BOUNDS = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}


UNIT = "recall"


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attend(torch: Any, errors: Errors, size: tuple[int, ...], dtype: str) -> None:
    n, m, d, e = size
    q, k, v = arrays(torch, n + m, (2, n, d), (2, m, d), (2, m, e), dtype=dtype)
    wanted = oracle.attend(numbers(q), numbers(k), numbers(v))
    out = poisoned(torch, 2, n, e, dtype=q.dtype)
    got, lse = rc.attention.attend(q, k, v, out=out, return_lse=True)
    assert got is out
    errors.check(f"attend {dtype}", out, wanted.out, BOUNDS[dtype])
    errors.check("lse", lse, wanted.lse, 1e-5)
    again = rc.attention.attend(q, k, v)
    assert type(again) is type(q) and torch.equal(again, out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "size", [(128, 256, 64), (4096, 3000, 128), (130, 300, 128), (1, 70000, 64), (3, 129, 64)], ids=str
)
def test_tensor_cores(torch: Any, errors: Errors, size: tuple[int, ...], dtype: str) -> None:
    """Shapes that go to the kernel for compute capability 9.0 where there is one: keys that are the values, and values of their own."""
    n, m, d = size
    q, k, v = arrays(torch, n + m, (n, d), (m, d), (m, d), dtype=dtype)
    out = poisoned(torch, n, d, dtype=q.dtype)
    rc.hopfield.retrieve(q, k, beta=0.1, out=out)
    errors.check(f"retrieve {dtype}", out, oracle.attend(*map(numbers, (q, k, k)), scale=0.1).out, BOUNDS[dtype])
    for _ in range(20):  # a race shows as a difference
        assert torch.equal(rc.hopfield.retrieve(q, k, beta=0.1), out)
    wanted = oracle.attend(*map(numbers, (q, k, v)), scale=0.1)
    got, lse = rc.attention.attend(q, k, v, scale=0.1, return_lse=True)
    errors.check(f"attend {dtype}", got, wanted.out, BOUNDS[dtype])
    errors.check("lse of halves", lse, wanted.lse, 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
@pytest.mark.parametrize(
    "size", [(130, 300, 64, 64), (700, 500, 128, 100), (40, 30000, 128, 128), (9, 33, 20, 40)], ids=str
)
def test_tensor_cores_since_80(
    torch: Any, errors: Errors, size: tuple[int, ...], causal: bool | str, dtype: str
) -> None:
    n, m, d, e = size
    q, k, v = arrays(torch, n + m, (2, n, d), (2, m, d), (2, m, e), dtype=dtype)
    out = poisoned(torch, 2, n, e, dtype=q.dtype)
    _, lse = rc.attention.attend(q, k, v, causal=causal, out=out, return_lse=True)
    wanted = oracle.attend(numbers(q), numbers(k), numbers(v), causal=causal)
    errors.check(f"causal {dtype}", out, wanted.out, 2e-6 if dtype == "float32" else BOUNDS[dtype])
    errors.check(f"lse of {dtype}", lse, wanted.lse, 2e-6)
    for _ in range(20):  # a race shows as a difference
        assert torch.equal(rc.attention.attend(q, k, v, causal=causal), out)


def test_float32_of_all_sizes(torch: Any, errors: Errors) -> None:
    """Powers of two bring rows and tiles into the range of float16; what does not fit there is computed without it."""
    q, x = arrays(torch, 31, (200, 64), (3000, 64))
    for size in (1e-20, 1.0, 1e20, 1e30):
        got = rc.hopfield.retrieve(q, x * size, beta=0.5 / size) / size
        errors.check("sizes", got, oracle.attend(numbers(q), *2 * [numbers(x)], scale=0.5).out, 1e-5)
    x[5, 3], x[7, 1] = 1e30, float("nan")
    assert torch.isnan(rc.hopfield.retrieve(q, x, beta=0.5)).all()
    got = rc.attention.attend(q, x, x, causal="top-left")
    wanted = oracle.attend(numbers(q[:5]), *2 * [numbers(x[:5])], causal="top-left")
    errors.check("before what is not finite", got[:5], wanted.out, 1e-5)


@pytest.mark.parametrize("beta", [0.01, 1.0])  # scores within a bound, and not
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [(1, 70000, 64), (64, 300000, 128), (130, 3000, 128), (7, 500, 40)], ids=str)
def test_a_memory_that_stays(torch: Any, errors: Errors, size: tuple[int, ...], dtype: str, beta: float) -> None:
    n, m, d = size
    q, x, y = arrays(torch, n + m, (n, d), (m, d), (m, d), dtype=dtype)
    memory = rc.hopfield.HopfieldMemory.from_patterns(x[: m // 3], values=y[: m // 3], beta=beta)
    for begin, end in ((m // 3, m // 2), (m // 2, m)):
        memory.add(x[begin:end], y[begin:end])
    for read, values in (("patterns", x), ("values", y)):
        out = poisoned(torch, n, d, dtype=q.dtype)
        memory.retrieve(q, read=read, out=out)
        errors.check(
            f"memory {dtype}", out, oracle.attend(*map(numbers, (q, x, values)), scale=beta).out, BOUNDS[dtype]
        )
        for _ in range(20):  # a race shows as a difference
            assert torch.equal(memory.retrieve(q, read=read), out)


@pytest.mark.parametrize("causal", [False, True, "top-left"])
def test_masks_biases_and_groups(torch: Any, errors: Errors, causal: Any) -> None:
    q, k, v = arrays(torch, 3, (2, 6, 70, 40), (2, 2, 90, 40), (2, 2, 90, 24))
    (bias,) = arrays(torch, 4, (70, 90))
    mask = torch.rand((2, 1, 70, 90), device="cuda") < 0.5
    mask[0, 0, 5] = False
    scale = torch.linspace(0.1, 0.5, 6, device="cuda")
    k[:, :, 7], v[:, :, 7], mask[..., 7] = float("nan"), float("inf"), False  # what nobody may see
    given = {"causal": causal, "mask": mask.cpu().numpy(), "bias": numbers(bias), "scale": numbers(scale)}
    wanted = oracle.attend(numbers(q), numbers(k), numbers(v), **given)
    got, lse = rc.attention.attend(q, k, v, causal=causal, mask=mask, bias=bias, scale=scale, return_lse=True)
    errors.check("masked", got, wanted.out, 1e-5)
    errors.check("masked lse", lse, wanted.lse, 1e-5)


@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_gradients(torch: Any, errors: Errors, size: tuple[int, ...]) -> None:
    _cuda = _backend.load()
    n, m, d, e = size
    q, k, v, d_out = arrays(torch, 7, (2, n, d), (2, m, d), (2, m, e), (2, n, e))
    out, kept = poisoned(torch, 2, n, e), [poisoned(torch, 2, n), poisoned(torch, 2, n)]
    to = [poisoned(torch, *x.shape) for x in (q, k, v)]
    place, how = (0, 0), ((0.2, None), None, None, "bottom-right", "softmax")
    torch.cuda.synchronize()
    _cuda.attention_attend(place, q, k, v, *how, out, None, *kept)
    _cuda.attention_attend_backward(place, q, k, v, *how, *kept, out, d_out, *to)
    torch.cuda.synchronize()
    wanted = oracle.gradients(*map(numbers, (q, k, v, d_out)), scale=0.2, causal=True)
    for name, gradient in zip(("query", "key", "value"), to, strict=True):
        errors.check(f"d_{name}", gradient, getattr(wanted, name), 2e-5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("valued", [False, True])
def test_retrieve(torch: Any, errors: Errors, steps: int, valued: bool) -> None:
    x, y = arrays(torch, 9, (2000, 64), (2000, 10))
    q = x[:50] + 0.3 * arrays(torch, 10, (50, 64))[0]
    more = {"values": y} if valued else {}
    got = rc.hopfield.retrieve(q, x, beta=0.3, steps=steps, **more)
    told = hopfield.retrieve(numbers(q), numbers(x), 0.3, steps=steps, **{name: numbers(a) for name, a in more.items()})
    errors.check("retrieve", got, told[0] if isinstance(told, tuple) else told, 1e-5)


def check_all(errors: Errors, what: str, got: Any, wanted: Any, bound: float) -> None:
    for name in got._fields:
        errors.check(f"d_{name} of {what}", getattr(got, name), getattr(wanted, name), bound)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("axes", [(2, 6), (6,), (1, 1)], ids=str)
def test_pullback_of_attend(torch: Any, errors: Errors, axes: tuple[int, ...], dtype: str) -> None:
    """Grouped heads, a scale by head, a bias that is broadcast, an output whose gradient is asked for twice."""
    q, k, v, bias, d_out = arrays(
        torch, 21, (2, 6, 70, 40), (2, 2, 90, 40), (2, 2, 90, 24), (*axes, 70, 90), (2, 6, 70, 24), dtype=dtype
    )
    scale = torch.linspace(0.1, 0.3, 6, device="cuda")
    _, pullback = rc.vjp(rc.attention.attend, q, k, v, scale=scale, bias=bias, causal=True)
    given = {"scale": numbers(scale), "bias": numbers(bias), "causal": True}
    wanted = oracle.gradients(*map(numbers, (q, k, v, d_out)), **given)
    got, again = pullback(d_out), pullback(d_out)
    check_all(errors, f"attend {dtype}", got, wanted, 2 * BOUNDS[dtype])
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("valued", [False, True])
def test_pullback_of_retrieve(torch: Any, errors: Errors, valued: bool, steps: int, dtype: str) -> None:
    x, q, y = arrays(torch, 22, (900, 64), (3, 50, 64), (900, 64), dtype=dtype)
    (d_out,) = arrays(torch, 23, (3, 50, 64), dtype=dtype)
    more = {"values": y} if valued else {}
    out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=0.1, steps=steps, **more)
    assert torch.equal(out, rc.hopfield.retrieve(q, x, beta=0.1, steps=steps, **more))
    there = {name: numbers(a) for name, a in more.items()}
    wanted = hopfield.retrieve_gradients(numbers(q), numbers(x), 0.1, numbers(d_out), steps=steps, **there)
    check_all(errors, f"retrieve {dtype}", pullback(d_out), wanted, 2 * steps * BOUNDS[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "size", [(128, 256, 64), (300, 1000, 128), (3, 5000, 128), (5000, 3, 64), (70, 3000, 64)], ids=str
)
def test_gradients_on_tensor_cores(torch: Any, errors: Errors, size: tuple[int, ...], dtype: str) -> None:
    """Whole and ragged tiles, long walks in parts, causal and not, keys that are the values and values of their own."""
    n, m, d = size
    q, k, v, d_out = arrays(torch, n + m, (2, n, d), (2, m, d), (2, m, d), (2, n, d), dtype=dtype)
    bound = 2 * BOUNDS[dtype]
    for causal in (False, True):
        _, pullback = rc.vjp(rc.attention.attend, q, k, v, scale=0.1, causal=causal)
        wanted = oracle.gradients(*map(numbers, (q, k, v, d_out)), scale=0.1, causal=causal)
        got = pullback(d_out)
        for name in ("query", "key", "value"):  # a scale's has errors of `out`, summed over rows
            errors.check(f"d_{name} of attend {dtype}", getattr(got, name), getattr(wanted, name), bound)
        for _ in range(20):  # a race shows as a difference
            assert all(torch.equal(a, b) for a, b in zip(got, pullback(d_out), strict=True))
    _, pullback = rc.vjp(rc.hopfield.retrieve, q, k, beta=0.1, steps=2)
    wanted = hopfield.retrieve_gradients(numbers(q), numbers(k), 0.1, numbers(d_out), steps=2)
    got = pullback(d_out)
    for name in ("state", "patterns"):
        errors.check(f"d_{name} of retrieve {dtype}", getattr(got, name), getattr(wanted, name), 2 * bound)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(got, pullback(d_out), strict=True))


def test_energy_and_its_pullback(torch: Any, errors: Errors) -> None:
    q, x, d_out = arrays(torch, 24, (3, 50, 64), (900, 64), (3, 50))
    mask, beta = torch.rand((50, 900), device="cuda") < 0.5, torch.linspace(0.1, 0.3, 3, device="cuda")
    mask[4] = False
    out, pullback = rc.vjp(rc.hopfield.energy, q, x, beta=beta, mask=mask)
    there = (numbers(q), numbers(x), numbers(beta))
    seen = np.arange(50) != 4  # the other one's energy is +inf
    errors.check("energy", out[:, seen], hopfield.energy(*there, mask=mask.cpu().numpy())[:, seen], 1e-5)
    assert torch.isposinf(out[:, 4]).all()
    wanted = hopfield.energy_gradients(*there, numbers(d_out), mask=mask.cpu().numpy())
    check_all(errors, "energy", pullback(d_out), wanted, 2e-5)


@pytest.mark.parametrize("valued", [False, True])
def test_what_is_told_of_a_retrieval(torch: Any, errors: Errors, valued: bool) -> None:
    q, x, y = arrays(torch, 25, (2, 50, 64), (900, 64), (900, 10))
    more = {"values": y} if valued else {}
    got = rc.hopfield.retrieve(q, x, beta=0.3, steps=4, return_info=True, **more)
    here = {name: a.cpu().numpy() for name, a in more.items()}
    wanted = rc.hopfield.retrieve(q.cpu().numpy(), x.cpu().numpy(), beta=0.3, steps=4, return_info=True, **here)
    for name in ("state", "energy", "lse"):
        errors.check(f"{name} of retrieve", getattr(got, name), getattr(wanted, name), 1e-5)
    assert (got.steps == 4).all() and got.converged.dtype == torch.bool


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_sinks(torch: Any, errors: Errors, dtype: str) -> None:
    q, k, v, d_out = arrays(torch, 26, (2, 6, 70, 64), (2, 2, 90, 64), (2, 2, 90, 64), (2, 6, 70, 64), dtype=dtype)
    sink = torch.linspace(-1, 4, 6, device="cuda")
    out, pullback = rc.vjp(rc.attention.attend, q, k, v, sink=sink)
    wanted = oracle.attend(*map(numbers, (q, k, v)), sink=numbers(sink))
    got, lse = rc.attention.attend(q, k, v, sink=sink, return_lse=True)
    assert torch.equal(got, out)
    errors.check(f"attend with sinks {dtype}", out, wanted.out, BOUNDS[dtype])
    errors.check("lse with sinks", lse, wanted.lse, 1e-4)
    there = oracle.gradients(*map(numbers, (q, k, v, d_out)), sink=numbers(sink))
    check_all(errors, f"attend with sinks {dtype}", pullback(d_out), there, 2 * BOUNDS[dtype])


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("size", [(200, 900), (3, 9000)], ids=str)
def test_rows_that_come_to_rest(torch: Any, errors: Errors, size: tuple[int, int], dtype: str) -> None:
    """To the last bit the rule applied to single steps; gradients as those of so many steps."""
    n, m = size
    q, x, d_out = arrays(torch, 27, (n, 64), (m, 64), (n, 64), dtype=dtype)
    got = rc.hopfield.retrieve(q, x, beta=0.3, steps=9, tol=0.1, return_info=True)
    state, moving, taken = q, torch.ones(n, dtype=torch.bool, device="cuda"), torch.zeros(n, device="cuda")
    for _ in range(9):
        after = torch.where(moving[:, None], rc.hopfield.retrieve(state, x, beta=0.3), state)
        taken += moving
        moving &= (after.double() - state.double()).norm(dim=-1) > 0.1
        state = after
    assert torch.equal(got.state, state) and torch.equal(got.steps.float(), taken)
    assert torch.equal(got.converged, ~moving) and len(torch.unique(taken)) > 1
    out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=0.3, steps=9, tol=0.1)
    assert torch.equal(out, state)
    if dtype == "float32":
        there = rc.vjp(rc.hopfield.retrieve, numbers(q), numbers(x), beta=0.3, steps=9, tol=0.1)[1](numbers(d_out))
        check_all(errors, "retrieve until rest", pullback(d_out), there, 1e-4)
    rest = rc.hopfield.retrieve(q, x, beta=0.3, steps=None, tol=0.1)
    assert torch.equal(rest[got.converged], got.state[got.converged])


def test_a_stream_of_ones_own(torch: Any, errors: Errors) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        q, k, v = arrays(torch, 11, (3, 200, 64), (3, 300, 64), (3, 300, 64))
        got = rc.attention.attend(q, k, v, stream=stream.cuda_stream)
    stream.synchronize()
    errors.check("stream", got, oracle.attend(numbers(q), numbers(k), numbers(v)).out, 1e-5)


def test_wrong_calls_on_a_device(torch: Any) -> None:
    q, k = arrays(torch, 1, (3, 4), (5, 4))
    with pytest.raises(ValueError, match=r"attention.attend: key has shape \(5, 3\); expected \(..., m, d=4\)"):
        rc.attention.attend(q, k[:, :3], k)
    with pytest.raises(TypeError, match="attention.attend: query has dtype float64"):
        rc.attention.attend(q.double(), k, k)
    assert np.isfinite(numbers(rc.attention.attend(q, k, k))).all()
