"""HopfieldMemory against a plain dict and the oracle: adding, reading, removing, and readers beside writers."""

import copy
import pickle
import sys
import threading

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from recollect.hopfield import HopfieldMemory, Retrieval

from tests.reference import hopfield as ref

D, E, BETA = 6, 3, 2.0


def filled(rng, N=20, dtype=np.float32, values=True, **options):
    patterns = rng.standard_normal((N, D)).astype(dtype)
    readout = rng.standard_normal((N, E)).astype(dtype) if values else None
    return HopfieldMemory.from_patterns(patterns, values=readout, beta=BETA, **options), patterns, readout


def sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 300, text
    for part in parts:
        assert part in text, (part, text)


# -- reading -----------------------------------------------------------------------------------------------------


def test_reads_what_the_functions_read(rng, dtype):
    memory, patterns, values = filled(rng, dtype=dtype)
    cues = rng.standard_normal((7, D)).astype(dtype)
    tol = dict(rtol=1e-4, atol=1e-5) if dtype == np.float32 else dict(rtol=1e-10, atol=1e-12)
    expected = ref.retrieve(cues, patterns, BETA, values, steps=2)
    got = memory.retrieve(cues, steps=2, return_info=True)
    assert isinstance(got, Retrieval) and got.state.dtype == dtype
    np.testing.assert_allclose(got.state, expected.state, **tol)
    np.testing.assert_allclose(got.energy, expected.energy, **tol)
    np.testing.assert_allclose(memory.energy(cues), ref.energy(cues, patterns, BETA), **tol)
    np.testing.assert_allclose(
        memory.retrieve(cues, read="patterns", beta=5.0), ref.retrieve(cues, patterns, 5.0).state, **tol
    )


def test_leading_axes_of_cues_are_kept(rng):
    memory, *_ = filled(rng)
    for lead in [(), (4,), (2, 3), (0,), (2, 0)]:
        cues = rng.standard_normal((*lead, D)).astype(np.float32)
        assert memory.retrieve(cues).shape == (*lead, E)
        assert memory.retrieve(cues, read="patterns").shape == (*lead, D)
        assert np.shape(memory.energy(cues)) == lead
        info = memory.retrieve(cues, return_info=True)
        assert info.state.shape == (*lead, E) and {np.shape(x) for x in info[1:]} == {lead}
        ids, weights = memory.nearest(cues, k=2)
        assert ids.shape == weights.shape == (*lead, 2)
    one = memory.retrieve(cues := rng.standard_normal(D))
    np.testing.assert_array_equal(one, memory.retrieve(cues[np.newaxis])[0])


def test_nearest_gives_ids_with_the_weights_of_all_patterns(rng):
    memory, patterns, _ = filled(rng, ids=np.arange(20) * 7 - 50)
    memory.remove([-50, 6])
    cues = rng.standard_normal((9, D)).astype(np.float32)
    weights = ref.weigh(cues.astype(float), memory.patterns.astype(float), BETA).p
    rows = np.argsort(-weights, axis=-1, kind="stable")[:, :5]
    ids, got = memory.nearest(cues, k=5)
    np.testing.assert_array_equal(ids, memory.ids[rows])
    np.testing.assert_allclose(got, np.take_along_axis(weights, rows, -1), rtol=1e-4)
    assert ids.dtype == np.int64 and memory.nearest(10 * patterns[3], beta=50.0)[1].shape == (1,)


def test_a_tie_goes_to_the_pattern_that_was_added_first():
    memory = HopfieldMemory.from_patterns(np.ones((4, D)), ids=[9, 2, 7, 1], beta=1)
    assert memory.nearest(np.ones(D), k=4)[0].tolist() == [9, 2, 7, 1]


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_half_storage_computes_in_float32(rng, storage):
    half = np.float16 if storage == "float16" else ml_dtypes.bfloat16
    memory, patterns, values = filled(rng, storage=storage)
    assert memory.patterns.dtype == half and memory.values.dtype == memory.dtype == np.float32
    rounded = patterns.astype(half).astype(np.float32)
    cues = rng.standard_normal((5, D)).astype(np.float32)
    got = memory.retrieve(cues, read="patterns")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, ref.retrieve(cues, rounded, BETA).state, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(memory.nearest(rounded)[0][:, 0], (rounded @ rounded.T).argmax(axis=1))
    again = HopfieldMemory.from_patterns(memory.patterns, beta=BETA)
    assert again.patterns.dtype == half and again.dtype == np.float32
    memory.add(patterns, values)
    memory.remove(np.arange(20))
    np.testing.assert_array_equal(memory.patterns, patterns.astype(half))


