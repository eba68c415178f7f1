"""hopfield.HopfieldMemory and hopfield.nearest by their docstrings: the oracle, and memories built another way.

The companions test_hopfield_memory*.py test the bookkeeping against a dict and the files one by one; here a memory
that was changed, saved or mapped must answer to the last bit like one that was made at once.
"""

import threading

import numpy as np
import pytest
import recollect as rc
from recollect.hopfield import HopfieldMemory

from tests import accuracy as acc
from tests.reference import hopfield as ref

D, E, BETA = 16, 5, 0.6


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def answers(memory, cues):
    """Everything that can be read, as a flat list."""
    found = [memory.ids, memory.patterns, memory.energy(cues), memory.retrieve(cues, read="patterns")]
    found += memory.nearest(cues, k=min(3, len(memory)))
    for more in ({}, {"steps": 3}, {"steps": None, "tol": 1e-3}):
        found += memory.retrieve(cues, return_info=True, **more)
    return found + ([] if memory.values is None else [memory.values])


def same_answers(same_bits, a, b, cues):
    for x, y in zip(answers(a, cues), answers(b, cues), strict=True):
        same_bits(x, y)


# -------------------------------------------------------------------------------------------------------- reads


@pytest.mark.parametrize("N", [1, 7, 500])
def test_reads_are_those_of_the_oracle(rng, dtype, N):
    x, v, q = draw(rng, dtype, N, D), draw(rng, dtype, N, E), draw(rng, dtype, 9, D)
    memory = HopfieldMemory.from_patterns(x, values=v, beta=BETA)
    wide = acc.widen(dtype, q, x, BETA, v)
    for out, values in ((memory.retrieve(q), wide[3]), (memory.retrieve(q, read="patterns"), None)):
        assert out.dtype == dtype
        unit = acc.C_READ * acc.read_unit(dtype, *wide[:3], values)[:, None]
        assert (np.abs(out - ref.step(*wide[:3], values)) <= unit).all()
    unit = acc.C_ENERGY * acc.energy_unit(dtype, *wide[:3])
    assert (np.abs(memory.energy(q) - ref.energy(*wide[:3])) <= unit).all()


def test_reads_are_those_of_the_functions(rng, dtype, same_bits):
    x, v, q = draw(rng, dtype, 300, D), draw(rng, dtype, 300, E), draw(rng, dtype, 2, 9, D)
    memory = HopfieldMemory.from_patterns(x, values=v, beta=BETA)
    for more in ({}, {"steps": 4}, {"steps": None}, {"steps": 9, "tol": 0.1}):
        same_bits(memory.retrieve(q, **more), rc.hopfield.retrieve(q, x, values=v, beta=BETA, **more))
        info = memory.retrieve(q, beta=2.0, read="patterns", return_info=True, **more)
        for a, b in zip(info, rc.hopfield.retrieve(q, x, beta=2.0, return_info=True, **more), strict=True):
            same_bits(a, b)
    same_bits(memory.energy(q), rc.hopfield.energy(q, x, beta=BETA))
    for a, b in zip(memory.nearest(q, k=4), rc.hopfield.nearest(q, x, beta=BETA, k=4), strict=True):
        same_bits(a, b)


def check_nearest(dtype, found, q, x, beta, k, mask=None):
    """The k largest weights of the oracle, falling; another order only among weights that rounding cannot tell apart."""
    q, x, beta = acc.widen(dtype, q, x, beta)
    p = ref.weigh(q, x, beta, mask).p
    indices, weights = found
    assert indices.shape == weights.shape == (*p.shape[:-1], k) and indices.dtype == np.int64 and weights.dtype == dtype
    room = acc.C_READ * acc.eps(dtype) * (1 + acc.score_size(q, x, beta, mask))[..., None]
    largest = -np.sort(-p, axis=-1)[..., :k]
    assert (np.abs(weights - largest) <= room * (largest + acc.eps(dtype))).all()
    there = indices >= 0
    own = np.take_along_axis(p, np.maximum(indices, 0), -1)
    assert (np.abs(own - largest)[there] <= (room * (largest + acc.eps(dtype)))[there]).all()
    assert (weights[~there] == 0).all() and (np.diff(weights, axis=-1) <= 0).all()
    for row in indices.reshape(-1, k):
        kept = row[row >= 0]
        assert len(set(kept)) == len(kept)


