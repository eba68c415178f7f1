"""Forward results of backtracking against the oracle: outputs, who was reminded of whom, states, and the read alone."""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import backtracking_checks as bc
from tests.reference import backtracking as ref

SIZES = [(1, 1, 1, 1), (3, 2, 7, 4), (2, 5, 8, 8), (2, 3, 17, 5), (1, 8, 33, 20), (9, 4, 16, 16)]  # B, D, H, A
HOW = ref.Options(k_top=3, k_att=2, k_trunc=4)


def check(net, x, outputs, runs, how):
    got, tape = net.forward(x)
    tol = bc.FORWARD_TOL[net.dtype.name]
    assert got.dtype == net.dtype
    bc.close(got, outputs, tol, "outputs")
    graph = tape.reminders()
    for b, done in enumerate(runs):
        mine, expected = graph.row == b, ref.reminders(done)
        pairs = list(zip(graph.time[mine].tolist(), graph.source[mine].tolist(), strict=True))
        assert pairs == [(t, source) for t, source, _ in expected]
        if expected:
            bc.close(graph.weight[mine], np.array([w for *_, w in expected]), 10 * tol, "weights")
    state, ends = tape.state, [done.state for done in runs]
    assert state.time == x.shape[1]
    bc.close(state.hidden, np.array([s.hidden for s in ends]), tol, "hidden")
    bc.close(state.carry, np.array([s.carry for s in ends]), tol, "carry")
    first = ref.readable(len(ends[0].memory), how)
    kept = [s.memory[first:] for s in ends] if how.k_top != 0 else [() for _ in ends]
    assert state.times.tolist() == [m.time for m in kept[0]] and state.count == len(kept[0])
    if kept[0]:
        bc.close(state.memories, np.array([[m.value for m in row] for row in kept]), tol, "memories")
        keys = np.array([[m.key for m in row] for row in kept])
        bc.close(state.keys, keys.reshape(state.keys.shape), tol, "keys")


@pytest.mark.parametrize("how", bc.EVERY, ids=bc.named)
def test_outputs_reminders_and_states(rng, dtype, how):
    net, x, outputs, runs = bc.problem(rng, how, dtype, size=0.4 if how.released else 0.7)
    check(net, x, outputs, runs, how)


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize(("B", "D", "H", "A"), SIZES)
def test_sizes(rng, dtype, cell, B, D, H, A):
    how = HOW._replace(cell=cell)
    net, x, outputs, runs = bc.problem(rng, how, dtype, B=B, D=D, H=H, A=A, size=1 / np.sqrt(H) + 0.2)
    check(net, x, outputs, runs, how)


@pytest.mark.parametrize("k_top", [5, None])
def test_a_long_sequence(rng, k_top):
    how = ref.Options(k_top=k_top, k_trunc=5)
    net, x, outputs, runs = bc.problem(rng, how, np.float64, B=1, T=150, size=0.5)
    check(net, x, outputs, runs, how)


# --------------------------------------------------------------------------------------------- the ends of k_top


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("k_trunc", [None, 1, 4])
def test_without_reads_it_is_the_plain_network_to_the_bit(rng, dtype, same_bits, cell, k_trunc):
    net = bc.network(rng, ref.Options(cell, k_top=0, k_att=2, k_trunc=k_trunc), dtype, H=9)
    plain = (rc.backtracking.LSTM if cell == "lstm" else rc.backtracking.GRU)(3, 9, k_trunc=k_trunc, dtype=dtype)
    for name, a in plain.parameters.items():
        a[...] = net.parameters[name]
    x, u = rng.standard_normal((3, 14, 3)).astype(dtype), rng.standard_normal((3, 14, 18)).astype(dtype)
    outputs, tape = net.forward(x)
    alone, plain_tape = plain.forward(x)
    assert alone.shape == (3, 14, 9)
    same_bits(outputs[..., :9], alone)
    assert not outputs[..., 9:].any()
    d, e = net.backward(tape, u), plain.backward(plain_tape, np.ascontiguousarray(u[..., :9]))
    same_bits(d.x, e.x)
    for name in plain.parameters:
        same_bits(d.parameters[name], e.parameters[name])
    assert all(not d.parameters[name].any() for name in ("w1", "w2", "w3"))


