"""Every wrong call of attention.attend: the right exception and one sentence that names the op, the argument, what came.

The patterns below fix those three; the rest of the wording is free.
"""

import re

import numpy as np
import pytest
import recollect as rc

ARRAYS = ["query", "key", "value"]


def shape(*sizes):
    return np.ones(sizes)


def good():
    rng = np.random.default_rng(0)
    return {
        "query": rng.standard_normal((3, 8)),
        "key": rng.standard_normal((5, 8)),
        "value": rng.standard_normal((5, 2)),
    }


def call(**changes):
    o = good() | changes
    return rc.attention.attend(o.pop("query"), o.pop("key"), o.pop("value"), **o)


def sentence(error):
    text = str(error.value)
    assert "\n" not in text.strip() and 20 < len(text) < 400, text
    return text


def refused(kind, argument, came, **changes):
    """Of the function itself, and of vjp where nothing else stands in the way."""
    calls = [lambda: call(**changes)]
    if "out" not in changes:
        calls.append(lambda: rc.vjp(rc.attention.attend, **(good() | changes)))
    for wrong in calls:
        with pytest.raises(kind) as error:
            wrong()
        text = sentence(error)
        assert re.search(r"attention\.attend\b", text), text
        assert re.search(rf"\b{argument}\b", text), text
        assert re.search(came, text), text


def test_the_good_call_is_good():
    call()
    call(
        scale=1,
        causal="top-left",
        mask=np.ones(5, bool),
        bias=np.zeros((3, 5)),
        sink=0,
        return_lse=True,
        out=shape(3, 2),
    )


# --------------------------------------------------------------------------------------------------- shapes