@pytest.mark.parametrize(("n", "N", "k"), [(1, 1, 1), (5, 7, 7), (70, 193, 3), (3, 5000, 10), (2, 385, 385)])
def test_nearest_patterns(rng, dtype, n, N, k):
    q, x = draw(rng, dtype, n, D), draw(rng, dtype, N, D)
    for beta in (0.01, BETA, 5.0):
        check_nearest(dtype, rc.hopfield.nearest(q, x, beta=beta, k=k), q, x, beta, k)
    mask = rng.random((n, N)) < 0.6
    found = rc.hopfield.nearest(q, x, beta=BETA, k=k, mask=mask)
    check_nearest(dtype, found, q, x, BETA, k, mask)
    there = found[0] >= 0
    assert np.take_along_axis(mask, np.maximum(found[0], 0), -1)[there].all()
    assert (there.sum(-1) == np.minimum(k, mask.sum(-1))).all()


def test_nearest_of_equal_patterns_is_the_first(rng, dtype):
    one = draw(rng, dtype, 1, D)
    indices, weights = rc.hopfield.nearest(one, np.repeat(one, 700, 0), beta=BETA, k=5)
    np.testing.assert_array_equal(indices, [[0, 1, 2, 3, 4]])
    assert (np.abs(weights * 700 - 1) <= 32 * acc.eps(dtype)).all()


@pytest.mark.parametrize("count", [2, 7])
def test_nearest_in_threads_and_alone(rng, dtype, same_bits, count):
    q, x = draw(rng, dtype, 70, D), draw(rng, dtype, 3000, D)
    rc.set_num_threads(1)
    one = rc.hopfield.nearest(q, x, beta=BETA, k=6)
    rc.set_num_threads(count)
    for a, b, c in zip(
        rc.hopfield.nearest(q, x, beta=BETA, k=6), rc.hopfield.nearest(q[5:6], x, beta=BETA, k=6), one, strict=True
    ):
        same_bits(a, c)
        same_bits(b, c[5:6])


@pytest.mark.parametrize("k", [0, -1, 8])
def test_nearest_wants_no_more_than_there_is(k):
    with pytest.raises(ValueError, match=rf"\bk\b.*{k}"):
        rc.hopfield.nearest(np.ones((2, 3)), np.ones((7, 3)), beta=1.0, k=k)
    with pytest.raises(ValueError, match=rf"\bk\b.*{k}"):
        HopfieldMemory.from_patterns(np.ones((7, 3)), beta=1.0).nearest(np.ones(3), k=k)


# ------------------------------------------------------------------------------------------- writing and removing


@pytest.mark.parametrize("values", [False, True])
def test_adding_in_parts_is_adding_at_once(rng, dtype, same_bits, values):
    x, v, q = draw(rng, dtype, 400, D), draw(rng, dtype, 400, E), draw(rng, dtype, 9, D)
    whole = HopfieldMemory.from_patterns(x, values=v if values else None, beta=BETA)
    parts = HopfieldMemory(D, values=E if values else None, beta=BETA, dtype=dtype)
    for a, b in ((0, 1), (1, 1), (1, 8), (8, 250), (250, 400)):
        ids = parts.add(x[a:b], v[a:b]) if values else parts.add(x[a:b])
        np.testing.assert_array_equal(ids, np.arange(a, b))
    same_answers(same_bits, parts, whole, q)


def test_what_is_removed_was_never_there(rng, dtype, same_bits):
    x, v, q = draw(rng, dtype, 400, D), draw(rng, dtype, 400, E), draw(rng, dtype, 9, D)
    memory = HopfieldMemory.from_patterns(x, values=v, beta=BETA, ids=np.arange(400) * 10)
    before = memory.patterns, memory.ids
    gone = rng.permutation(400)[:150]
    memory.remove(gone[:100] * 10)
    memory.remove(gone[100:] * 10)
    keep = np.setdiff1d(np.arange(400), gone)
    other = HopfieldMemory.from_patterns(x[keep], values=v[keep], beta=BETA, ids=keep * 10)
    assert len(memory) == 250
    same_answers(same_bits, memory, other, q)
    # views that were taken before are of the snapshot of then
    same_bits(before[0], x)
    same_bits(before[1], np.arange(400) * 10)
    with pytest.raises(KeyError):
        memory.get([int(gone[0]) * 10])
    memory.add(x[gone], v[gone], ids=gone * 10)
    order = np.concatenate([keep, gone])
    same_answers(
        same_bits, memory, HopfieldMemory.from_patterns(x[order], values=v[order], beta=BETA, ids=order * 10), q
    )


