"""Gradients of backtracking: every one by name against the oracle, differences, and which inputs get exactly nothing."""

import numpy as np
import pytest
import recollect as rc

from tests import backtracking_checks as bc
from tests.reference import backtracking as ref

SIZES = [(1, 1, 1, 1), (3, 2, 7, 4), (2, 5, 8, 8), (2, 3, 17, 5), (1, 8, 33, 20), (9, 4, 16, 16)]  # B, D, H, A
HOW = ref.Options(k_top=3, k_att=2, k_trunc=4)


def check(rng, net, x, outputs, runs, how):
    u = rng.standard_normal(outputs.shape).astype(net.dtype)
    expected = ref.backward(runs, bc.wide(net), how, u.astype(bc.LONG))
    same_type = ref.backward(ref.forward(x, net.parameters, how)[1], net.parameters, how, u)
    bc.close_gradients(net, net.backward(net.forward(x)[1], u), expected, same_type)


@pytest.mark.parametrize("how", bc.EVERY, ids=bc.named)
def test_every_gradient(rng, dtype, how):
    check(rng, *bc.problem(rng, how, dtype, size=0.4 if how.released else 0.7), how)


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize(("B", "D", "H", "A"), SIZES)
def test_sizes(rng, dtype, cell, B, D, H, A):
    how = HOW._replace(cell=cell)
    check(rng, *bc.problem(rng, how, dtype, B=B, D=D, H=H, A=A, size=1 / np.sqrt(H) + 0.2), how)


@pytest.mark.parametrize("k_top", [5, None])
def test_a_long_sequence(rng, k_top):
    how = ref.Options(k_top=k_top, k_trunc=5)
    check(rng, *bc.problem(rng, how, np.float64, B=1, T=150, size=0.5), how)


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("how", [h for h in bc.PAPER if h.k_trunc is None and h.reminders], ids=bc.named)
def test_full_backpropagation_is_what_differences_say(rng, cell, how):
    """Central differences of our own forward pass: nothing of the oracle."""
    net, x, outputs, _ = bc.problem(rng, how._replace(cell=cell), np.float64, B=1, T=9, D=2, H=3)
    u, step = rng.standard_normal(outputs.shape), 6e-6
    d = net.backward(net.forward(x)[1], u)
    for name, a, g in [("x", x, d.x), *((n, net.parameters[n], d.parameters[n]) for n in net.parameters)]:
        expected = np.zeros_like(a)
        for i in np.ndindex(a.shape):
            kept, ends = a[i], []
            for h in (step, -step):
                a[i] = kept + h
                ends.append((net(x) * u).sum())
            a[i], expected[i] = kept, (ends[0] - ends[1]) / (2 * step)
        bc.close(g, expected, 2e-7, name)


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("how", [HOW, ref.Options(k_top=None, k_trunc=3), ref.Options(k_top=2, k_trunc=3, max_memories=4),
                                 ref.Options(k_top=2, k_att=2, k_trunc=4, reminders=False),
                                 ref.Options(k_top=3, k_trunc=3, released=True)], ids=bc.named)  # fmt: skip
@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_state_is_a_constant(rng, cell, how, cut):
    """A sequence that goes on from a state, windows and k_att counted on from there."""
    how = how._replace(cell=cell)
    net, x, outputs, _ = bc.problem(rng, how, np.float64, size=0.4)
    state = net.forward(x[:, :cut])[1].state
    late, tape = net.forward(x[:, cut:], state)
    u, p = rng.standard_normal(late.shape), bc.wide(net)
    runs = [ref.run(bc.LONG(row[cut:]), p, how, ref.run(bc.LONG(row[:cut]), p, how).state) for row in x]
    bc.close(late, outputs[:, cut:], 1e-12)
    bc.close_gradients(net, net.backward(tape, u), ref.backward(runs, p, how, bc.LONG(u)))


# --------------------------------------------------------------------------------------------------- locality