@pytest.mark.parametrize("cell", bc.NETWORKS)
def test_the_usual_cells_of_torch(rng, cell):
    torch = pytest.importorskip("torch")
    net = (rc.backtracking.LSTM if cell == "lstm" else rc.backtracking.GRU)(3, 6, rng=rng, dtype=np.float64)
    peer = getattr(torch.nn, cell.upper())(3, 6, batch_first=True, dtype=torch.float64)
    peer.load_state_dict({name + "_l0": torch.tensor(a) for name, a in net.parameters.items()})
    x, u = (
        torch.tensor(rng.standard_normal((2, 30, 3)), requires_grad=True),
        torch.tensor(rng.standard_normal((2, 30, 6))),
    )
    outputs, tape = net.forward(x.detach().numpy())
    expected = peer(x)[0]
    np.testing.assert_allclose(outputs, expected.detach(), rtol=0, atol=1e-13)
    d = net.backward(tape, u.numpy())
    (expected * u).sum().backward()
    np.testing.assert_allclose(d.x, x.grad, rtol=0, atol=1e-12)
    for name, a in peer.named_parameters():
        np.testing.assert_allclose(d.parameters[name.removesuffix("_l0")], a.grad, rtol=0, atol=1e-11)


def test_as_many_places_as_memories_is_all_of_them(rng, dtype, same_bits):
    """Fewer memories than k_top: softmax over those there are, as without a k_top."""
    one = bc.network(rng, ref.Options(k_top=7), dtype)
    two = bc.network(rng, ref.Options(k_top=None), dtype)
    for name, a in two.parameters.items():
        a[...] = one.parameters[name]
    x = rng.standard_normal((2, 8, 3)).astype(dtype)
    same_bits(one(x), two(x))


def test_an_empty_memory_gives_zeros(rng, dtype, same_bits):
    net = bc.network(rng, ref.Options(k_top=3, k_att=20), dtype)
    outputs, tape = net.forward(rng.standard_normal((2, 20, 3)))
    assert not outputs[..., 5:].any() and not tape.weights.any() and (tape.indices == -1).all()
    assert len(tape.reminders().time) == 0
    d = net.backward(tape, np.ones_like(outputs))
    assert all(not d.parameters[name].any() for name in ("w1", "w2", "w3"))


def test_ties_go_to_the_earlier_and_are_uniform(rng, dtype):
    net = bc.network(rng, ref.Options(k_top=4), dtype)
    net.parameters["w3"][...] = 0
    outputs, tape = net.forward(rng.standard_normal((2, 12, 3)))
    assert (tape.indices[:, 4:] == np.arange(4)).all() and (tape.weights[:, 4:] == 0.25).all()
    bc.close(
        outputs[:, 4:, 5:], outputs[:, None, :4, :5].mean(axis=2).repeat(8, axis=1), bc.FORWARD_TOL[net.dtype.name]
    )


def test_states_that_are_equal_tie(rng):
    """One input for ever, and a cell that forgets: every score is the same number."""
    net = bc.network(rng, ref.Options(k_top=2), np.float64)
    net.parameters["weight_hh"][...] = 0
    net.parameters["weight_ih"][5:10] = 0  # the forget gate
    net.parameters["bias_ih"][5:10] = -1e4
    net.parameters["w1"][...] = 0
    tape = net.forward(np.ones((1, 9, 3)))[1]
    assert (tape.indices[0, 3:] == [0, 1]).all() and (tape.weights[0, 3:] == 0.5).all()


# ---------------------------------------------------------------------------------------- the shapes of an input


