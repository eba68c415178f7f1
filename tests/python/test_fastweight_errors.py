"""Every wrong call of fast weights: the right exception and one sentence that names the op, the argument, what came.

The patterns below fix those three; the rest of the wording is free.
"""

import re

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw

LINEAR, DELTA, FAST = fw.OPS
OF = {
    LINEAR: ["query", "key", "value"], DELTA: ["query", "key", "value", "beta"], FAST: ["query", "key", "value", "a", "b"],
}  # fmt: skip


def shape(*sizes):
    return np.full(sizes, 0.5)


def good(op):
    """T = 5, K = 3, V = 2"""
    sizes = {"query": (5, 3), "key": (5, 3), "value": (5, 2), "beta": (5,), "a": (5, 3), "b": (5, 3)}
    return {name: shape(*sizes[name]) for name in OF[op]}


def call(op, **changes):
    return getattr(rc.fastweight, op)(**(good(op) | changes))


def refused(op, kind, argument, came, **changes):
    """Of the function itself, and of vjp where nothing else stands in the way."""
    calls = [lambda: call(op, **changes)]
    if "out" not in changes:
        calls.append(lambda: rc.vjp(getattr(rc.fastweight, op), **(good(op) | changes)))
    for wrong in calls:
        with pytest.raises(kind) as error:
            wrong()
        text = str(error.value)
        assert "\n" not in text.strip() and 20 < len(text) < 400, text
        assert re.search(rf"fastweight\.{op}\b", text), text
        # a and b are words of any sentence: they stand at its head
        assert re.search(rf"\b{argument}\b" if argument not in ("a", "b") else rf": {argument} ", text), text
        assert re.search(came, text), text
        assert "nan" in came or not re.search(r"\bnan\b", text), text


@pytest.mark.parametrize("op", fw.OPS)
def test_the_good_call_is_good(op):
    call(op)
    _, state = call(op, return_state=True)
    call(op, decay=shape(5), scale=2, state=state, return_state=True, out=shape(5, 2), chunk=4)
    call(op, log_decay=-shape(5, 3))


# ------------------------------------------------------------------------------------------------------------ shapes

SHAPES = [  # argument that is named, the shape that came, changes; for every op that has the arguments
    ("query", r"\(3,\)", {"query": shape(3)}),
    ("query", r"\(\)", {"query": 1.0}),
    ("key", r"\(3,\)", {"key": shape(3)}),
    ("key", r"\(5, 4\).*[dK]=3", {"key": shape(5, 4)}),
    ("key", r"\(3, 5\).*[dK]=3", {"key": shape(3, 5)}),
    ("key", r"\(4, 3\).*T=5", {"key": shape(4, 3)}),
    ("value", r"\(4, 2\).*T=5", {"value": shape(4, 2)}),
    ("value", r"\(1, 2\).*T=5", {"value": shape(1, 2)}),
    ("value", r"\(5,\)", {"value": shape(5)}),
    ("beta", r"\(4,\).*T=5", {"beta": shape(4)}),
    ("beta", r"\(5, 1\)", {"beta": shape(5, 1)}),
    ("beta", r"\(\)", {"beta": 1.0}),
    ("a|b", r"\(5, [23]\).*K=[23]", {"a": shape(5, 2)}),  # it is the width of one or of the other
    ("a", r"\(5,\)", {"a": shape(5)}),
    ("b", r"\(4, 3\).*T=5", {"b": shape(4, 3)}),
    ("b", r"\(5, 4\).*[dK]=3", {"b": shape(5, 4)}),
    # decays
    ("decay", r"\(4,\)", {"decay": shape(4)}),
    ("decay", r"\(\)", {"decay": 0.5}),
    ("decay", r"\(5, 4\)", {"decay": shape(5, 4)}),
    ("decay", r"\(5, 2\)", {"decay": shape(5, 2)}),
    ("decay", r"\(4, 3\)", {"decay": shape(4, 3)}),
    ("log_decay", r"\(4,\)", {"log_decay": -shape(4)}),
    ("log_decay", r"\(5, 4\)", {"log_decay": -shape(5, 4)}),
    # leading axes
    ("key", r"\(2, 5, 3\)", {"query": shape(4, 5, 3), "key": shape(2, 5, 3)}),
    ("value", r"\(3, 5, 2\)", {"query": shape(2, 5, 3), "value": shape(3, 5, 2)}),
    ("beta", r"\(3, 5\)", {"query": shape(2, 5, 3), "beta": shape(3, 5)}),
    ("b", r"\(3, 5, 3\)", {"query": shape(2, 5, 3), "b": shape(3, 5, 3)}),
    ("decay", r"\(3, 5\)", {"query": shape(2, 5, 3), "decay": shape(3, 5)}),
    ("scale", r"\(3,\)", {"query": shape(2, 5, 3), "scale": shape(3)}),
    ("state", r"\(3, 3, 2\)", {"query": shape(2, 5, 3), "state": shape(3, 3, 2)}),
    # states
    ("state", r"\(2, 3\)", {"state": shape(2, 3)}),
    ("state", r"\(3,\)", {"state": shape(3)}),
    ("state", r"\(4, 2\)", {"state": shape(4, 2)}),
]  # fmt: skip


