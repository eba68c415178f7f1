"""What holds of backtracking whatever the numbers: weights, streams, batches, threads, files, memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recollect as rc

from tests import backtracking_checks as bc
from tests.reference import backtracking as ref

STREAMS = [
    ref.Options(k_top=3, k_att=2, k_trunc=4), ref.Options("gru", k_top=2, k_trunc=3), ref.Options(k_top=None, k_att=3),
    ref.Options(k_top=2, max_memories=4), ref.Options("gru", k_top=None, max_memories=3, k_att=2), ref.Options(k_top=0),
    ref.Options(k_top=3, k_att=2, released=True), ref.Options(k_top=2, max_memories=3, released=True),
]  # fmt: skip
every_stream = pytest.mark.parametrize("how", STREAMS, ids=bc.named)


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("k_top", [1, 2, 5, None])
@pytest.mark.parametrize("k_att", [1, 3])
def test_weights_are_few_not_negative_and_sum_to_one(rng, dtype, cell, k_top, k_att):
    net = bc.network(rng, ref.Options(cell, k_top=k_top, k_att=k_att), dtype, H=8)
    T = 40
    outputs, tape = net.forward(rng.standard_normal((3, T, 3)))
    w, some = tape.weights, np.arange(T) >= k_att
    assert (w >= 0).all() and not w[:, ~some].any()
    np.testing.assert_allclose(w[:, some].sum(axis=-1), 1, rtol=8 * np.finfo(dtype).eps)
    assert (np.count_nonzero(w, axis=-1) <= (T if k_top is None else k_top)).all()
    graph = tape.reminders()
    assert (graph.source < graph.time).all() and (graph.source % k_att == 0).all() and (graph.source > 0).all()
    assert len(graph.time) == np.count_nonzero(w)
    # and they give s: what was read is h of the sources
    s = np.zeros((3, T, 8))
    np.add.at(s, (graph.row, graph.time - 1), graph.weight[:, None] * outputs[graph.row, graph.source - 1, :8])
    np.testing.assert_allclose(outputs[..., 8:], s, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(outputs).max())


def test_weights_depend_on_the_query(rng):
    """The same microstates, another input in the last step: other weights. The released form cannot do that."""
    for compat in (None, "released"):
        net = bc.network(rng, ref.Options(k_top=4, released=compat is not None), np.float64, size=0.4)
        x = rng.standard_normal((1, 12, 3))
        y = x.copy()
        y[0, -1] = 5 * rng.standard_normal(3)
        (one, first), (two, second) = net.forward(x), net.forward(y)
        assert (one[0, :-1] == two[0, :-1]).all() and (one[0, -1] != two[0, -1]).any()
        w, v = (dict(zip(t.indices[0, -1].tolist(), t.weights[0, -1].tolist(), strict=True)) for t in (first, second))
        apart = max(abs(w.get(i, 0) - v.get(i, 0)) for i in {*w, *v})
        assert apart > 1e-3 if compat is None else apart < 1e-12


@pytest.mark.parametrize("score", bc.SCORES)
def test_reads_have_few_weights_that_sum_to_one(rng, dtype, score):
    o = bc.read_operands(rng, dtype, score, n=20, N=500)
    got = rc.backtracking.sparse_read(**o, k_top=7, score=bc.score_name(score))
    assert (got.weights >= 0).all() and got.weights.shape == (20, 7)
    np.testing.assert_allclose(got.weights.sum(axis=-1), 1, rtol=16 * np.finfo(dtype).eps)
    assert (np.diff(got.weights, axis=-1) <= 0).all()  # in falling order
    assert all(len(set(row)) == 7 for row in got.indices.tolist())
    assert len({tuple(row) for row in got.indices.tolist()}) > 1  # queries do not read the same


# ------------------------------------------------------------------------------------------------------- streams


@every_stream
def test_a_stream_is_the_whole_sequence(rng, dtype, same_bits, how):
    net = bc.network(rng, how, dtype, size=0.4)
    x = rng.standard_normal((2, 17, 3)).astype(dtype)
    whole, tape = net.forward(x)
    state = net.initial_state(2)
    for t in range(17):
        assert state.time == t
        same_bits(net.step(x[:, t], state), np.ascontiguousarray(whole[:, t]))
    same_state(same_bits, state, tape.state)
    for cuts in ((1, 6), (5, 5, 12), (0, 16)):
        state, pieces = None, []
        for a, b in zip((0, *cuts), (*cuts, 17), strict=True):
            before = None if state is None else state.copy()
            outputs, tape = net.forward(x[:, a:b], state)
            if before is not None:
                same_state(same_bits, state, before)  # forward leaves its state alone
            pieces.append(outputs)
            state = tape.state
        same_bits(np.concatenate(pieces, axis=1), whole)
        same_bits(net(x[:, cuts[-1] :], before), pieces[-1])


def same_state(same_bits, a, b):
    assert (a.time, a.batch, a.count) == (b.time, b.batch, b.count)
    for name in ("hidden", "carry", "memories", "keys", "times"):
        same_bits(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("compat", [None, "released"])
def test_a_bounded_memory_keeps_the_latest(rng, cell, compat):
    most = 5
    how = ref.Options(cell, k_top=2, k_att=2, max_memories=most, released=compat is not None)
    net, state = bc.network(rng, how, np.float32, size=0.3), None
    state, sizes = net.initial_state(2), []
    for t in range(1, 301):
        net.step(rng.standard_normal((2, 3)), state)
        made = [*([0] if compat else []), *range(2, t + 1, 2)]
        assert state.count <= most and state.times.tolist() == made[-most:]
        sizes.append(state.nbytes)
    assert max(sizes[20:]) == sizes[20] == sizes[-1]
    free = bc.network(rng, how._replace(max_memories=None), np.float32)
    state = free.initial_state(2)
    for _ in range(40):
        free.step(rng.standard_normal((2, 3)), state)
    assert state.count == 20 + (compat is not None)


def test_a_bound_that_is_never_met_changes_nothing(rng, dtype, same_bits):
    one, two = (bc.network(rng, ref.Options(k_top=2, max_memories=m), dtype) for m in (12, None))
    for name, a in two.parameters.items():
        a[...] = one.parameters[name]
    x = rng.standard_normal((2, 12, 3))
    same_bits(one(x), two(x))


@pytest.mark.parametrize("max_memories", [None, 4])
def test_the_graph_of_a_piece_tells_the_times_of_the_stream(rng, max_memories):
    net = bc.network(rng, ref.Options(k_top=2, k_att=3, max_memories=max_memories), np.float64)
    x = rng.standard_normal((2, 40, 3))
    whole, state = net.forward(x)[1].reminders(), net.forward(x[:, :25])[1].state
    piece = net.forward(x[:, 25:], state)[1].reminders()
    late = whole.time > 25
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(piece, name), getattr(whole, name)[late])


def test_rows_do_not_know_of_each_other(rng, dtype, same_bits):
    for how in STREAMS:
        net = bc.network(rng, how, dtype, size=0.4)
        x, u = rng.standard_normal((7, 15, 3)), rng.standard_normal((7, 15, 10))
        whole, tape = net.forward(x)
        d_x = net.backward(tape, u).x
        order = rng.permutation(7)
        same_bits(net(x[order]), whole[order])
        for b in range(7):
            alone, alone_tape = net.forward(x[b : b + 1])
            same_bits(alone[0], whole[b])
            bc.close(net.backward(alone_tape, u[b : b + 1]).x[0], d_x[b], 1e-5 if dtype == np.float32 else 1e-13)


# ------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("how", STREAMS[:4], ids=bc.named)
@pytest.mark.parametrize(("B", "T", "H"), [(1, 30, 64), (5, 60, 48), (20, 25, 33)])
def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, how, B, T, H):
    net = bc.network(rng, how, dtype, H=H, A=40, size=1 / np.sqrt(H))
    x, u = rng.standard_normal((B, T, 3)).astype(dtype), rng.standard_normal((B, T, 2 * H)).astype(dtype)
    found = []
    for threads in (1, 2, 3):
        rc.set_num_threads(threads)
        outputs, tape = net.forward(x)
        d = net.backward(tape, u)
        found.append([outputs, tape.weights, tape.indices, d.x, *d.parameters.values()])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("score", bc.SCORES)
@pytest.mark.parametrize("k_top", [5, None])
def test_reads_have_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, score, k_top):
    o = bc.read_operands(rng, dtype, score, n=4, N=30_000, d=16, A=16, e=8)
    found = []
    for threads in (1, 2, 3):
        rc.set_num_threads(threads)
        read, pullback = rc.vjp(rc.backtracking.sparse_read, **o, k_top=k_top, score=bc.score_name(score))
        d = pullback(np.ones_like(read.value))
        found.append([*read, *(g for g in d if g is not None)])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


# --------------------------------------------------------------------------------------------------------- files


@every_stream
def test_a_network_and_its_state_survive_a_file(rng, dtype, same_bits, tmp_path, how):
    pytest.importorskip("safetensors")
    net = bc.network(rng, how, dtype, size=0.4)
    x = rng.standard_normal((2, 20, 3)).astype(dtype)
    state = net.forward(x[:, :11])[1].state
    net.save(tmp_path / "net.safetensors")
    state.save(tmp_path / "state.safetensors")
    other = type(net).load(tmp_path / "net.safetensors")
    there = rc.backtracking.State.load(tmp_path / "state.safetensors")
    assert other.dtype == net.dtype
    for name in (
        "input_size",
        "hidden_size",
        "attention_size",
        "k_top",
        "k_att",
        "k_trunc",
        "max_memories",
        "reminders",
        "compat",
    ):
        assert getattr(other, name) == getattr(net, name), name
    for name, a in net.parameters.items():
        same_bits(other.parameters[name], a)
    same_state(same_bits, there, state)
    (expected, tape), (got, again) = net.forward(x[:, 11:], state), other.forward(x[:, 11:], there)
    same_bits(got, expected)
    same_bits(other.backward(again, np.ones_like(got)).x, net.backward(tape, np.ones_like(got)).x)
    with pytest.raises(FileExistsError):
        net.save(tmp_path / "net.safetensors")
    with pytest.raises(FileExistsError):
        state.save(tmp_path / "state.safetensors")
    net.parameters["weight_ih"][...] = 1
    net.save(tmp_path / "net.safetensors", overwrite=True)
    assert (type(net).load(tmp_path / "net.safetensors").parameters["weight_ih"] == 1).all()


@pytest.mark.parametrize("plain", [rc.backtracking.LSTM, rc.backtracking.GRU])
def test_plain_networks_survive_a_file(rng, same_bits, tmp_path, plain):
    pytest.importorskip("safetensors")
    net = plain(3, 5, k_trunc=4, rng=rng)
    net.save(tmp_path / "net")
    x = rng.standard_normal((2, 9, 3))
    same_bits(plain.load(tmp_path / "net")(x), net(x))
    assert plain.load(tmp_path / "net").k_trunc == 4
    other = rc.backtracking.GRU if plain is rc.backtracking.LSTM else rc.backtracking.LSTM
    with pytest.raises(ValueError):
        other.load(tmp_path / "net")


def test_a_copy_of_a_state_is_its_own(rng, same_bits):
    net = bc.network(rng, STREAMS[0], np.float64)
    state = net.initial_state(2)
    for _ in range(5):
        net.step(rng.standard_normal((2, 3)), state)
    copy, hidden = state.copy(), state.hidden.copy()
    net.step(rng.standard_normal((2, 3)), copy)
    assert (state.time, copy.time) == (5, 6)
    same_bits(state.hidden, hidden)


# -------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("k_att", [1, 4])
def test_a_tape_grows_with_the_length_alone(rng, cell, k_att):
    """O(T (H + k_top)): twice the steps, twice the tape; never a T by T array."""
    H, k_top, T = 16, 5, 1000
    net = bc.network(rng, ref.Options(cell, k_top=k_top, k_att=k_att, k_trunc=5), np.float32, H=H)
    one, two = (net.forward(rng.standard_normal((1, n, 3)))[1].nbytes for n in (T, 2 * T))
    assert two < 2.01 * one
    assert one < T * (24 * H + 16 * k_top) * 4  # some numbers of H and k_top a step


SCRIPT = """
import sys
import numpy as np
import recollect as rc

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024