HEADS = {"query": shape(2, 3, 8), "key": shape(2, 5, 8), "value": shape(2, 5, 2)}
SHAPES = [  # argument that is named, the shape that came, changes
    ("query", r"\(8,\)", {"query": shape(8)}),
    ("query", r"\(\)", {"query": 1.0}),
    ("key", r"\(8,\)", {"key": shape(8)}),
    ("key", r"\(\)", {"key": 2.0}),
    ("key", r"\(5, 7\).*d=8", {"key": shape(5, 7)}),
    ("key", r"\(8, 5\).*d=8", {"key": shape(8, 5)}),
    ("key", r"\(5, 0\).*d=8", {"key": shape(5, 0)}),
    ("key", r"\(4, 5, 7\).*d=8", {"key": shape(4, 5, 7)}),
    ("value", r"\(4, 2\).*m=5", {"value": shape(4, 2)}),
    ("value", r"\(6, 2\).*m=5", {"value": shape(6, 2)}),
    ("value", r"\(1, 2\).*m=5", {"value": shape(1, 2)}),
    ("value", r"\(5,\)", {"value": shape(5)}),
    ("value", r"\(\)", {"value": 1.0}),
    ("value", r"\(2, 4, 2\).*m=5", HEADS | {"value": shape(2, 4, 2)}),
    # leading axes, heads
    ("key", r"\(3, 5, 8\)", HEADS | {"key": shape(3, 5, 8)}),
    ("key", r"\(3, 5, 8\)", {"query": shape(4, 3, 8), "key": shape(3, 5, 8)}),
    ("key", r"\(2, 5, 8\)", HEADS | {"query": shape(3, 3, 8)}),
    ("key", r"\(0, 5, 8\)", HEADS | {"key": shape(0, 5, 8)}),
    ("key", r"\(2, 4, 5, 8\)", {"query": shape(2, 6, 3, 8), "key": shape(2, 4, 5, 8), "value": shape(2, 4, 5, 2)}),
    ("key", r"\(3, 2, 5, 8\)", {"query": shape(6, 2, 3, 8), "key": shape(3, 2, 5, 8)}),
    ("value", r"\(3, 5, 2\)", HEADS | {"value": shape(3, 5, 2)}),
    ("value", r"\(4, 5, 2\)", {"query": shape(6, 3, 8), "value": shape(4, 5, 2)}),
    # mask, bias
    *((name, came, {name: a.astype(kind)} | more) for name, kind in (("mask", bool), ("bias", float)) for came, a, more in (
        (r"\(4,\)", shape(4), {}),
        (r"\(3,\)", shape(3), {}),
        (r"\(3, 4\)", shape(3, 4), {}),
        (r"\(5, 3\)", shape(5, 3), {}),
        (r"\(2, 5\)", shape(2, 5), {}),
        (r"\(3, 3, 5\)", shape(3, 3, 5), HEADS),
        (r"\(4, 1, 1, 5\)", shape(4, 1, 1, 5), {k: a[None].repeat(3, 0) for k, a in HEADS.items()}),
    )),
    # numbers over the leading axes
    *((name, came, {name: shape(*sizes)} | more) for name in ("scale", "sink") for came, sizes, more in (
        (r"\(3,\)", (3,), HEADS),
        (r"\(2, 3\)", (2, 3), HEADS),
        (r"\(3, 3\)", (3, 3), {k: a[None].repeat(3, 0) for k, a in HEADS.items()}),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "came", "changes"), SHAPES)
def test_shapes(argument, came, changes):
    refused(ValueError, argument, came, **changes)


@pytest.mark.parametrize("sizes", [(3, 8), (2,), (1, 3, 2), (1, 2), (2, 3), ()])
def test_the_shape_of_out(sizes):
    refused(ValueError, "out", re.escape(str(sizes)), out=shape(*sizes))


def test_the_sentence_of_the_design():
    with pytest.raises(ValueError, match=r"^attention\.attend: key has shape \(5, 7\); expected .*d=8"):
        call(key=shape(5, 7))
    with pytest.raises(ValueError, match=r"^attention\.attend: value has shape \(4, 2\); expected .*m=5"):
        call(value=shape(4, 2))


# --------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("causal", ["other", "", "True", "bottom-right", "top_left", "Top-Left"])
def test_unknown_causality(causal):
    refused(ValueError, "causal", re.escape(causal), causal=causal)
    with pytest.raises(ValueError, match="top-left"):  # and tells what there is
        call(causal=causal)


@pytest.mark.parametrize("causal", [b"top-left", 2, 0.5, [True], np.ones((3, 5), bool)])
def test_causality_is_a_flag_or_a_name(causal):
    with pytest.raises((TypeError, ValueError), match=r"attention\.attend.*\bcausal\b"):
        call(causal=causal)


BAD = [
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (float("-inf"), "-inf"),
    (np.float32(np.nan), "nan"),
    (np.array(np.inf), "inf"),
]


@pytest.mark.parametrize(("scale", "came"), BAD, ids=repr)
def test_scale_is_finite(scale, came):
    refused(ValueError, "scale", came, scale=scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_scale_of_an_array_is_finite(bad):
    refused(ValueError, "scale", str(bad), query=shape(3, 3, 8), scale=np.array([1.0, bad, 3.0]))


@pytest.mark.parametrize(
    "sink", [float("nan"), np.float32(np.nan), np.array(np.nan), np.array([1.0, np.nan, 3.0])], ids=repr
)
def test_a_sink_is_a_number(sink):
    refused(ValueError, "sink", "nan", query=shape(3, 3, 8), sink=sink)


# ---------------------------------------------------------------------------------------------- number types

WRONG = {
    "complex": (shape(5, 8) * 1j, "complex128"),
    "complex64": (np.ones((5, 8), np.complex64), "complex64"),
    "bool": (np.ones((5, 8), bool), "bool"),
    "strings": (np.full((5, 8), "x"), "U1|str"),
    "bytes": (np.full((5, 8), b"x"), "S1|bytes|str"),
    "object": (np.full((5, 8), None), "object"),
    "dates": (np.zeros((5, 8), "datetime64[s]"), "datetime64"),
    "durations": (np.zeros((5, 8), "timedelta64[s]"), "timedelta64"),
    "records": (np.zeros((5, 8), [("a", float)]), "a|void"),
    "list of strings": ([["x"] * 8] * 5, "U1|str"),
    "nothing": ([[None] * 8] * 5, "object|None"),
    "dictionary": ({"a": 1}, "object|dict"),
}


@pytest.mark.parametrize("argument", [*ARRAYS, "bias"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_number_types(argument, kind):
    refused(TypeError, argument, WRONG[kind][1], **{argument: WRONG[kind][0]})


@pytest.mark.parametrize("argument", ARRAYS)
def test_none_is_no_array(argument):
    with pytest.raises(TypeError, match=argument):
        call(**{argument: None})


@pytest.mark.parametrize("argument", [*ARRAYS, "bias"])
def test_ragged_lists(argument):
    with pytest.raises((ValueError, TypeError), match=rf"attention\.attend.*\b{argument}\b"):
        call(**{argument: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize("name", ["scale", "sink"])
@pytest.mark.parametrize(
    "number", ["1.0", 1 + 0j, np.array(["x"]), np.array([1j]), {"a": 1}, np.array([None])], ids=repr
)
def test_scale_and_sink_are_numbers(name, number):
    refused(TypeError, name, "", **{name: number})


@pytest.mark.parametrize(
    ("mask", "came"),
    [(np.ones((3, 5)), "float64"), (np.ones((3, 5), np.int8), "int8"), (np.full((3, 5), "x"), "U1|str"), ([1.0, 0.0, 1.0, 1.0, 0.0], "float64")],
)  # fmt: skip
def test_mask_is_boolean(mask, came):
    refused(TypeError, "mask", came, mask=mask)


@pytest.mark.parametrize("out", [np.ones((3, 2), np.float32), np.ones((3, 2), int), np.ones((3, 2), complex)])
def test_out_has_the_number_type_of_the_result(out):
    refused(TypeError, "out", out.dtype.name, out=out)


@pytest.mark.parametrize("out", [[[0.0] * 2] * 3, "x", 1.0])
def test_out_is_an_array(out):
    refused(TypeError, "out", "", out=out)


def test_out_is_writable():
    out = np.zeros((3, 2))
    out.flags.writeable = False
    refused(ValueError, "out", "read-only|writ", out=out)
    assert (out == 0).all()


@pytest.mark.parametrize(
    "changes",
    [{"scale": np.nan}, {"key": shape(5, 7)}, {"mask": np.ones(4, bool)}, {"causal": "other"}, {"bias": shape(4)}],
)
def test_a_refused_call_leaves_out_alone(changes):
    out = np.full((3, 2), 7.0)
    with pytest.raises(ValueError):
        call(out=out, **changes)
    assert (out == 7).all()


# ------------------------------------------------------------------------------------------------------ calls


def test_options_have_names():
    q, k, v = good().values()
    for wrong in ((), (q,), (q, k), (q, k, v, 1.0)):
        with pytest.raises(TypeError):
            rc.attention.attend(*wrong)
    with pytest.raises(TypeError, match="skale"):
        rc.attention.attend(q, k, v, skale=1.0)


def test_a_tensor_that_requires_grad_is_refused():
    torch = pytest.importorskip("torch")
    sizes = {"query": (3, 8), "key": (5, 8), "value": (5, 2), "bias": (3, 5), "scale": (), "sink": ()}
    for argument, own in sizes.items():
        leaf = torch.ones(own, requires_grad=True)
        refused(TypeError, argument, r"require.*grad", **{argument: leaf})
        refused(TypeError, argument, r"require.*grad", **{argument: 2 * leaf})


def test_a_tensor_without_grad_is_an_array():
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(a) for k, a in good().items()}
    np.testing.assert_array_equal(np.asarray(call(**tensors)), call())


# -------------------------------------------------------------------------------------------------- gradients


def test_return_lse_has_no_gradient():
    with pytest.raises(ValueError, match=r"attention\.attend.*return_lse"):
        rc.vjp(rc.attention.attend, *good().values(), return_lse=True)


@pytest.mark.parametrize("d_out", [shape(3), shape(2, 2), shape(1, 3, 2), 1.0, shape(2, 3), shape(3, 8), shape(1)])
def test_the_cotangent_has_the_shape_of_the_result(d_out):
    _, pullback = rc.vjp(rc.attention.attend, *good().values())
    with pytest.raises(ValueError, match=rf"attention\.attend.*\bd_out\b.*{re.escape(str(np.shape(d_out)))}"):
        pullback(d_out)


@pytest.mark.parametrize("d_out", [shape(3, 2) * 1j, np.full((3, 2), "x"), np.ones((3, 2), bool), None])
def test_the_cotangent_is_of_numbers(d_out):
    _, pullback = rc.vjp(rc.attention.attend, *good().values())
    with pytest.raises(TypeError, match="d_out"):
        pullback(d_out)