@pytest.mark.parametrize(("B", "T"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_to_do(rng, dtype, B, T):
    net = bc.network(rng, HOW, dtype)
    outputs, tape = net.forward(np.ones((B, T, 3)))
    assert outputs.shape == (B, T, 10) and tape.state.time == T
    d = net.backward(tape, np.ones((B, T, 10)))
    assert d.x.shape == (B, T, 3) and all(not g.any() for g in d.parameters.values())


def test_inputs_of_any_layout(rng, dtype, same_bits):
    net = bc.network(rng, HOW, dtype)
    x = rng.integers(-3, 4, (2, 10, 3))
    expected = net(x.astype(dtype))
    for other in (
        x,
        x.tolist(),
        np.asfortranarray(x.astype(dtype)),
        x.astype(np.int8),
        x.astype(dtype)[:, ::-1][:, ::-1],
    ):
        same_bits(net(other), expected)
    same_bits(net.forward(x)[0], expected)


# ------------------------------------------------------------------------------------------------ the read alone


@pytest.mark.parametrize("score", bc.SCORES)
@pytest.mark.parametrize(
    ("N", "k_top"), [(7, 2), (7, 7), (7, 6), (7, None), (7, 40), (1, 1), (40, 5), (0, 3), (0, None)]
)
def test_reads(rng, dtype, score, N, k_top):
    o = bc.read_operands(rng, dtype, score, N=N, batch=(2,))
    got = rc.backtracking.sparse_read(**o, k_top=k_top, score=bc.score_name(score))
    k = N if k_top is None else min(k_top, N)
    assert got.indices.shape == got.weights.shape == (2, 3, k) and got.value.shape == (2, 3, 4)
    assert got.value.dtype == got.weights.dtype == dtype and got.indices.dtype == np.int64
    for at, one, _ in bc.one_by_one(o, (2,)):
        expected = ref.read(**one, k_top=k_top, score=bc.score_name(score))
        bc.close(got.value[at], expected.value, 1e-3 if dtype == np.float32 else 1e-11)
        assert got.indices[at].tolist() == expected.choice.kept.tolist()
        bc.close(got.weights[at], expected.choice.weights, 1e-3 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("score", bc.SCORES)
@pytest.mark.parametrize("k_top", [3, None])
def test_lengths(rng, score, k_top):
    o = bc.read_operands(rng, np.float64, score, N=7, batch=(3, 2))
    lengths = np.array([[0, 1], [2, 3], [4, 7]])
    got = rc.backtracking.sparse_read(**o, k_top=k_top, score=bc.score_name(score), lengths=lengths)
    for at, one, length in bc.one_by_one(o, (3, 2), lengths):
        expected = ref.read(**one, k_top=k_top, score=bc.score_name(score), length=length)
        some = len(expected.choice.kept)
        bc.close(got.value[at], expected.value, 1e-11)
        assert got.indices[at].tolist() == expected.choice.kept.tolist() + [-1] * (got.indices.shape[-1] - some)
        bc.close(got.weights[at][:some], expected.choice.weights, 1e-11)
        assert not got.weights[at][some:].any()


def test_what_lies_beyond_a_length_may_hold_anything(rng, same_bits):
    o = bc.read_operands(rng, np.float64, "additive", N=9)
    expected = rc.backtracking.sparse_read(**o | {"memory": o["memory"][:5]}, k_top=3)
    o["memory"][5:] = np.nan
    same_bits(rc.backtracking.sparse_read(**o, k_top=3, lengths=5), expected)


def test_leading_axes_broadcast(rng, same_bits):
    o = bc.read_operands(rng, np.float64, "additive", N=9)
    one = rc.backtracking.sparse_read(**o, k_top=3)
    query = np.stack([o["query"], 2 * o["query"]])
    two = rc.backtracking.sparse_read(**o | {"query": query}, k_top=3)
    same_bits(two.value[0], one.value)
    assert two.value.shape == (2, 3, 4)
    memories = rng.standard_normal((4, 1, 9, 4))
    many = rc.backtracking.sparse_read(
        **o | {"query": query, "memory": memories}, k_top=3, lengths=[[9], [2], [0], [5]]
    )
    assert many.value.shape == (4, 2, 3, 4)
    for i, length in enumerate((9, 2, 0, 5)):
        for j in range(2):
            alone = rc.backtracking.sparse_read(
                **o | {"query": query[j], "memory": memories[i, 0]}, k_top=3, lengths=length
            )
            same_bits(many.value[i, j], alone.value)
            same_bits(many.indices[i, j], alone.indices)


def test_stored_keys_are_w1_m(rng, dtype, same_bits):
    o = bc.read_operands(rng, dtype, "additive", N=30, d=7, A=6)
    keys = rc.backtracking.project(o["memory"], o["w1"])
    bc.close(keys, bc.LONG(o["memory"]) @ bc.LONG(o["w1"]).T, 8 * np.finfo(dtype).eps)
    some = {k: a for k, a in o.items() if k != "w1"}
    same_bits(rc.backtracking.sparse_read(**some, keys=keys, k_top=4), rc.backtracking.sparse_read(**o, k_top=4))


@pytest.mark.parametrize("score", bc.SCORES)
def test_a_large_memory(rng, score):
    """130 001 memories: the first k_top by sorting all the scores."""
    N, k = 130_001, 5
    o = bc.read_operands(rng, np.float64, score, n=2, N=N, d=8, A=8)
    got = rc.backtracking.sparse_read(**o, k_top=k, score=bc.score_name(score))
    for q in range(2):
        a = ref.scores_of(o["query"][q], **{n: v for n, v in o.items() if n != "query"}, score=bc.score_name(score))
        expected = ref.choose(a, k)
        assert got.indices[q].tolist() == expected.kept.tolist()
        np.testing.assert_allclose(got.weights[q], expected.weights, rtol=0, atol=1e-8)
        np.testing.assert_allclose(got.value[q], expected.weights @ o["memory"][expected.kept], rtol=0, atol=1e-7)
    o = {n: v.astype(np.float32) for n, v in o.items()}
    assert np.isfinite(rc.backtracking.sparse_read(**o, k_top=None, score=bc.score_name(score)).value).all()


@given(st.data())
def test_whole_numbers_are_chosen_exactly(data):
    """Scores that are small whole numbers, many of them equal: order, ties and gaps have no rounding."""
    N, k_top = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    values = st.integers(-3, 3)
    memory = np.array(data.draw(st.lists(st.tuples(values, values), min_size=N, max_size=N)), np.float64)
    query = np.array([data.draw(st.tuples(values, values))], np.float64)
    for dtype in (np.float32, np.float64):
        got = rc.backtracking.sparse_read(query.astype(dtype), memory.astype(dtype), k_top=k_top, score="dot")
        expected = ref.choose(memory @ query[0], k_top)
        assert got.indices[0].tolist() == expected.kept.tolist()
        np.testing.assert_allclose(got.weights[0], expected.weights, rtol=32 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(got.weights[0] == 0, expected.weights == 0)


@pytest.mark.parametrize("size", [1, 4, 8, 8.5, 9.5, 10, 10.5, 12, 16, 40, 100])
def test_scores_of_projections_that_cancel(rng, dtype, size):
    """W1 m = size and size + 1/2, W2 hhat = -size: tanh of a small difference of two large numbers."""
    how, off, same_type = ref.Options(k_top=None), 0.0, 0.0
    for _ in range(40):
        net = bc.network(rng, how, dtype, H=2, A=1, size=1)
        net.parameters["w3"][...] = 1
        x = rng.standard_normal((1, 3, 3)).astype(dtype)
        before = ref.run(x[0].astype(np.float64), {n: np.float64(a) for n, a in net.parameters.items()}, how)
        memories, hhat = np.array([m.value for m in before.state.memory[:2]]), before.steps[2].hhat
        w1 = np.linalg.solve(memories, [size, size + 0.5])
        if np.abs(w1).max() > 10 * size:
            continue
        net.parameters["w1"][0], net.parameters["w2"][0] = w1, -size * hhat / (hhat @ hhat)
        expected = ref.run(bc.LONG(x[0]), bc.wide(net), how).steps[2].choice.weights
        got = net.forward(x)[1].weights[0, 2, :2]
        numpy = ref.run(x[0], net.parameters, how).steps[2].choice.weights
        off = max(off, float(np.abs(got - expected).max()))
        same_type = max(same_type, float(np.abs(numpy - expected).max()))
    assert off < 30 * max(same_type, np.finfo(dtype).eps)


@pytest.mark.parametrize("size", [0.5, 1, 2, 4, 5, 7, 9, 9.9, 10.1])
def test_a_score_is_good_to_the_last_digits_for_its_projections(rng, dtype, size):
    """Weights of two microstates, W1 m = size and about it, W2 hhat = -size, against tanh of the stored projections themselves."""
    for _ in range(20):
        net = rc.backtracking.SparseBacktrackingLSTM(
            2, 1, k_top=None, k_att=1, k_trunc=None, attention_size=1, rng=rng, dtype=dtype
        )
        x = rng.standard_normal((1, 3, 2))
        for name, value in (("w1", 0), ("w2", 0), ("w3", 1)):
            net.parameters[name][...] = value
        first = net.forward(x)[1].state.memories[0, 0, 0]
        outputs = net.forward(x)[0]
        hhat = outputs[0, 2, 0] - outputs[0, 2, 1]
        net.parameters["w1"][...], net.parameters["w2"][...] = size / first, -size / hhat
        outputs, tape = net.forward(x)
        query = bc.LONG(net.parameters["w2"][0, 0]) * bc.LONG(tape._arrays[1][0, 2, 0])
        a = np.tanh(bc.LONG(tape.state.keys[0, :2, 0]) + bc.LONG(dtype(query)))
        expected = np.exp(a - a.max()) / np.exp(a - a.max()).sum()
        bc.close(tape.weights[0, 2, :2], expected, 4 * np.finfo(dtype).eps)