def test_a_refused_change_changes_nothing(rng, same_bits):
    x, q = draw(rng, np.float64, 20, D), draw(rng, np.float64, 4, D)
    memory = HopfieldMemory.from_patterns(x, beta=BETA)
    copy = HopfieldMemory.from_patterns(x, beta=BETA)
    for error, wrong in (
        (ValueError, lambda: memory.add(x[:2], ids=[100, 100])), (ValueError, lambda: memory.add(x[:2], ids=[100, 3])),
        (ValueError, lambda: memory.add(x[:2, :3])), (TypeError, lambda: memory.add(x[:2] * 1j)),
        (ValueError, lambda: memory.add(x[:2] * np.nan, check_finite=True)), (KeyError, lambda: memory.remove([3, 99])),
        (ValueError, lambda: memory.remove([3, 3])),
    ):  # fmt: skip
        with pytest.raises(error):
            wrong()
        same_answers(same_bits, memory, copy, q)
    np.testing.assert_array_equal(memory.add(x[:1]), [20])


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_half_the_space(rng, storage, same_bits):
    half = np.float16 if storage == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    x, q = draw(rng, np.float32, 200, D), draw(rng, np.float32, 9, D)
    memory = HopfieldMemory(D, beta=BETA, storage=storage)
    memory.add(x)
    stored = x.astype(half)
    assert memory.patterns.dtype == half and memory.dtype == np.float32
    same_bits(memory.retrieve(q), rc.hopfield.retrieve(q, stored, beta=BETA))
    wide = acc.widen(np.float32, q, stored.astype(np.float32), BETA)
    assert (
        np.abs(memory.retrieve(q) - ref.step(*wide)) <= acc.C_READ * acc.read_unit(np.float32, *wide)[:, None]
    ).all()


# -------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("values", [False, True])
def test_saved_and_loaded(rng, dtype, same_bits, tmp_path, mmap, values):
    pytest.importorskip("safetensors")
    x, v, q = draw(rng, dtype, 300, D), draw(rng, dtype, 300, E), draw(rng, dtype, 9, D)
    memory = HopfieldMemory.from_patterns(x, values=v if values else None, beta=BETA, ids=rng.permutation(1000)[:300])
    memory.remove(memory.ids[5:50])
    memory.save(tmp_path / "memory.safetensors")
    loaded = HopfieldMemory.load(tmp_path / "memory.safetensors", mmap=mmap)
    assert loaded.beta == BETA and loaded.dtype == dtype
    same_answers(same_bits, loaded, memory, q)
    if mmap:
        with pytest.raises(ValueError):
            loaded.remove(loaded.ids[:1])
    else:  # ids go on where they were, also those that were removed are not given again
        a, b = (m.add(x[:2], v[:2]) if values else m.add(x[:2]) for m in (loaded, memory))
        np.testing.assert_array_equal(a, b)


def test_a_truncated_file_is_refused_everywhere(rng, tmp_path):
    pytest.importorskip("safetensors")
    HopfieldMemory.from_patterns(draw(rng, np.float32, 20, D), beta=BETA).save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part").write_bytes(whole[:size])
        for mmap in (False, True):
            with pytest.raises(ValueError, match="part"):
                HopfieldMemory.load(tmp_path / "part", mmap=mmap)
    with pytest.raises(FileNotFoundError, match="absent"):
        HopfieldMemory.load(tmp_path / "absent")


def test_a_saved_memory_is_whole_or_not_there(rng, tmp_path):
    pytest.importorskip("safetensors")
    memory = HopfieldMemory.from_patterns(draw(rng, np.float32, 20, D), beta=BETA)
    memory.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    with pytest.raises(FileExistsError):
        memory.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


# ------------------------------------------------------------------------------------------------------ threads


def test_readers_see_one_of_the_states_that_were(rng):
    """Unit patterns with value 1 and a zero cue: the answer is 1, E = 1/2, and lse tells N, which is 30 or 50."""
    x = draw(rng, np.float64, 50, D)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    memory = HopfieldMemory.from_patterns(x, values=np.ones((50, 1)), beta=1.0)
    stop, failures = threading.Event(), []
    room = 64 * acc.eps(np.float64)

    def read():
        while not stop.is_set():
            info = memory.retrieve(np.zeros(D), return_info=True)
            N = np.exp(info.lse)
            if not (
                abs(info.state - 1) <= room
                and abs(info.energy - 0.5) <= room
                and min(abs(N - 30), abs(N - 50)) <= 50 * room
            ):
                failures.append(info)
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for t in readers:
        t.start()
    try:
        for _ in range(300):
            first, rows = memory.ids[:20], memory.patterns[:20]
            memory.remove(first)
            memory.add(rows, np.ones((20, 1)))
    finally:
        stop.set()
        for t in readers:
            t.join(60)
    assert not failures and not any(t.is_alive() for t in readers)