T, H = int(sys.argv[1]), 32
net = rc.backtracking.SparseBacktrackingLSTM(4, H, k_top=5, k_att=1, k_trunc=5)

def work(x):
    outputs, tape = net.forward(x)
    net.backward(tape, outputs)

rng = np.random.default_rng(0)
x = rng.standard_normal((1, T, 4)).astype(np.float32)
work(x[:, :50])
try:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
except OSError:
    pass
before = max(status("VmRSS"), status("VmHWM") if status("VmHWM") < status("VmRSS") + 1 else 0)
work(x)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_of_a_training_step():
    """T = 8000 states of 32: one number for each pair of steps would be 244 MiB, one state for each 7.6 GiB."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "8000"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 48, f"{float(done.stdout):.1f} MiB"


# ---------------------------------------------------------------------------------------------------- parameters


def test_parameters_are_drawn_from_the_generator_alone(same_bits):
    def make(seed):
        return rc.backtracking.SparseBacktrackingLSTM(
            3, 5, k_top=2, k_att=1, k_trunc=None, rng=np.random.default_rng(seed)
        )

    one, two, other = make(1), make(1), make(2)
    for name in one.parameters:
        same_bits(one.parameters[name], two.parameters[name])
        assert (one.parameters[name] != other.parameters[name]).any()
    other.init(np.random.default_rng(1))
    for name in one.parameters:
        same_bits(one.parameters[name], other.parameters[name])
    bound = 1 / np.sqrt(5)
    assert all(np.abs(one.parameters[n]).max() <= bound for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "w3"))
    plain = rc.backtracking.LSTM(3, 5, rng=np.random.default_rng(1))
    for name in plain.parameters:
        same_bits(plain.parameters[name], one.parameters[name])


def test_the_graph_is_drawn(rng):
    pytest.importorskip("matplotlib").use("Agg")
    net = bc.network(rng, STREAMS[0], np.float32)
    graph = net.forward(rng.standard_normal((2, 20, 3)))[1].reminders()
    axes = graph.draw(row=1)
    assert axes.has_data()
    axes.figure.clf()