def reached(net, x, t, run):
    """Which inputs get any gradient from h_t, and which the definition lets through (times from 1)."""
    outputs, tape = net.forward(x)
    u = np.zeros_like(outputs)
    u[0, t - 1] = 1
    graph, todo, states = tape.reminders(), [t], set()
    while todo:
        now = todo.pop()
        if now in states:
            continue
        states.add(now)
        todo += [now - 1] if (now - 1) % net.k_trunc else []
        todo += graph.source[graph.time == now].tolist()
        choice = run.steps[now - 1].choice
        if choice.threshold is not None and len(choice.kept) > 1:  # one weight is 1 whatever its score
            todo.append(run.state.memory[choice.threshold].time)
    return np.flatnonzero(net.backward(tape, u).x[0].any(axis=1)) + 1, states


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize(("k_top", "k_att", "k_trunc"), [(1, 4, 3), (2, 3, 4), (1, 6, 2)])
def test_an_input_outside_every_window_gets_exactly_zero(rng, cell, k_top, k_att, k_trunc):
    how = ref.Options(cell, k_top=k_top, k_att=k_att, k_trunc=k_trunc)
    T, out_of_reach = 40, 0
    for _ in range(5):
        net, x, _, runs = bc.problem(rng, how, np.float64, B=1, T=T)
        for t in (T, T - 3):
            got, states = reached(net, x, t, runs[0])
            assert set(got.tolist()) == states  # inside a window they do get one
            out_of_reach += T - len(states)
    assert out_of_reach > 100


@pytest.mark.parametrize("cell", bc.NETWORKS)
@pytest.mark.parametrize("compat", [None, "released"])
def test_without_gradient_through_reminders_only_the_last_window_counts(rng, cell, compat):
    how = ref.Options(cell, k_top=3, k_trunc=4, reminders=False, released=compat is not None)
    net, x, outputs, _ = bc.problem(rng, how, np.float64, T=20, size=0.4)
    u = np.zeros(outputs.shape)
    u[:, 17] = 1
    d = net.backward(net.forward(x)[1], u).x.any(axis=-1)
    first = 17 if compat is None else 16  # windows start where (t - 1), or t, is a multiple of 4
    expected = np.zeros(20, bool)
    expected[first - 1 : 18] = True
    assert (d == expected).all()


def test_reminders_reach_over_any_distance(rng):
    """The one microstate of step 1 is read by every later step; so step 1 gets a gradient from the last one."""
    net = bc.network(rng, ref.Options(k_top=1, k_trunc=1, max_memories=None), np.float64)
    x = rng.standard_normal((1, 2, 3))
    assert net.backward(net.forward(x)[1], np.eye(2)[1][:, None] * np.ones((1, 2, 10))).x[0, 0].any()


def test_a_window_longer_than_the_sequence_is_none(rng, dtype, same_bits):
    one, two = (bc.network(rng, ref.Options(k_top=2, k_trunc=k), dtype) for k in (12, None))
    for name, a in two.parameters.items():
        a[...] = one.parameters[name]
    x, u = rng.standard_normal((2, 12, 3)), rng.standard_normal((2, 12, 10)).astype(dtype)
    d, e = (net.backward(net.forward(x)[1], u) for net in (one, two))
    same_bits(d.x, e.x)
    for name in one.parameters:
        same_bits(d.parameters[name], e.parameters[name])


def test_truncation_and_reminders_do_not_change_outputs(rng, dtype, same_bits):
    x, nets = rng.standard_normal((2, 15, 3)), []
    for k_trunc, reminders in ((None, True), (1, True), (4, False)):
        nets.append(bc.network(rng, ref.Options(k_top=2, k_trunc=k_trunc, reminders=reminders), dtype))
        for name, a in nets[-1].parameters.items():
            a[...] = nets[0].parameters[name]
        same_bits(nets[-1](x), nets[0](x))


# ----------------------------------------------------------------------------------------- what a tape is good for


def test_a_tape_may_be_used_again_and_backward_is_linear(rng, dtype, same_bits):
    net = bc.network(rng, HOW, dtype)
    outputs, tape = net.forward(rng.standard_normal((2, 15, 3)))
    u = rng.standard_normal(outputs.shape).astype(dtype)
    one, again, twice = net.backward(tape, u), net.backward(tape, u), net.backward(tape, 2 * u)
    nothing = net.backward(tape, np.zeros_like(u))
    for name in net.parameters:
        same_bits(one.parameters[name], again.parameters[name])
        same_bits(2 * one.parameters[name], twice.parameters[name])
        assert not nothing.parameters[name].any()
    same_bits(one.x, again.x)
    same_bits(2 * one.x, twice.x)
    assert not nothing.x.any()


