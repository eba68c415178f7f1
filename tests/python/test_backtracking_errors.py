"""Every wrong call of backtracking: the right exception, one sentence that names what was called, the argument and what came."""

import re

import numpy as np
import pytest
import recollect as rc

from tests import backtracking_checks as bc

NETWORKS = {
    "SparseBacktrackingLSTM": {"k_top": 2, "k_att": 2, "k_trunc": 4}, "SparseBacktrackingGRU": {"k_top": 2, "k_att": 2, "k_trunc": 4},
    "LSTM": {"k_trunc": 4}, "GRU": {"k_trunc": 4},
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name, input_size=3, hidden_size=4, **changes):
    return getattr(rc.backtracking, name)(input_size, hidden_size, **NETWORKS[name] | changes)


def refused(kind, op, pattern, call):
    with pytest.raises(kind) as error:
        call()
    text = str(error.value)
    assert type(error.value) is kind, type(error.value)
    assert "\n" not in text.strip() and 20 < len(text) < 400, text
    assert re.match(rf"backtracking\.{re.escape(op)}: {pattern}", text), text


# ---------------------------------------------------------------------------------------------------- networks


@every_network
@pytest.mark.parametrize(
    ("kind", "argument", "value", "came"),
    [
        (ValueError, "input_size", 0, "0"), (ValueError, "hidden_size", -3, "-3"), (TypeError, "input_size", 3.5, "3.5"),
        (TypeError, "hidden_size", "4", "'4'"), (TypeError, "hidden_size", None, "None"), (ValueError, "k_trunc", 0, "0"),
        (TypeError, "k_trunc", 1.5, "1.5"), (TypeError, "rng", 3, ".*int"), (TypeError, "dtype", np.int32, "int32"),
        (TypeError, "dtype", np.float16, "float16"),
    ],
)  # fmt: skip
def test_options_of_every_network(name, kind, argument, value, came):
    verb = "has dtype|is" if argument == "dtype" else "is"
    refused(kind, name, f"{argument} ({verb}) {came}.*; expected ", lambda: make(name, **{argument: value}))


@pytest.mark.parametrize("name", list(NETWORKS)[:2])
@pytest.mark.parametrize(
    ("kind", "argument", "value", "came"),
    [
        (ValueError, "k_top", -1, "-1"), (TypeError, "k_top", 2.5, "2.5"), (TypeError, "k_top", True, "True"),
        (TypeError, "max_memories", True, "True"), (TypeError, "k_att", True, "True"), (ValueError, "k_att", 0, "0"), (TypeError, "k_att", None, "None"),
        (ValueError, "attention_size", 0, "0"), (ValueError, "max_memories", 0, "0"), (TypeError, "max_memories", "all", "'all'"),
        (ValueError, "compat", "public", "'public'"),
    ],
)  # fmt: skip
def test_options_of_reminders(name, kind, argument, value, came):
    refused(kind, name, f"{argument} is {came}.*; expected ", lambda: make(name, **{argument: value}))


@pytest.mark.parametrize("name", list(NETWORKS)[:2])
def test_the_released_form_has_no_hidden_layer(name):
    refused(ValueError, name, "attention_size is 3.*released", lambda: make(name, compat="released", attention_size=3))


@every_network
@pytest.mark.parametrize(
    ("kind", "x", "came"),
    [
        (ValueError, np.ones((2, 3)), r"shape \(2, 3\)"), (ValueError, np.ones((2, 7, 5)), r"shape \(2, 7, 5\)"),
        (ValueError, np.ones((2, 7, 3, 1)), r"shape \(2, 7, 3, 1\)"), (ValueError, 1.0, r"shape \(\)"),
        (TypeError, np.ones((2, 7, 3), complex), "dtype complex128"), (TypeError, [[["a"]]], "dtype <U1"), (TypeError, None, "dtype object"),
    ],
)  # fmt: skip
def test_inputs(name, kind, x, came):
    net = make(name)
    for call in (net.forward, net):
        refused(kind, name, f"x has {came}; expected ", lambda call=call: call(x))


@every_network
def test_states(name):
    net, x = make(name), np.ones((2, 7, 3))
    calls = (lambda s: net.forward(x, s), lambda s: net(x, s), lambda s: net.step(x[:, 0], s))
    for call in calls:
        refused(TypeError, name, "state is .*int.*; expected ", lambda call=call: call(3))
        refused(ValueError, name, "state .*3.*; expected ", lambda call=call: call(net.initial_state(3)))
        refused(
            ValueError,
            name,
            "state .*5.*; expected ",
            lambda call=call: call(make(name, hidden_size=5).initial_state(2)),
        )
        refused(
            TypeError,
            name,
            "state .*float64.*; expected ",
            lambda call=call: call(make(name, dtype=np.float64).initial_state(2)),
        )
    refused(TypeError, name, "state is .*None.*; expected ", lambda: net.step(x[:, 0], None))
    refused(ValueError, name, r"x has shape \(2, 7, 3\); expected ", lambda: net.step(x, net.initial_state(2)))
    refused(
        ValueError, name, r"x has shape \(2, 4\); expected ", lambda: net.step(np.ones((2, 4)), net.initial_state(2))
    )
    refused(ValueError, name, "batch is -1; expected ", lambda: net.initial_state(-1))
    refused(TypeError, name, "batch is 1.5; expected ", lambda: net.initial_state(1.5))


