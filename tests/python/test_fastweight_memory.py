"""FastWeightMemory: it holds what its equations say, in one write or many; merges, copies, files; a wrong call changes nothing."""

import copy
import json
import pickle
import threading

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st
from recollect.fastweight import FastWeightMemory
from safetensors.numpy import load_file, save_file

from tests.fastweight_checks import favor, unit
from tests.python.conftest import bits
from tests.reference import fastweight, feature_maps

MAPS = (None, "elu1", "dpfp2", "softmax")
EPS = {np.float32: 3e-5, np.float64: 1e-12}


def tokens(rng, dtype, T=9, d=6, V=5, shape=()):
    query, key = (unit(rng.standard_normal((*shape, T, d))).astype(dtype) for _ in range(2))
    return query, key, rng.standard_normal((*shape, T, V)).astype(dtype)


def strengths(rng, dtype, T=9, shape=(), low=0.2):
    return (low + (1 - low) * rng.random((*shape, T))).astype(dtype)


def phi(x, memory):
    norm = memory.normalize if memory.normalize in ("sum", "l2") else "none"
    name, nu = memory.feature_map.name, memory.feature_map.nu
    return feature_maps.value(x.astype(np.longdouble), (name, nu) if name == "dpfp" else name, norm)


def expected(memory, query, key, value, beta, decay=None):
    """What the queries read, one after each write."""
    q, k = (phi(x, memory) for x in (query, key))
    fading = None if decay is None else decay[..., None].astype(np.longdouble)
    attention = memory.normalize == "attention"
    if memory.rule == "sum":
        return fastweight.sum_rule(q, k, value.astype(np.longdouble), normalize=attention, decay=fading).out
    wide = (value.astype(np.longdouble), beta.astype(np.longdouble))
    return fastweight.delta_rule(q, k, *wide, attention=attention, decay=fading).out


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("normalize", ["none", "sum", "l2", "attention"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_one_by_one_at_once_and_by_the_equations(rng, dtype, rule, name, normalize, shape):
    query, key, value = tokens(rng, dtype, shape=shape)
    decay, delta = strengths(rng, dtype, shape=shape), rule == "delta"
    beta = strengths(rng, dtype, shape=shape, low=0.0) if delta else None
    make = {"rule": rule, "feature_map": name, "normalize": normalize, "shape": shape, "dtype": dtype}
    steps, bulk, apart = (FastWeightMemory(6, 5, **make) for _ in range(3))
    exact = expected(bulk, query, key, value, beta, decay)
    tol = EPS[dtype] * (1 + np.abs(exact).max())
    got = bulk.step(query, key, value, beta, decay=decay)
    assert got.dtype == dtype and got.shape == value.shape
    np.testing.assert_allclose(got, exact, atol=tol, rtol=0)
    for t in range(key.shape[-2]):
        now = {"decay": decay[..., t]}
        strength = None if beta is None else beta[..., t]
        one = steps.step(query[..., t, :], key[..., t, :], value[..., t, :], strength, **now)
        apart.write(key[..., t, :], value[..., t, :], strength, **now)
        np.testing.assert_allclose(one, exact[..., t, :], atol=tol, rtol=0)
        np.testing.assert_allclose(apart.read(query[..., t, :]), exact[..., t, :], atol=tol, rtol=0)
    np.testing.assert_allclose(bulk.read(query)[..., -1, :], exact[..., -1, :], atol=tol, rtol=0)


def test_what_the_paper_says_of_writes(rng, dtype):
    key, value = np.eye(4, dtype=dtype)[:3], rng.standard_normal((3, 2)).astype(dtype)
    memory = FastWeightMemory(4, 2, dtype=dtype)
    memory.write(key, value)
    np.testing.assert_array_equal(memory.read(key), value)
    memory.write(key[0], [5, 6])  # replaced, and orthogonal keys are not disturbed
    np.testing.assert_array_equal(memory.read(key), [[5, 6], *value[1:]])
    before = bits(memory.state)
    memory.write(key[1], memory.read(key[1]))  # what is there already changes nothing
    assert bits(memory.state) == before
    average = FastWeightMemory(4, 2, rule="sum", normalize="attention", dtype=dtype)
    average.write(key[[0, 0]], [[1, 2], [3, 6]])
    np.testing.assert_array_equal(average.read(key[0]), [2, 4])


def test_channels_fade_apart_and_logarithms_are_decays(rng, dtype):
    _, key, value = tokens(rng, dtype)
    decay = strengths(rng, dtype).astype(np.float64)[:, None] ** np.arange(1, 7)
    a, b = FastWeightMemory(6, 5, dtype=dtype), FastWeightMemory(6, 5, dtype=dtype)
    a.write(key, value, 0.5, decay=decay)
    b.write(key, value, np.full(9, 0.5), log_decay=np.log(decay))
    np.testing.assert_allclose(a.state, b.state, atol=20 * EPS[dtype])
    with pytest.raises(ValueError, match="both given"):
        a.write(key, value, decay=decay, log_decay=np.log(decay))


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.booleans(), st.sampled_from(["none", "attention"]))
def test_the_sum_rule_is_a_monoid(seed, cut, channels, normalize):
    rng = np.random.default_rng(seed)
    query, key, value = tokens(rng, np.float64, T=6, shape=(2,))
    decay = 1 - 0.5 * rng.random((2, 6, 12) if channels else (2, 6))
    make = {"rule": "sum", "feature_map": "dpfp1", "normalize": normalize, "shape": (2,), "dtype": np.float64}
    whole, first, second = (FastWeightMemory(6, 5, **make) for _ in range(3))
    whole.write(key, value, decay=decay)
    first.write(key[:, :cut], value[:, :cut], decay=decay[:, :cut])
    second.write(key[:, cut:], value[:, cut:], log_decay=np.log(decay[:, cut:]))
    kept = bits(second.state)
    empty = FastWeightMemory(6, 5, **make)
    empty.merge(first)
    empty.merge(second)  # the empty one is neutral, and what was merged can be merged with again
    np.testing.assert_allclose(empty.state, whole.state, atol=1e-12)
    np.testing.assert_allclose(empty.read(query), whole.read(query), atol=1e-10)
    assert bits(second.state) == kept


def test_long_rows_of_favor_merge(rng, dtype):
    phi = rc.fastweight.favor.draw(np.random.default_rng(3), 6, 8)
    query, key, value = tokens(rng, dtype, T=8, shape=(2,))
    make = {"rule": "sum", "feature_map": phi, "normalize": "attention", "shape": (2,), "dtype": dtype}
    whole, first, second = (FastWeightMemory(6, 5, **make) for _ in range(3))
    key[:, :4] *= 50  # whose features are far below the smallest number that there is
    whole.write(key, value, decay=0.5)
    first.write(key[:, :4], value[:, :4], decay=0.5)
    second.write(key[:, 4:], value[:, 4:], decay=0.5)
    alone = first.read(query)
    assert np.isfinite(alone).all() and np.abs(alone).max() > 0.1
    first.merge(second)
    np.testing.assert_allclose(first.read(query), whole.read(query), atol=2e-4 if dtype == np.float32 else 1e-10)
    before = FastWeightMemory(6, 5, **make)
    before.merge(whole)
    np.testing.assert_array_equal(before.state, whole.state)


def test_what_cannot_be_merged_says_so():
    delta, other = FastWeightMemory(3, 2), FastWeightMemory(3, 2, rule="sum")
    with pytest.raises(ValueError, match="FastWeightMemory.merge: the rule is 'delta'.*expected rule 'sum'"):
        delta.merge(delta)
    with pytest.raises(ValueError, match="other is FastWeightMemory"):
        other.merge(FastWeightMemory(3, 2, rule="sum", normalize="l2"))
    with pytest.raises(ValueError, match="with the same map"):
        maps = (rc.fastweight.favor(favor(3, seed=s)[1]) for s in (1, 2))
        a, b = (FastWeightMemory(3, 2, rule="sum", feature_map=m) for m in maps)
        a.merge(b)
    with pytest.raises(TypeError, match="other is a list"):
        other.merge([1])


def test_capacity_rank_and_interference(rng):
    key, value = unit(rng.standard_normal((9, 6))), rng.standard_normal((9, 7))
    memory = FastWeightMemory(6, 7, dtype=np.float64)
    assert memory.capacity == 6 and memory.rank() == 0
    assert FastWeightMemory(6, 7, feature_map="dpfp2").capacity == 24
    memory.write(key[:4], value[:4])
    assert memory.rank() == 4
    memory.write(key, value)
    assert memory.rank() == 6
    assert memory.interference(key[-1], value[-1]) < 1e-12  # the last one is exact
    assert memory.interference(key, value)[:3].min() > 0.05  # nine keys do not fit in six dimensions
    orthogonal = FastWeightMemory(6, 7, dtype=np.float64)
    orthogonal.write(np.eye(6), value[:6])
    assert orthogonal.interference(np.eye(6), value[:6]).max() < 1e-15
    assert orthogonal.interference(np.eye(6)[0], np.zeros(7)) == np.inf
    assert FastWeightMemory(6, 7).interference(key[0], np.zeros(7)) == 0
    heads = FastWeightMemory(2, 3, shape=(2, 3))
    assert heads.rank().shape == (2, 3) and heads.interference(np.ones((2, 3, 4, 2)), np.ones((2, 3, 4, 3))).shape == (
        2,
        3,
        4,
    )


@pytest.mark.parametrize("name", [None, "dpfp3", "favor"])
def test_copies_pickles_and_files_are_exact(rng, dtype, tmp_path, name):
    chosen = rc.fastweight.favor(favor(6)[1]) if name == "favor" else name
    rule = "delta" if name is None else "sum"
    memory = FastWeightMemory(6, 5, rule=rule, feature_map=chosen, normalize="attention", shape=(2,), dtype=dtype)
    query, key, value = tokens(rng, dtype, shape=(2,))
    memory.write(key, value, decay=strengths(rng, dtype, shape=(2,)))
    memory.save(tmp_path / "memory.safetensors")
    before, read = bits(memory.state), bits(memory.read(query))
    others = [memory.copy(), copy.copy(memory), copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    others.append(FastWeightMemory.load(tmp_path / "memory.safetensors"))
    for other in others:
        assert repr(other) == repr(memory) and bits(other.state) == before and bits(other.read(query)) == read
        if rule == "sum":
            merged = memory.copy()
            merged.merge(other)
            again = memory.copy()
            again.merge(memory)
            assert bits(merged.state) == bits(again.state)
        other.write(key, value)
        assert bits(memory.state) == before != bits(other.state)
    with pytest.raises(FileExistsError):
        memory.save(tmp_path / "memory.safetensors")
    memory.save(tmp_path / "memory.safetensors", overwrite=True)


def test_damaged_files_are_one_sentence(tmp_path):
    path = tmp_path / "memory.safetensors"
    memory = FastWeightMemory(3, 2)
    memory.save(path)
    whole, arrays = path.read_bytes(), load_file(path)
    header = {"format": "recollect.FastWeightMemory", "format_version": "1"}
    form = {
        "d": 3,
        "values": 2,
        "rule": "delta",
        "phi": ["identity", "none", 1],
        "normalize": "none",
        "shape": [],
        "dtype": "float32",
    }
    save_file(arrays, path, metadata={**header, "form": json.dumps(form)})
    assert bits(FastWeightMemory.load(path).state) == bits(memory.state)
    for wrong in (
        {"d": 4},
        {"rule": "gone"},
        {"dtype": "float64"},
        {"phi": ["gone", "none", 1]},
        {"shape": [2]},
        {"d": -1},
        {"d": "x"},
    ):
        save_file(arrays, path, metadata={**header, "form": json.dumps({**form, **wrong})})
        with pytest.raises(ValueError, match=r"FastWeightMemory.load: '.*' is damaged"):
            FastWeightMemory.load(path)
    for metadata in (header, {**header, "form": "no json"}, {**header, "form": "[]"}):
        save_file(arrays, path, metadata=metadata)
        with pytest.raises(ValueError, match="damaged"):
            FastWeightMemory.load(path)
    for end in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            FastWeightMemory.load(path)
    rc.hopfield.HopfieldMemory.from_patterns(np.eye(3)).save(path, overwrite=True)
    with pytest.raises(ValueError, match="does not hold a recollect.FastWeightMemory"):
        FastWeightMemory.load(path)


WRONG = {
    "key has shape (4,); expected (2, 3) or (2, T, 3)": lambda m: m.write(np.ones(4), np.ones((2, 2))),
    "value has shape (2, 4, 2); expected (2, 5, 2)": lambda m: m.write(np.ones((2, 5, 3)), np.ones((2, 4, 2))),
    "query has shape (2, 3, 4); expected (2, 3) or (2, T, 3)": lambda m: m.read(np.ones((2, 3, 4))),
    "query has shape (2, 3, 3); expected (2, 5, 3)": lambda m: m.step(
        np.ones((2, 3, 3)), np.ones((2, 5, 3)), np.ones((2, 5, 2))
    ),
    "decay is 2.0; expected a number above 0 and at most 1": lambda m: m.write(
        np.ones((2, 3)), np.ones((2, 2)), decay=2.0
    ),
    "log_decay is 1.0; expected a number of at most 0": lambda m: m.write(
        np.ones((2, 3)), np.ones((2, 2)), log_decay=1.0
    ),
    "decay is nan": lambda m: m.write(np.ones((2, 3)), np.ones((2, 2)), decay=np.nan),
    "beta has shape (3,); expected a number, (2,)": lambda m: m.write(np.ones((2, 3)), np.ones((2, 2)), np.ones(3)),
    "decay has shape (2, 4); expected a number, (2,) or (2, 3)": lambda m: m.write(
        np.ones((2, 3)), np.ones((2, 2)), decay=np.ones((2, 4))
    ),
    "numbers too large for float32": lambda m: m.write(np.full((2, 3), 1e300), np.ones((2, 2))),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_refused_call_says_why_and_changes_nothing(words):
    memory = FastWeightMemory(3, 2, shape=(2,))
    memory.write(np.ones((2, 3)), np.ones((2, 2)))
    before = bits(memory.state)
    with pytest.raises(ValueError) as error:
        WRONG[words](memory)
    assert words in str(error.value) and str(error.value).startswith("FastWeightMemory."), error.value
    assert bits(memory.state) == before


def test_other_wrong_calls():
    with pytest.raises(ValueError, match="beta is given; expected None"):
        FastWeightMemory(3, 2, rule="sum").write(np.ones(3), np.ones(2), 1.0)
    with pytest.raises(TypeError, match="key has dtype complex128"):
        FastWeightMemory(3, 2).write(np.ones(3, complex), np.ones(2))
    for words, make in {
        "d is 0; expected 1 or more": lambda: FastWeightMemory(0, 2),
        "rule is 'gated'; expected 'delta' or 'sum'": lambda: FastWeightMemory(1, 2, rule="gated"),
        "normalize is None": lambda: FastWeightMemory(1, 2, normalize=None),
        "feature_map is 'gone'; expected 'identity'": lambda: FastWeightMemory(1, 2, feature_map="gone"),
        "shape is 0; expected 1 or more": lambda: FastWeightMemory(1, 2, shape=(0,)),
    }.items():
        with pytest.raises(ValueError) as error:
            make()
        assert words in str(error.value)
    with pytest.raises(TypeError, match="shape is 3; expected a tuple"):
        FastWeightMemory(1, 2, shape=3)
    with pytest.raises(TypeError, match="dtype is int64"):
        FastWeightMemory(1, 2, dtype=int)


def test_nothing_written_nothing_read_and_forgetting(rng):
    memory = FastWeightMemory(3, 2, rule="sum", normalize="attention")
    assert not memory.read(np.ones(3)).any() and memory.nbytes == 3 * 3 * 4
    memory.write(np.empty((0, 3)), np.empty((0, 2)))
    assert memory.step(np.empty((0, 3)), np.empty((0, 3)), np.empty((0, 2))).shape == (0, 2)
    memory.write(rng.random((4, 3)), rng.random((4, 2)), decay=0.5)
    assert memory.read(np.ones(3)).all()
    with pytest.raises(ValueError, match="read-only"):
        memory.state[0, 0] = 1
    memory.clear()
    fresh = FastWeightMemory(3, 2, rule="sum", normalize="attention")
    assert bits(memory.state) == bits(fresh.state)


def test_writers_take_turns():
    memory = FastWeightMemory(8, 4, rule="sum", dtype=np.float64)
    eye, ones = np.eye(8), np.ones((8, 4))
    threads = [threading.Thread(target=lambda: [memory.write(eye, ones) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(memory.state, np.full((8, 4), 200.0))
