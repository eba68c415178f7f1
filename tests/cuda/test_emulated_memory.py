"""A Hopfield memory of device arrays, from Python to the kernels on the emulator."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from recollect.hopfield import HopfieldMemory, retrieve

from tests.cuda.test_emulated_module import OnCard, card, draw, module
from tests.reference import attention, hopfield

__all__ = ["card", "module"]  # fixtures
pytestmark = pytest.mark.slow


def halves(*shapes: tuple[int, ...]) -> list[Any]:
    return [draw(*shape).astype(np.float16) for shape in shapes]


def wide(*arrays: Any) -> list[Any]:
    return [array.astype(np.float64) for array in arrays]


def test_patterns_are_packed_once_and_added_to() -> None:
    x, y, q = halves((300, 64), (300, 64), (2, 3, 64))
    memory = HopfieldMemory.from_patterns(OnCard(x[:100]), values=OnCard(y[:100]), beta=0.2)
    assert memory.add(OnCard(x[100:140]), OnCard(y[100:140])).tolist() == list(range(100, 140))
    memory.add(OnCard(x[140:]), OnCard(y[140:]))
    assert repr(memory) == "HopfieldMemory(300 patterns, d=64, values=64, beta=0.2, storage=float16, on cuda:0, packed)"
    got = memory.retrieve(OnCard(q))
    assert isinstance(got, OnCard) and got.array.dtype == np.float16 and got.shape == (2, 3, 64)
    np.testing.assert_allclose(got.array, attention.attend(*wide(q, x, y), scale=0.2).out, atol=2e-3)
    out = OnCard(np.full((64,), np.nan, np.float16))
    assert memory.retrieve(OnCard(q[0, 0]), read="patterns", beta=0.1, out=out) is out
    np.testing.assert_allclose(out.array, attention.attend(*wide(q[0, :1], x, x), scale=0.1).out[0], atol=2e-3)
    given: dict[str, Any] = {"beta": 0.3, "steps": 4, "tol": 0.5}
    got = memory.retrieve(OnCard(q), read="patterns", **given)
    again = retrieve(OnCard(q), OnCard(x), **given)
    np.testing.assert_array_equal(got.array, again.array)


def test_what_is_not_packed_is_kept_in_rows() -> None:
    x, y, q = draw(70, 24), draw(70, 7), draw(5, 24)
    memory = HopfieldMemory.from_patterns(OnCard(x[:30]), values=OnCard(y[:30]))
    memory.add(OnCard(x[30:]), OnCard(y[30:]))
    memory.add(OnCard(x[:0]), OnCard(y[:0]))
    assert "packed" not in repr(memory) and len(memory) == 70 and memory.ids[-1] == 69
    got = memory.retrieve(OnCard(q), beta=0.7, steps=3)
    wanted = hopfield.retrieve(*wide(q, x), 0.7, steps=3, values=y.astype(np.float64))
    np.testing.assert_allclose(got.array, wanted[0] if isinstance(wanted, tuple) else wanted, atol=1e-5)
    given = {"beta": 0.7, "tol": 0.3, "steps": 4}
    got = memory.retrieve(OnCard(q), read="patterns", **given)
    there = HopfieldMemory.from_patterns(x).retrieve(q, **given)
    np.testing.assert_allclose(got.array, there, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda m, q: m.retrieve(q.array),
            TypeError,
            "cues (ndarray) is not on a CUDA device; expected cuda:0, as the memory",
        ),
        (
            lambda m, q: m.retrieve(OnCard(draw(2, 64))),
            TypeError,
            "cues has dtype float32; expected float16, as what is stored",
        ),
        (lambda m, q: m.retrieve(q[:, :3]), ValueError, "cues has shape (2, 3); expected (..., d=64)"),
        (lambda m, q: m.retrieve(q, steps=1.5), TypeError, "steps is 1.5; expected a whole number or None"),
        (lambda m, q: m.retrieve(q, tol=-1), ValueError, "tol is -1.0; expected a number of at least 0"),
        (lambda m, q: m.retrieve(q, read="values"), ValueError, "read is 'values'; this memory can read patterns"),
        (lambda m, q: m.retrieve(q, beta=-1), ValueError, "beta is -1"),
        (lambda m, q: m.add(q, q), ValueError, "this memory has no values; some were given"),
        (lambda m, q: m.add(q[:, :3]), ValueError, "patterns has shape (2, 3); expected (n, d=64), as what is stored"),
        (lambda m, q: m.add(q, ids=[7, 8]), ValueError, "ids is [7, 8]; expected None"),
        (
            lambda m, q: m.remove([0]),
            TypeError,
            "HopfieldMemory.remove: the memory is on cuda:0, where it can add and retrieve",
        ),
        (lambda m, q: m.patterns, TypeError, "HopfieldMemory.patterns: the memory is on cuda:0"),
        (lambda m, q: copy.copy(m), TypeError, "the memory is on cuda:0"),
    ],
)
def test_wrong_calls_get_one_sentence(call: Any, kind: Any, sentence: str) -> None:
    x, q = halves((5, 64), (2, 64))
    memory = HopfieldMemory.from_patterns(OnCard(x), beta=1.0)
    with pytest.raises(kind) as caught:
        call(memory, OnCard(q))
    assert sentence in str(caught.value)


def test_memories_that_cannot_be_made() -> None:
    x = draw(5, 64)
    for given, kind, sentence in (
        ({"patterns": OnCard(x), "values": x}, TypeError, "values (ndarray) is not on a CUDA device"),
        ({"patterns": OnCard(x[0])}, ValueError, r"patterns has shape (64,); expected (N, d)"),
        (
            {"patterns": OnCard(x), "values": OnCard(x[:4])},
            ValueError,
            "values has shape (4, 64); expected (n=5, e=64)",
        ),
        ({"patterns": OnCard(x), "storage": "float16"}, ValueError, "storage is 'float16'; expected None"),
        (
            {"patterns": OnCard(x.astype(np.float64))},
            TypeError,
            "patterns has dtype float64; expected float32, float16",
        ),
        ({"patterns": OnCard(draw(5, 300))}, ValueError, "expected rows of at most 256 numbers on a device"),
        ({"patterns": x, "stream": 3}, ValueError, "stream is given, but no array is on a CUDA device"),
    ):
        with pytest.raises(kind) as caught:
            HopfieldMemory.from_patterns(**given)
        assert sentence in str(caught.value) and str(caught.value).startswith("HopfieldMemory.from_patterns: ")
    with pytest.raises(ValueError, match="the memory is empty"):
        HopfieldMemory.from_patterns(OnCard(x[:0]), beta=1.0).retrieve(OnCard(x))