@pytest.mark.parametrize("name", list(NETWORKS)[:2])
def test_states_of_other_sizes(name):
    net, x = make(name), np.ones((2, 7, 3))
    other = make(name, attention_size=9).forward(x)[1].state  # its memory has other keys
    refused(ValueError, name, "state .*9.*; expected ", lambda: net.forward(x, other))
    released = make(name, compat="released").forward(x)[1].state
    refused(ValueError, name, "state .*; expected ", lambda: net.forward(x, released))


@pytest.mark.parametrize("name", list(NETWORKS)[:2])
def test_states_of_other_networks(name):
    net, x = make(name), np.ones((2, 7, 3))
    for changes, says in (
        ({"k_att": 3}, "k_att=3.*; expected k_att=2"),
        ({"k_top": 0}, "no microstates; expected k_att=2"),
    ):
        state = make(name, **changes).forward(x)[1].state
        for other in (state, state.copy()):
            refused(ValueError, name, f"state is of a network with {says}", lambda other=other: net.forward(x, other))
        refused(ValueError, name, f"state is of a network with {says}", lambda state=state: net.step(x[:, 0], state))


@pytest.mark.parametrize(
    ("name", "other"), [list(NETWORKS)[:2], list(NETWORKS)[1::-1], list(NETWORKS)[2:], list(NETWORKS)[:1:-1]]
)
def test_states_of_another_cell(name, other, tmp_path):
    net, x = make(name), np.ones((2, 7, 3))
    cells = {n: n.removeprefix("SparseBacktracking").lower() for n in (name, other)}
    state = make(other).forward(x)[1].state
    pytest.importorskip("safetensors")
    state.save(tmp_path / "state")
    for each in (state, rc.backtracking.State.load(tmp_path / "state"), make(other).initial_state(2)):
        says = f"state is of cell {cells[other]!r}; expected {cells[name]!r}"
        refused(ValueError, name, says, lambda each=each: net.forward(x, each))
        refused(ValueError, name, says, lambda each=each: net(x, each))
        refused(ValueError, name, says, lambda each=each: net.step(x[:, 0], each))


def test_a_refused_step_leaves_the_state_alone():
    net = make("SparseBacktrackingLSTM")
    state = net.initial_state(2)
    net.step(np.ones((2, 3)), state)
    before = state.copy()
    with pytest.raises(ValueError):
        net.step(np.ones((3, 3)), state)
    assert state.time == before.time and (state.hidden == before.hidden).all()


@every_network
def test_tapes(name):
    net = make(name)
    outputs, tape = net.forward(np.ones((2, 7, 3)))
    refused(TypeError, name, "tape is .*int.*; expected ", lambda: net.backward(3, outputs))
    refused(ValueError, name, "tape is of another network.*; expected ", lambda: make(name).backward(tape, outputs))
    refused(ValueError, name, r"d_outputs has shape \(2, 6,.*; expected ", lambda: net.backward(tape, outputs[:, :6]))
    refused(
        ValueError, name, r"d_outputs has shape \(2, 7, 3\); expected ", lambda: net.backward(tape, np.ones((2, 7, 3)))
    )
    refused(TypeError, name, "d_outputs has dtype complex64; expected ", lambda: net.backward(tape, outputs * 1j))


@every_network
def test_parameters_that_do_not_fit(name):
    net = make(name)
    shape = net.parameters["weight_hh"].shape
    for wrong, kind in ((np.ones(3, np.float32), ValueError), (np.ones(shape, int), TypeError)):
        net.parameters["weight_hh"] = wrong
        refused(kind, name, r"parameters\['weight_hh'\] has .*; expected ", lambda: net.forward(np.ones((2, 7, 3))))


@every_network
def test_files(name, tmp_path):
    pytest.importorskip("safetensors")
    load, path = getattr(rc.backtracking, name).load, tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=f"backtracking.{name}.*no file"):
        load(path)
    path.write_bytes(b"no such thing at all")
    with pytest.raises(ValueError, match="file"):
        load(path)
    net = make(name)
    net.save(path, overwrite=True)
    damaged = path.read_bytes()[:-7]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="file"):
        load(path)
    net.initial_state(2).save(path, overwrite=True)
    with pytest.raises(ValueError):
        load(path)
    net.save(path, overwrite=True)
    with pytest.raises(ValueError):
        rc.backtracking.State.load(path)
    with pytest.raises(FileNotFoundError):
        rc.backtracking.State.load(tmp_path / "nowhere")


# --------------------------------------------------------------------------------------------------- sparse_read