def cases():
    for op in fw.OPS:
        for argument, came, changes in SHAPES:
            own = (*OF[op], "decay", "log_decay", "scale", "state")
            if set(argument.split("|")) <= set(own) and all(name in own for name in changes):
                yield pytest.param(op, argument, came, changes, id=f"{op}-{argument}-{came}")


@pytest.mark.parametrize(("op", "argument", "came", "changes"), list(cases()))
def test_shapes(op, argument, came, changes):
    options = {"normalize": False} if op == LINEAR else {}
    refused(op, ValueError, argument, came, **changes, **options)


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("sizes", [(5, 3), (2,), (1, 5, 2), (4, 2), (2, 5), ()])
def test_the_shape_of_out(op, sizes):
    refused(op, ValueError, "out", re.escape(str(sizes)), out=shape(*sizes))


def test_the_sentence_of_the_design():
    with pytest.raises(ValueError, match=r"^fastweight\.delta_rule: beta has shape \(4,\); expected .*T=5"):
        call(DELTA, beta=shape(4))
    with pytest.raises(ValueError, match=r"^fastweight\.linear_attention: value has shape \(4, 2\); expected .*T=5"):
        call(LINEAR, value=shape(4, 2))


# ------------------------------------------------------------------------------------------------------------ values

NOT_DECAYS = [0.0, -0.5, 1.0000001, 2.0, np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("own", [(5,), (5, 3)])
@pytest.mark.parametrize("bad", NOT_DECAYS)
def test_decays_are_in_0_to_1(op, own, bad):
    for where in (0, 2, 4):
        decay = shape(*own)
        decay[where] = bad
        refused(op, ValueError, "decay", re.escape(f"{bad:g}"[:8]), decay=decay)


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("own", [(5,), (5, 3)])
@pytest.mark.parametrize("bad", [0.5, 1e-6, np.nan, np.inf])
def test_log_decays_are_not_above_0(op, own, bad):
    decay = -shape(*own)
    decay[-1] = bad
    refused(op, ValueError, "log_decay", f"{bad:g}", log_decay=decay)


@pytest.mark.parametrize("op", fw.OPS)
def test_decays_of_a_long_sequence_are_all_looked_at(op):
    sizes = {name: (20_000, *a.shape[1:]) for name, a in good(op).items()}
    decay = shape(20_000)
    decay[19_998] = 1.5
    refused(op, ValueError, "decay", "1.5", decay=decay, **{name: shape(*s) for name, s in sizes.items()})


@pytest.mark.parametrize("op", fw.OPS)
def test_one_decay_at_most(op):
    refused(op, (TypeError, ValueError), "log_decay", "decay", decay=shape(5), log_decay=-shape(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", fw.OPS)
def test_scale_is_finite(op, bad):
    refused(op, ValueError, "scale", str(bad), scale=bad)


@pytest.mark.parametrize("changes", [{"decay": shape(5)}, {"log_decay": -shape(5, 3)}, {"state": shape(3, 3)}])
def test_the_full_sum_has_no_time(changes):
    (name,) = changes
    refused(LINEAR, ValueError, name, "causal", causal=False, **changes)


def test_queries_and_keys_of_a_causal_call_are_as_many():
    refused(LINEAR, ValueError, "key", r"\(4, 3\).*T=5", key=shape(4, 3), value=shape(4, 2))
    call(LINEAR, key=shape(4, 3), value=shape(4, 2), causal=False)
    refused(LINEAR, ValueError, "value", r"\(5, 2\)", key=shape(4, 3), causal=False)


@pytest.mark.parametrize("normalize", ["other", "", "L2", "Sum", "softmax"])
def test_unknown_normalisations(normalize):
    refused(DELTA, ValueError, "normalize", re.escape(normalize), normalize=normalize)
    with pytest.raises(ValueError, match="sum.*l2"):  # and tells what there is
        call(DELTA, normalize=normalize)


@pytest.mark.parametrize("chunk", [0, -1])
@pytest.mark.parametrize("op", fw.OPS)
def test_a_chunk_has_a_token(op, chunk):
    refused(op, ValueError, "chunk", str(chunk), chunk=chunk)


@pytest.mark.parametrize("chunk", [1.5, "16", [16]])
@pytest.mark.parametrize("op", fw.OPS)
def test_a_chunk_is_a_whole_number(op, chunk):
    refused(op, TypeError, "chunk", "", chunk=chunk)


# ------------------------------------------------------------------------------------------- states of other rules


def test_states_of_another_rule():
    plain = call(LINEAR, normalize=False, return_state=True).state
    summed = call(LINEAR, return_state=True).state
    delta = call(DELTA, return_state=True).state
    attention = call(DELTA, feature_map="elu1", normalize="attention", return_state=True).state
    refused(LINEAR, (TypeError, ValueError), "state", "", state=plain)
    refused(LINEAR, (TypeError, ValueError), "state", "", state=summed, normalize=False)
    refused(DELTA, (TypeError, ValueError), "state", "", state=attention)
    refused(DELTA, (TypeError, ValueError), "state", "", state=delta, feature_map="elu1", normalize="attention")
    refused(FAST, (TypeError, ValueError), "state", "", state=summed)


def test_states_of_another_map():
    _, wide = call(LINEAR, feature_map=fw.public(("dpfp", 1)), return_state=True)
    refused(LINEAR, (TypeError, ValueError), "state", r"\(6, 2\)|6", state=wide)


@pytest.mark.parametrize("state", ["x", {"S": 1}, [None], shape(3, 2) * 1j, 1.0], ids=repr)
@pytest.mark.parametrize("op", fw.OPS)
def test_what_is_no_state(op, state):
    refused(op, (TypeError, ValueError), "state", "", state=state)


# ------------------------------------------------------------------------------------------------------ number types

WRONG = {
    "complex": (shape(5, 3) * 1j, "complex128"),
    "bool": (np.ones((5, 3), bool), "bool"),
    "strings": (np.full((5, 3), "x"), "U1|str"),
    "object": (np.full((5, 3), None), "object"),
    "dates": (np.zeros((5, 3), "datetime64[s]"), "datetime64"),
    "dictionary": ({"a": 1}, "object|dict"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("op", "argument"), [(op, name) for op in fw.OPS for name in (*OF[op], "decay", "log_decay")])
def test_wrong_number_types(op, argument, kind):
    refused(op, TypeError, argument, WRONG[kind][1], **{argument: WRONG[kind][0]})


@pytest.mark.parametrize("number", ["1.0", 1 + 0j, np.array(["x"]), {"a": 1}], ids=repr)
@pytest.mark.parametrize("op", fw.OPS)
def test_scale_is_a_number(op, number):
    refused(op, TypeError, "scale", "", scale=number)


@pytest.mark.parametrize(("op", "argument"), [(op, name) for op in fw.OPS for name in OF[op]])
def test_none_is_no_array_and_lists_are_not_ragged(op, argument):
    if argument != "a":  # None is where the value is written
        with pytest.raises(TypeError, match=argument):
            call(op, **{argument: None})
    with pytest.raises((ValueError, TypeError), match=rf"fastweight\.{op}.*\b{argument}\b"):
        call(op, **{argument: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize(
    "out",
    [np.ones((5, 2), np.float32), np.ones((5, 2), int), [[0.0] * 2] * 5, "x"],
    ids=["float32", "int", "list", "str"],
)
@pytest.mark.parametrize("op", fw.OPS)
def test_out_is_an_array_of_the_number_type_of_the_result(op, out):
    refused(op, TypeError, "out", getattr(getattr(out, "dtype", None), "name", ""), out=out)


@pytest.mark.parametrize("op", fw.OPS)
def test_out_is_writable(op):
    out = np.zeros((5, 2))
    out.flags.writeable = False
    refused(op, ValueError, "out", "read-only|writ", out=out)


@pytest.mark.parametrize(
    "changes", [{"scale": np.nan}, {"key": shape(5, 7)}, {"decay": 2 * shape(5) + 1}, {"state": shape(7, 2)}], ids=str
)
def test_a_refused_call_leaves_out_alone(changes):
    out = np.full((5, 2), 7.0)
    for op in (DELTA, FAST):
        with pytest.raises(ValueError):
            call(op, out=out, **changes)
        assert (out == 7).all()


# ------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("op", fw.OPS)
def test_options_have_names(op):
    arrays = list(good(op).values())
    function = getattr(rc.fastweight, op)
    for wrong in ((), arrays[:-1], [*arrays, 1.0]):
        with pytest.raises(TypeError):
            function(*wrong)
    with pytest.raises(TypeError, match="skale"):
        function(*arrays, skale=1.0)


@pytest.mark.parametrize("op", fw.OPS)
def test_a_tensor_that_requires_grad_is_refused(op):
    torch = pytest.importorskip("torch")
    for argument, a in good(op).items():
        refused(op, TypeError, argument, r"require.*grad", **{argument: torch.tensor(a, requires_grad=True)})


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("d_out", [shape(5), shape(4, 2), shape(1, 5, 2), 1.0, shape(2, 5), shape(5, 3), shape(1)])
def test_the_cotangent_has_the_shape_of_the_result(op, d_out):
    _, pullback = rc.vjp(getattr(rc.fastweight, op), **good(op))
    with pytest.raises(ValueError, match=rf"fastweight\.{op}.*\bd_out\b.*{re.escape(str(np.shape(d_out)))}"):
        pullback(d_out)


@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize(
    "d_out",
    [shape(5, 2) * 1j, np.full((5, 2), "x"), np.ones((5, 2), bool), None],
    ids=["complex", "str", "bool", "None"],
)
def test_the_cotangent_is_of_numbers(op, d_out):
    _, pullback = rc.vjp(getattr(rc.fastweight, op), **good(op))
    with pytest.raises(TypeError, match="d_out"):
        pullback(d_out)


@pytest.mark.parametrize("op", fw.OPS)
def test_with_a_returned_state_there_are_two_cotangents(op):
    (out, state), pullback = rc.vjp(getattr(rc.fastweight, op), **good(op), return_state=True)
    pullback((out, state))
    for wrong in (out, (out,), (out, None, state), (out, shape(2, 2)), (out, "x")):
        with pytest.raises((TypeError, ValueError), match=rf"fastweight\.{op}.*\bd_(out|state)\b"):
            pullback(wrong)