# -- writing -----------------------------------------------------------------------------------------------------


def test_inputs_are_copied_and_views_are_read_only(rng):
    memory, patterns, values = filled(rng)
    kept = patterns.copy()
    patterns[:] = values[:] = 0
    np.testing.assert_array_equal(memory.patterns, kept)
    for view in (memory.patterns, memory.values, memory.ids):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    before = memory.patterns
    copied = before.copy()
    memory.add(kept, np.ones((20, E)))
    memory.remove([0, 25])
    np.testing.assert_array_equal(before, copied)
    assert len(before) == 20 and len(memory) == 38


def test_automatic_ids_are_never_used_again(rng):
    memory = HopfieldMemory(D)
    rows = rng.standard_normal((3, D))
    assert memory.add(rows).tolist() == [0, 1, 2]
    memory.remove([1, 2])
    assert memory.add(rows[:1]).tolist() == [3]
    assert memory.add(rows[:2], ids=[100, -5]).tolist() == [100, -5]
    assert memory.add(rows).tolist() == [101, 102, 103]
    assert memory.add(rows[:1], ids=[2]).tolist() == [2]  # the caller may
    memory.remove([2])
    assert memory.add(rows[:1], ids=[2]).tolist() == [2]
    assert memory.add(rows[:0]).size == 0 and memory.ids.tolist() == [0, 3, 100, -5, 101, 102, 103, 2]
    assert memory.add(rows[:1], ids=[2**63 - 1]).tolist() == [2**63 - 1]
    with pytest.raises(ValueError) as error:
        memory.add(rows[:1])
    sentence(error, "no ids are left")


def test_growth_is_amortised(rng):
    memory = HopfieldMemory(D)
    buffers = set()
    for _ in range(2000):
        memory.add(np.ones((1, D), np.float32))
        buffers.add(memory.patterns.base.__array_interface__["data"][0])
    assert len(buffers) <= 12


def test_get_gives_the_rows_of_ids_in_their_order(rng):
    memory, patterns, values = filled(rng, ids=np.arange(20)[::-1])
    rows, readout = memory.get([3, 17, 3])
    np.testing.assert_array_equal(rows, patterns[[16, 2, 16]])
    np.testing.assert_array_equal(readout, values[[16, 2, 16]])
    with pytest.raises(KeyError, match="no id 20"):
        memory.get([1, 20])


def test_copies_are_independent(rng):
    memory, patterns, values = filled(rng)
    memory.add(patterns[:1], values[:1])
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert repr(other) == repr(memory) and other.add(patterns[:1], values[:1]).tolist() == [21]
        other.remove([0])
        assert len(memory) == 21 and memory.ids[0] == 0