def read(kind="additive", **changes):
    rng = np.random.default_rng(0)
    o = bc.read_operands(rng, np.float64, kind, batch=(2,)) | {"k_top": 3, "score": bc.score_name(kind)} | changes
    return {k: v for k, v in o.items() if not (isinstance(v, str) and v == "left out")}


def test_the_good_reads_are_good():
    for score in bc.SCORES:
        rc.backtracking.sparse_read(**read(score))


@pytest.mark.parametrize(
    ("kind", "score", "changes", "pattern"),
    [
        (ValueError, "additive", {"k_top": 0}, "k_top is 0; expected "),
        (ValueError, "additive", {"k_top": -2}, "k_top is -2; expected "),
        (TypeError, "additive", {"k_top": 1.5}, "k_top is 1.5; expected "),
        (TypeError, "additive", {"k_top": True}, "k_top is True; expected "),
        (ValueError, "additive", {"score": "cosine"}, "score is 'cosine'; expected "),
        (ValueError, "additive", {"w3": "left out"}, "w3 .*; expected "),
        (ValueError, "additive", {"w2": "left out"}, "w2 .*; expected "),
        (ValueError, "additive", {"w1": "left out"}, "w1 .*; expected "),
        (ValueError, "bilinear", {"weight": "left out"}, "weight .*; expected "),
        (ValueError, "dot", {"weight": np.ones((4, 4))}, "weight .*; expected "),
        (ValueError, "dot", {"w3": np.ones(5)}, "w3 .*; expected "),
        (ValueError, "additive", {"w1": np.ones((5, 3))}, r"w1 has shape \(5, 3\)"),
        (ValueError, "additive", {"w2": np.ones((5, 9))}, r"w2 has shape \(5, 9\)"),
        (ValueError, "additive", {"w3": np.ones(4)}, r"w3 has shape \(4,\)"),
        (ValueError, "additive", {"w3": np.ones((1, 5))}, r"w3 has shape \(1, 5\)"),
        (ValueError, "bilinear", {"weight": np.ones((4, 3))}, r"weight has shape \(4, 3\)"),
        (ValueError, "keys", {"keys": np.ones((2, 6, 5))}, r"(keys has shape \(2, 6, 5\)|memory has shape .*; expected .*6)"),
        (ValueError, "dot", {"query": np.ones((2, 3, 9))}, r"(query|memory) has shape .*9"),
        (ValueError, "dot", {"query": np.ones(4)}, r"query has shape \(4,\)"),
        (ValueError, "dot", {"memory": np.ones(4)}, r"memory has shape \(4,\)"),
        (ValueError, "dot", {"memory": np.ones((3, 7, 4))}, r"(query|memory) has shape "),
        (ValueError, "dot", {"lengths": [1, 2, 3]}, r"lengths has shape \(3,\)"),
        (ValueError, "dot", {"lengths": 8}, "lengths .*8"),
        (ValueError, "dot", {"lengths": -1}, "lengths .*-1"),
        (TypeError, "dot", {"lengths": 2.5}, "lengths has dtype float64"),
        (TypeError, "dot", {"query": np.ones((2, 3, 4), complex)}, "query has dtype complex128"),
        (TypeError, "dot", {"memory": np.array([["a"]])}, "memory has dtype <U1"),
    ],
)  # fmt: skip
def test_reads(kind, score, changes, pattern):
    o = read(score, **changes)
    refused(kind, "sparse_read", pattern, lambda: rc.backtracking.sparse_read(**o))
    refused(kind, "sparse_read", pattern, lambda: rc.vjp(rc.backtracking.sparse_read, **o))


def test_pullbacks():
    pullback = rc.vjp(rc.backtracking.sparse_read, **read("dot"))[1]
    refused(ValueError, "sparse_read", r"d_value has shape \(2, 3, 5\)", lambda: pullback(np.ones((2, 3, 5))))
    refused(TypeError, "sparse_read", r"d_value has dtype complex128", lambda: pullback(np.ones((2, 3, 4), complex)))


def test_a_gradient_is_of_w1_or_of_keys():
    o = read("keys") | {"w1": np.ones((5, 4))}
    rc.backtracking.sparse_read(**o)
    refused(
        ValueError,
        "sparse_read",
        "w1 is given beside keys; expected ",
        lambda: rc.vjp(rc.backtracking.sparse_read, **o),
    )


def test_vjp_lists_the_read_by_its_public_name():
    with pytest.raises(TypeError, match=r"backtracking\.sparse_read"):
        rc.vjp(np.dot, 1, 2)


def test_projections():
    project = rc.backtracking.project
    refused(ValueError, "project", r"w1 has shape \(5, 3\)", lambda: project(np.ones((7, 4)), np.ones((5, 3))))
    refused(ValueError, "project", r"memory has shape \(4,\)", lambda: project(np.ones(4), np.ones((5, 4))))
    refused(
        TypeError, "project", "memory has dtype complex128", lambda: project(np.ones((7, 4), complex), np.ones((5, 4)))
    )