def test_d_outputs_of_any_layout(rng, same_bits):
    net = bc.network(rng, HOW, np.float32)
    outputs, tape = net.forward(rng.standard_normal((2, 15, 3)))
    u = rng.integers(-2, 3, outputs.shape)
    expected = net.backward(tape, u.astype(np.float32))
    for other in (u, u.tolist(), np.asfortranarray(u.astype(np.float64)), u.astype(np.float32)[::-1][::-1]):
        same_bits(net.backward(tape, other).x, expected.x)
    assert expected.x.dtype == np.float32


# ------------------------------------------------------------------------------------------------ the read alone


@pytest.mark.parametrize("score", bc.SCORES)
@pytest.mark.parametrize(("N", "k_top"), [(7, 2), (7, 6), (7, 7), (7, None), (3, 9), (30, 5), (1, 1), (0, 2)])
def test_gradients_of_reads(rng, dtype, score, N, k_top):
    o = bc.read_operands(rng, dtype, score, N=N, batch=(2,))
    name = bc.score_name(score)
    read, pullback = rc.vjp(rc.backtracking.sparse_read, **o, k_top=k_top, score=name)
    u = rng.standard_normal(read.value.shape).astype(dtype)
    expected = bc.read_gradient_sums(o, u, (2,), k_top=k_top, score=name)
    check_named(pullback(u), o, expected, 2e-3 if dtype == np.float32 else 1e-10)


def check_named(got, o, expected, tol):
    fields = got._asdict() if hasattr(got, "_asdict") else dict(got)
    assert {k for k, g in fields.items() if g is not None} == set(o)
    for k, a in o.items():
        assert fields[k].dtype == a.dtype
        bc.close(fields[k], expected[k], tol, k)


@pytest.mark.parametrize("score", bc.SCORES)
@pytest.mark.parametrize("k_top", [3, None])
def test_gradients_over_leading_axes_and_lengths(rng, score, k_top):
    o = bc.read_operands(rng, np.float64, score)
    o["query"] = rng.standard_normal((2, 1, *o["query"].shape))
    for k in {"memory", "keys"} & set(o):
        o[k] = rng.standard_normal((3, *o[k].shape))
    lengths, name = np.array([[0, 7, 3], [2, 5, 4]]), bc.score_name(score)
    read, pullback = rc.vjp(rc.backtracking.sparse_read, **o, k_top=k_top, score=name, lengths=lengths)
    u = rng.standard_normal(read.value.shape)
    expected = bc.read_gradient_sums(o, u, (2, 3), lengths, k_top=k_top, score=name)
    check_named(pullback(u), o, expected, 1e-10)


def test_only_what_was_read_and_the_threshold_get_a_gradient(rng):
    N, k = 5000, 4
    o = bc.read_operands(rng, np.float64, "keys", n=1, N=N)
    read, pullback = rc.vjp(rc.backtracking.sparse_read, **o, k_top=k)
    d = pullback(np.ones_like(read.value))
    a = ref.scores_of(o["query"][0], o["memory"], "additive", w2=o["w2"], w3=o["w3"], keys=o["keys"])
    order = np.argsort(-a, kind="stable")
    assert set(np.flatnonzero(d.memory.any(axis=1))) == set(order[:k])
    assert set(np.flatnonzero(d.keys.any(axis=1))) == set(order[: k + 1])
    assert abs((d.keys / (1 - np.tanh(o["keys"] + o["w2"] @ o["query"][0]) ** 2) / o["w3"]).sum()) < 1e-9  # sum of d_a


def test_equal_scores_get_no_gradient(rng):
    memory = rng.standard_normal((6, 3))
    read, pullback = rc.vjp(rc.backtracking.sparse_read, np.zeros((1, 3)), memory, k_top=2, score="dot")
    d = pullback(np.ones((1, 3)))
    assert read.indices.tolist() == [[0, 1]] and read.weights.tolist() == [[0.5, 0.5]]
    assert not d.query.any() and (d.memory[:2] == 0.5).all() and not d.memory[2:].any()