WRONG = {
    "width of patterns": (lambda m: m.add(np.ones((2, 5)), np.ones((2, E))), ValueError, "patterns", "(2, 5)", "d=6"),
    "rank of patterns": (lambda m: m.add(np.ones(D), np.ones(E)), ValueError, "patterns", "(6,)"),
    "no values": (lambda m: m.add(np.ones((2, D))), ValueError, "values", "none were given"),
    "width of values": (lambda m: m.add(np.ones((2, D)), np.ones((2, 4))), ValueError, "values", "(2, 4)", "e=3"),
    "rows of values": (lambda m: m.add(np.ones((2, D)), np.ones((3, E))), ValueError, "values", "(3, 3)", "n=2"),
    "number of ids": (lambda m: m.add(np.ones((2, D)), np.ones((2, E)), [50]), ValueError, "ids", "(1,)", "n=2"),
    "id twice": (lambda m: m.add(np.ones((2, D)), np.ones((2, E)), [50, 50]), ValueError, "twice"),
    "id taken": (lambda m: m.add(np.ones((2, D)), np.ones((2, E)), [50, 7]), ValueError, "id 7", "already"),
    "ids no integers": (lambda m: m.add(np.ones((1, D)), np.ones((1, E)), [1.0]), TypeError, "ids", "float64"),
    "id too large": (
        lambda m: m.add(np.ones((1, D)), np.ones((1, E)), np.array([2**63], np.uint64)),
        ValueError,
        "int64",
    ),
    "complex": (lambda m: m.add(np.ones((2, D), complex), np.ones((2, E))), TypeError, "patterns", "complex128"),
    "objects": (lambda m: m.add([["a"] * D], np.ones((1, E))), TypeError, "patterns"),
    "too large": (lambda m: m.add(np.full((1, D), 1e300), np.ones((1, E))), ValueError, "too large for float32"),
    "remove unknown": (lambda m: m.remove([3, 99]), KeyError, "99"),
    "remove twice": (lambda m: m.remove([3, 3]), ValueError, "twice"),
    "width of cues": (lambda m: m.retrieve(np.ones((2, 5))), ValueError, "cues", "(2, 5)", "d=6"),
    "number as cue": (lambda m: m.energy(1.0), ValueError, "cues", "()"),
    "cues too large": (lambda m: m.retrieve(np.full(D, 1e300)), ValueError, "cues", "float32"),
    "beta 0": (lambda m: m.retrieve(np.ones(D), beta=0), ValueError, "beta is 0.0"),
    "beta NaN": (lambda m: m.energy(np.ones(D), beta=np.nan), ValueError, "beta is nan"),
    "beta text": (lambda m: m.nearest(np.ones(D), beta="x"), TypeError, "beta is 'x'"),
    "k 0": (lambda m: m.nearest(np.ones(D), k=0), ValueError, "k is 0"),
    "k > N": (lambda m: m.nearest(np.ones(D), k=21), ValueError, "k is 21", "20 patterns"),
    "read": (lambda m: m.retrieve(np.ones(D), read="keys"), ValueError, "'keys'"),
    "steps 0": (lambda m: m.retrieve(np.ones(D), steps=0), ValueError, "steps"),
    "infinity": (
        lambda m: m.add(np.array([[1.0] * D, [np.inf] * D]), np.ones((2, E)), check_finite=True),
        ValueError,
        "patterns",
        "row 1",
    ),
    "NaN value": (
        lambda m: m.add(np.ones((1, D)), np.full((1, E), np.nan), check_finite=True),
        ValueError,
        "values",
        "row 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_sentence_and_changes_nothing(rng, name):
    call, kind, *parts = WRONG[name]
    memory, patterns, values = filled(rng)
    with pytest.raises(kind) as error:
        call(memory)
    sentence(error, "HopfieldMemory." if "steps" not in name else "retrieve", *parts)
    np.testing.assert_array_equal(memory.patterns, patterns)
    np.testing.assert_array_equal(memory.values, values)
    np.testing.assert_array_equal(memory.ids, np.arange(20))
    assert memory.add(patterns[:1], values[:1]).tolist() == [20]


CONSTRUCTION = {
    "d 0": (lambda: HopfieldMemory(0), ValueError, "d is 0"),
    "d text": (lambda: HopfieldMemory("8"), TypeError, "d is '8'"),
    "values 0": (lambda: HopfieldMemory(8, values=0), ValueError, "values is 0"),
    "dtype": (lambda: HopfieldMemory(8, dtype=np.int32), TypeError, "int32"),
    "storage": (lambda: HopfieldMemory(8, storage="int8"), TypeError, "int8"),
    "storage of float64": (lambda: HopfieldMemory(8, storage="float16", dtype=float), TypeError, "float64"),
    "beta": (lambda: HopfieldMemory(8, beta=-1), ValueError, "beta is -1.0"),
    "no beta": (lambda: HopfieldMemory.from_patterns(np.eye(4)).retrieve(np.ones(4)), ValueError, "beta must be given"),
    "values unasked": (lambda: HopfieldMemory(4).add(np.eye(4), values=np.eye(4)), ValueError, "no values"),
    "rank": (lambda: HopfieldMemory.from_patterns(np.ones(4)), ValueError, "(4,)"),
    "ragged": (lambda: HopfieldMemory.from_patterns([[1, 2], [3]]), TypeError, "patterns"),
    "float16 range": (
        lambda: HopfieldMemory.from_patterns(np.full((1, 2), 1e5), storage="float16"),
        ValueError,
        "too large for float16",
    ),
    "no values to read": (
        lambda: HopfieldMemory.from_patterns(np.eye(4), beta=1).retrieve(np.ones(4), read="values"),
        ValueError,
        "read is 'values'",
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_wrong_construction_is_one_sentence(name):
    call, kind, *parts = CONSTRUCTION[name]
    with pytest.raises(kind) as error:
        call()
    sentence(error, "HopfieldMemory", *parts)


@pytest.mark.parametrize("read", ["retrieve", "energy", "nearest"])
def test_an_empty_memory_says_so(read):
    memory = HopfieldMemory(4, beta=1.0)
    with pytest.raises(ValueError) as error:
        getattr(memory, read)(np.ones(4))
    assert str(error.value) == f"HopfieldMemory.{read}: the memory is empty; add patterns first"


def test_bfloat16_without_ml_dtypes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError) as error:
        HopfieldMemory(4, storage="bfloat16")
    sentence(error, "ml_dtypes", "pip install")


def test_infinity_is_stored_unless_it_is_asked_for():
    memory = HopfieldMemory.from_patterns([[np.inf, 0.0]], dtype=np.float32)
    assert np.isinf(memory.patterns[0, 0])


# -- any sequence of calls ---------------------------------------------------------------------------------------


class AgainstADict(RuleBasedStateMachine):
    """The memory does what a dict from id to (pattern, value) does, whatever came before."""

    @initialize(start=st.integers(0, 3), storage=st.sampled_from([None, "float16"]))
    def begin(self, start, storage):
        self.rng = np.random.default_rng(0)
        self.memory = HopfieldMemory(D, values=E, beta=BETA, storage=storage)
        self.model, self.top, self.seen = {}, -1, []
        self.add(start)

    def rows(self, n):
        # Small integers, which every storage dtype holds exactly.
        return self.rng.integers(-9, 10, (n, D)).astype(np.float32), self.rng.standard_normal((n, E)).astype(np.float32)

    def store(self, ids, patterns, values):
        self.model.update(zip(ids, zip(patterns, values, strict=True), strict=True))
        self.top = max([self.top, *ids])

    @rule(n=st.integers(0, 5))
    def add(self, n):
        patterns, values = self.rows(n)
        ids = self.memory.add(patterns, values).tolist()
        assert ids == list(range(self.top + 1, self.top + 1 + n))
        self.store(ids, patterns, values)

    @rule(ids=st.lists(st.integers(-3, 40), max_size=4))
    def add_given(self, ids):
        patterns, values = self.rows(len(ids))
        if len(set(ids)) < len(ids) or set(ids) & set(self.model):
            with pytest.raises(ValueError, match="twice|already"):
                self.memory.add(patterns, values, ids)
        else:
            assert self.memory.add(patterns, values, ids).tolist() == ids
            self.store(ids, patterns, values)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        ids = data.draw(st.lists(st.sampled_from(list(self.model)), unique=True))
        self.memory.remove(ids)
        for i in ids:
            del self.model[i]

    @rule(data=st.data(), stranger=st.integers(-3, 60))
    def remove_unknown(self, data, stranger):
        if stranger in self.model:
            return
        ids = data.draw(st.permutations([stranger, *list(self.model)[:3]]))
        with pytest.raises(KeyError):
            self.memory.remove(ids)

    @rule()
    def keep_a_view(self):
        for view in (self.memory.patterns, self.memory.values, self.memory.ids):
            self.seen.append((view, view.copy()))

    @rule()
    def pickle(self):
        self.memory = pickle.loads(pickle.dumps(self.memory))

    @precondition(lambda self: self.model)
    @rule()
    def read(self):
        cues = self.rng.standard_normal((3, D)).astype(np.float32)
        patterns, values = (np.array(rows, np.float64) for rows in zip(*self.model.values(), strict=True))
        weights = ref.weigh(cues.astype(float), patterns, BETA).p
        np.testing.assert_allclose(self.memory.retrieve(cues), weights @ values, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(self.memory.nearest(cues)[1][:, 0], weights.max(-1), rtol=1e-3)

    @invariant()
    def holds_the_same(self):
        memory = self.memory
        assert memory.ids.tolist() == list(self.model) and len(memory) == len(self.model)
        for row, (pattern, value) in enumerate(self.model.values()):
            assert (memory.patterns[row] == pattern).all() and (memory.values[row] == value).all()
        for view, then in self.seen:
            np.testing.assert_array_equal(view, then)


TestAgainstADict = AgainstADict.TestCase


def test_readers_beside_writers_see_whole_states():
    # Every row that is ever stored is a multiple of `base`, and so is every average of such rows.
    base = np.array([3.0, -1.0, 2.0, 0.5, -4.0, 1.0], np.float32)
    memory = HopfieldMemory(D, values=D, beta=0.01)
    memory.add(base[np.newaxis], base[np.newaxis])
    stop, failures, reads = threading.Event(), [], []

    def guarded(work):
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            failures.append(error)
            stop.set()

    def write():
        rows = np.outer(np.arange(1, 60, dtype=np.float32) / 30, base)
        ids = memory.add(rows, rows)
        memory.remove(ids[::2])
        memory.remove(ids[1::2])

    def read():
        for got in (memory.retrieve(base), memory.retrieve(base, steps=2, read="patterns")):
            np.testing.assert_allclose(got / got[0], base / base[0], rtol=1e-3)
        ids, weights = memory.nearest(base, k=1)
        assert ids[0] >= 0 and 0 < weights[0] <= 1.0001
        reads.append(len(memory.patterns))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (write, write, read, read, read)]
    for thread in threads:
        thread.start()
    stop.wait(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and len(reads) > 10
    assert memory.ids.tolist() == [0]
