"""From the public function to the kernel without a GPU: the module `_cuda`, built with the emulator in the place of a card, and arrays in
the memory of this process that say they are on one."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recollect as rc
from recollect import _device

from tests import fastweight_checks as fw
from tests.cuda import fast_weight_gradients
from tests.meta.toolchain import run, tool
from tests.reference import attention, fastweight, feature_maps, hopfield

pytestmark = pytest.mark.slow


class Device(ctypes.Structure):
    """The beginning of a DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("card", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
    ]


def inside(capsule: Any) -> Device:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Device.from_address(pointer(capsule, b"dltensor"))


class OnCard:
    """A NumPy array that passes for one of card 0."""

    def __init__(self, array: Any, owner: Any = None) -> None:
        self.array, self.owner = array, owner
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        capsule = self.array.__dlpack__()
        inside(capsule).kind = 2
        return capsule

    def __getitem__(self, index: Any) -> OnCard:
        return OnCard(self.array[index], self.owner)

    def reshape(self, *shape: Any) -> OnCard:
        view = self.array.reshape(*shape)
        assert view.size == 0 or np.shares_memory(view, self.array)
        return OnCard(view, self.owner)

    @property
    def T(self) -> OnCard:
        return OnCard(self.array.T, self.owner)

    def __matmul__(self, other: OnCard) -> OnCard:
        return OnCard(self.array @ other.array)

    def __array_namespace__(self) -> Any:
        return OnCard

    @staticmethod
    def from_dlpack(owned: Any) -> OnCard:
        capsule = owned.__dlpack__()
        device = inside(capsule)
        code, bits, lanes, _ = device.type
        assert device.kind == 2 and lanes == 1
        kind = {(2, 16): "f2", (2, 32): "f4", (0, 64): "i8", (6, 8): "?"}[code, bits]
        shape = tuple(device.shape[: device.rank])
        memory = (ctypes.c_char * (int(np.prod(shape)) * bits // 8)).from_address(device.data)
        array = np.frombuffer(memory, kind).reshape(shape)
        array[...] = np.nan if code == 2 else -7
        return OnCard(array, (owned, capsule))


@functools.cache
def built(build: Path) -> Any:
    source = Path(__file__).parent / "emulated"
    python = f"-DPython_EXECUTABLE={sys.executable}"
    run(tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", python)
    run(tool("cmake"), "--build", build)
    (path,) = build.glob("_cuda*.so")
    spec = importlib.util.spec_from_file_location("recollect._cuda", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(tmp_path_factory.getbasetemp() / "emulated")  # once for all files of tests


@pytest.fixture(autouse=True)
def card(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "backend", lambda op, name: module)


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape).astype(np.float32)


def test_attend_with_groups_masks_and_scales() -> None:
    q, k, v = draw(2, 6, 9, 20), draw(2, 2, 40, 20), draw(2, 2, 40, 12)
    scale, mask = np.linspace(0.1, 0.5, 6, dtype=np.float32), draw(2, 1, 9, 40) > 0
    mask[0, 0, 3] = False
    out = OnCard(np.full((2, 6, 9, 12), np.nan, np.float32))
    given = {"causal": True, "mask": mask, "scale": scale}
    wanted = attention.attend(*(a.astype(np.float64) for a in (q, k, v)), **given)
    got = rc.attention.attend(
        OnCard(q), OnCard(k), OnCard(v), causal=True, mask=OnCard(mask), scale=OnCard(scale), return_lse=True, out=out
    )
    assert got.out is out and isinstance(got.lse, OnCard)
    np.testing.assert_allclose(out.array, wanted.out, atol=2e-6)
    np.testing.assert_allclose(got.lse.array, wanted.lse, atol=2e-5)
    plain = rc.attention.attend(OnCard(q), OnCard(k), OnCard(v))
    here = rc.attention.attend(q, k, v)
    np.testing.assert_allclose(plain.array, here, atol=2e-6)


def test_attend_backward(module: Any) -> None:
    q, k, v, d_out = draw(2, 9, 20), draw(2, 40, 20), draw(2, 40, 12), draw(2, 9, 12)
    out, largest, log_sum = (np.full(s, np.nan, np.float32) for s in ((2, 9, 12), (2, 9), (2, 9)))
    to = [np.full_like(a, np.nan) for a in (q, k, v)]
    card = lambda *arrays: [OnCard(a) for a in arrays]  # noqa: E731
    how = ((0.2, None), None, None, "bottom-right", "softmax")
    module.attention_attend((0, 0), *card(q, k, v), *how, *card(out), None, *card(largest, log_sum))
    module.attention_attend_backward((0, 0), *card(q, k, v), *how, *card(largest, log_sum, out, d_out, *to))
    wanted = attention.gradients(*(a.astype(np.float64) for a in (q, k, v, d_out)), scale=0.2, causal=True)
    for name, gradient in zip(("query", "key", "value"), to, strict=True):
        np.testing.assert_allclose(gradient, getattr(wanted, name), atol=1e-5)


def test_retrieve_in_steps() -> None:
    state, patterns, values = draw(5, 24), draw(70, 24), draw(70, 7)
    got = rc.hopfield.retrieve(OnCard(state), OnCard(patterns), beta=0.7, values=OnCard(values), steps=3)
    here = rc.hopfield.retrieve(state, patterns, beta=0.7, values=values, steps=3)
    np.testing.assert_allclose(got.array, here, atol=1e-5)
    once = hopfield.step(state.astype(np.float64), patterns.astype(np.float64), 0.7)
    got = rc.hopfield.retrieve(OnCard(state), OnCard(patterns), beta=0.7)
    np.testing.assert_allclose(got.array, once[0] if isinstance(once, tuple) else once, atol=1e-5)


def test_halves_arrive_at_the_tensor_cores() -> None:
    """Widths of 64 and 128 without a mask are the kernel's for compute capability 9.0, which rounds weights to 16 bits."""
    state, patterns, values = (draw(*shape).astype(np.float16) for shape in ((5, 64), (300, 64), (300, 64)))
    wide = [a.astype(np.float64) for a in (state, patterns, values)]
    got = rc.hopfield.retrieve(OnCard(state), OnCard(patterns), beta=0.2)
    assert got.array.dtype == np.float16
    np.testing.assert_allclose(got.array, attention.attend(wide[0], wide[1], wide[1], scale=0.2).out, atol=2e-3)
    got = rc.attention.attend(*map(OnCard, (state, patterns, values)), return_lse=True)
    wanted = attention.attend(*wide)
    np.testing.assert_allclose(got.out.array, wanted.out, atol=2e-3)
    np.testing.assert_allclose(got.lse.array, wanted.lse, atol=1e-4)


def test_fast_weights_update_a_state_in_place() -> None:
    q, k, v = draw(2, 3, 11, 16) / 4, draw(2, 3, 11, 16, seed=1) / 4, draw(2, 3, 11, 10)
    beta, decay = np.abs(draw(2, 3, 11)) / 4, np.exp(-np.abs(draw(3, 11, 16)))
    state = draw(2, 3, 16, 10)
    phi = [feature_maps.value(a.astype(np.float64), "identity", "l2") for a in (q, k)]
    wanted = fastweight.delta_rule(*phi, v, beta, decay=decay, state=fastweight.State(state.astype(np.float64)))
    place = OnCard(state)
    got = rc.fastweight.delta_rule(
        *map(OnCard, (q, k, v, beta)),
        decay=OnCard(decay),
        normalize="l2",
        state=place,
        out_state=place,
        return_state=True,
    )
    assert got.state is place
    np.testing.assert_allclose(got.out.array, wanted.out, atol=1e-5)
    np.testing.assert_allclose(state, wanted.state.S, atol=1e-5)
    sums = rc.fastweight.linear_attention(*map(OnCard, (q, k, v)))
    np.testing.assert_allclose(sums.array, rc.fastweight.linear_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("rule", ["sum", "delta", "gated", "l2"])
def test_halves_of_fast_weights_arrive_at_the_tensor_cores(rule: str) -> None:
    """Keys of 64 and 128 go there in chunks, and what is written is rounded to 16 bits. Tokens may lie before heads."""
    q, k, v = (draw(1, 40, 2, width, seed=width).astype(np.float16).swapaxes(1, 2) for width in (64, 64, 24))
    k = (k / 8).astype(np.float16)
    beta, decay = np.random.default_rng(0).uniform(0.5, 1, (2, 1, 2, 40)).astype(np.float16)
    state = draw(1, 2, 64, 24)
    before, place = state.copy(), OnCard(state)
    wide = [a.astype(np.float64) for a in (q, k, v)]
    given: dict[str, Any] = {"state": fastweight.State(before.astype(np.float64)), "scale": 0.5}
    how: dict[str, Any] = {"state": place, "out_state": place, "return_state": True, "scale": 0.5}
    if rule == "sum":
        wanted = fastweight.sum_rule(*wide, **given)
        got = rc.fastweight.linear_attention(*map(OnCard, (q, k, v)), feature_map="identity", normalize=False, **how)
    else:
        if rule == "l2":
            how["normalize"] = "l2"
            wide[:2] = (feature_maps.value(a, "identity", "l2") for a in wide[:2])
        if rule == "gated":
            given["decay"], how["decay"] = decay.astype(np.float64)[..., None], OnCard(decay)
        wanted = fastweight.delta_rule(*wide, beta.astype(np.float64), **given)
        got = rc.fastweight.delta_rule(*map(OnCard, (q, k, v, beta)), **how)
    assert got.out.array.dtype == np.float16 and got.state is place
    for mine, theirs in ((got.out.array, wanted.out), (state, wanted.state.S)):
        error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
        assert error < 1e-3
    if rule != "sum":
        assert np.abs(state - wanted.state.S).max() > 1e-5  # not token by token


FAST_WEIGHTS = fast_weight_gradients.cases(9, 5, 4)


@pytest.mark.parametrize("name", FAST_WEIGHTS)
def test_fast_weight_gradients(name: str) -> None:
    for operand, got, wanted, size in fast_weight_gradients.witnesses(FAST_WEIGHTS[name], OnCard, lambda a: a.array):
        assert got.dtype == np.float32, operand
        fw.near(got, wanted, 2e-5, f"d_{operand}", size)


@pytest.mark.parametrize("rule", ["sum", "gated delta"])
def test_fast_weight_gradients_of_halves_come_from_the_tensor_cores(rule: str) -> None:
    """In chunks, several sequences with one state; what is passed on is rounded to 16 bits."""
    rng, half, size = np.random.default_rng(5), np.float16, {"T": 40, "K": 64, "V": 24, "batch": (2,)}
    more = {"state": fw.draw(rng, np.float32, 64, 24), "scale": np.array([0.5, 0.7], np.float32)}
    if rule == "sum":
        op, given = "linear_attention", fw.linear(rng, half, **size, feature_map="identity", normalize=False, **more)
    else:
        op, given = "delta_rule", fw.delta(rng, half, **size, decay=fw.decays(rng, half, 2, 40), **more)
    there = {name: OnCard(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    _, pullback = rc.vjp(getattr(rc.fastweight, op), **there, return_state=True)
    d_out, d_state = fw.draw(rng, half, 2, 40, 24), fw.draw(rng, np.float32, 2, 64, 24)
    got = pullback((OnCard(d_out), OnCard(d_state)))
    exact, _ = fw.expected_gradients(op, given, d_out, d_state, kind=np.float64)
    assert list(got._fields) == fw.fields(op, given)
    for name in got._fields:
        mine, wanted = getattr(got, name).array, exact[name][0] if name == "state" else exact[name]
        assert mine.dtype == given[name].dtype
        error = np.linalg.norm(mine - wanted) / np.linalg.norm(wanted)
        assert error < 1e-3, name
        if name == "state":
            assert error > 1e-5  # not token by token


def test_fast_weight_gradients_of_halves_have_their_type() -> None:
    q, k, v = (draw(4, 6, seed=i).astype(np.float16) for i in range(3))
    _, pullback = rc.vjp(rc.fastweight.linear_attention, *map(OnCard, (q, k, v)))
    d_out = draw(4, 6)
    got = pullback(OnCard(d_out.astype(np.float16)))
    here = rc.vjp(rc.fastweight.linear_attention, *(a.astype(np.float32) for a in (q, k, v)))[1](d_out)
    assert got._fields == ("query", "key", "value")
    for name in got._fields:
        assert getattr(got, name).array.dtype == np.float16
        np.testing.assert_allclose(getattr(got, name).array, getattr(here, name), atol=1e-2)
    with pytest.raises(TypeError, match="fastweight.linear_attention: d_out has dtype float32; expected float16"):
        pullback(OnCard(d_out))


def test_shapes_get_the_sentence_of_the_core() -> None:
    q, k = draw(3, 4), draw(5, 3)
    sentences = []
    for kind in (np.asarray, OnCard):
        with pytest.raises(ValueError) as caught:
            rc.attention.attend(kind(q), kind(k), kind(k))
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1] == "attention.attend: key has shape (5, 3); expected (..., m, d=4)"
    with pytest.raises(
        TypeError, match="attention.attend: query has dtype float64; expected float32, float16 or bfloat16"
    ):
        rc.attention.attend(OnCard(q.astype(np.float64)), OnCard(q), OnCard(q))
