"""Every wrong call: the right exception and one sentence that names the op, the argument, what came.

The patterns below fix those three; the rest of the wording is free.
"""

import re

import numpy as np
import pytest
import recollect as rc

OPS = ["retrieve", "energy"]


def good(op):
    rng = np.random.default_rng(0)
    o = {"state": rng.standard_normal((3, 8)), "patterns": rng.standard_normal((5, 8)), "beta": 1.0}
    return o | ({"values": rng.standard_normal((5, 2))} if op == "retrieve" else {})


def call(op, **changes):
    o = good(op) | changes
    return getattr(rc.hopfield, op)(o.pop("state"), o.pop("patterns"), **o)


def shape(*sizes):
    return np.ones(sizes)


def sentence(error):
    text = str(error.value)
    assert "\n" not in text.strip() and 20 < len(text) < 400, text
    return text


def refused(op, kind, argument, came, **changes):
    with pytest.raises(kind) as error:
        call(op, **changes)
    text = sentence(error)
    assert re.search(rf"hopfield\.{op}\b", text), text
    assert re.search(rf"\b{argument}\b", text), text
    assert re.search(came, text), text


def test_the_good_call_is_good():
    for op in OPS:
        call(op)


# --------------------------------------------------------------------------------------------------- shapes

SHAPES = [  # argument that is named, the shape that came, changes
    ("state", r"\(8,\)", {"state": shape(8)}),
    ("state", r"\(\)", {"state": 1.0}),
    ("patterns", r"\(8,\)", {"patterns": shape(8)}),
    ("patterns", r"\(\)", {"patterns": 2.0}),
    ("patterns", r"\(5, 7\).*(N, )?d=8", {"patterns": shape(5, 7)}),
    ("patterns", r"\(8, 5\).*8", {"patterns": shape(8, 5)}),
    ("patterns", r"\(5, 0\)", {"patterns": shape(5, 0)}),
    ("patterns", r"\(4, 5, 7\).*d=8", {"patterns": shape(4, 5, 7)}),
    ("patterns", r"\(3, 5, 8\)", {"state": shape(2, 3, 8), "patterns": shape(3, 5, 8)}),
    ("patterns", r"\(2, 4, 5, 8\)", {"state": shape(2, 3, 3, 8), "patterns": shape(2, 4, 5, 8)}),
    ("mask", r"\(4,\)", {"mask": np.ones(4, bool)}),
    ("mask", r"\(3, 4\)", {"mask": np.ones((3, 4), bool)}),
    ("mask", r"\(5, 3\)", {"mask": np.ones((5, 3), bool)}),
    ("mask", r"\(2, 5\)", {"mask": np.ones((2, 5), bool)}),
    ("mask", r"\(3, 3, 5\)", {"state": shape(2, 3, 8), "mask": np.ones((3, 3, 5), bool)}),
    ("beta", r"\(3,\)", {"state": shape(2, 3, 8), "beta": np.ones(3)}),
    ("beta", r"\(2, 3\)", {"state": shape(3, 2, 3, 8), "beta": np.ones((2, 3))}),
]
SHAPES_OF_RETRIEVE = [
    ("values", r"\(4, 2\).*N=5", {"values": shape(4, 2)}),
    ("values", r"\(5,\)", {"values": shape(5)}),
    ("values", r"\(\)", {"values": 1.0}),
    ("values", r"\(3, 5, 2\)", {"state": shape(2, 3, 8), "values": shape(3, 5, 2)}),
    ("out", r"\(3, 8\)", {"out": shape(3, 8)}),
    ("out", r"\(2,\)", {"out": shape(2)}),
    ("out", r"\(1, 3, 2\)", {"out": shape(1, 3, 2)}),
    ("out", r"\(1, 2\)", {"out": shape(1, 2)}),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("argument", "came", "changes"), SHAPES)
def test_shapes(op, argument, came, changes):
    refused(op, ValueError, argument, came, **changes)


@pytest.mark.parametrize(("argument", "came", "changes"), SHAPES_OF_RETRIEVE)
def test_shapes_of_retrieve(argument, came, changes):
    refused("retrieve", ValueError, argument, came, **changes)


def test_the_sentence_of_the_design():
    with pytest.raises(
        ValueError, match=re.escape("hopfield.retrieve: patterns has shape (5, 7); expected (..., N, d=8)")
    ):
        call("retrieve", patterns=shape(5, 7))
    with pytest.raises(
        ValueError, match=re.escape("hopfield.retrieve: beta is -1.0; expected a positive finite number")
    ):
        call("retrieve", beta=-1.0)


# --------------------------------------------------------------------------------------------------- values

BETAS = [
    (0, r"\b0"), (0.0, r"\b0"), (-0.0, "0"), (-1.0, r"-1\.0"), (-3, "-3"), (float("nan"), "nan"), (float("inf"), "inf"),
    (float("-inf"), "-inf"), (np.float32(-2.5), r"-2\.5"), (np.array(-2.5), r"-2\.5"), (np.array(np.nan), "nan"),
]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("beta", "came"), BETAS, ids=repr)
def test_beta_is_positive_and_finite(op, beta, came):
    refused(op, ValueError, "beta", came, beta=beta)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [-2.5, 0.0, np.nan, np.inf])
def test_every_beta_of_an_array_is_positive_and_finite(op, bad):
    beta = np.array([1.0, bad, 3.0])
    refused(op, ValueError, "beta", "0" if bad == 0 else str(bad), state=shape(3, 3, 8), beta=beta)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("separation", ["", "no-such", "Softmax"])
def test_unknown_separation(op, separation):
    refused(op, ValueError, "separation", re.escape(separation), separation=separation)
    with pytest.raises(ValueError, match="softmax"):  # and tells what there is
        call(op, separation=separation)


@pytest.mark.parametrize("separation", [None, 3, b"softmax"])
def test_separation_is_a_name(separation):
    with pytest.raises((TypeError, ValueError), match="separation"):
        call("retrieve", separation=separation)


@pytest.mark.parametrize("steps", [0, -1, -(2**40)])
def test_steps_is_positive(steps):
    refused("retrieve", ValueError, "steps", str(steps), steps=steps)


@pytest.mark.parametrize("steps", [1.5, "2", [1], np.ones(2)])
def test_steps_is_a_whole_number(steps):
    with pytest.raises(TypeError, match="steps"):
        call("retrieve", steps=steps)


@pytest.mark.parametrize("tol", [-1e-9, -1, float("nan")])
def test_tol_is_not_negative(tol):
    for steps in (3, None):
        refused("retrieve", ValueError, "tol", re.escape(str(tol)), tol=tol, steps=steps)


@pytest.mark.parametrize("tol", ["0.1", 1j, [0.1, 0.2]])
def test_tol_is_a_number(tol):
    with pytest.raises(TypeError, match="tol"):
        call("retrieve", tol=tol, steps=3)


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


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("argument", ["state", "patterns"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_number_types(op, argument, kind):
    refused(op, TypeError, argument, WRONG[kind][1], **{argument: WRONG[kind][0]})


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_number_types_of_values(kind):
    refused("retrieve", TypeError, "values", WRONG[kind][1], values=WRONG[kind][0])


@pytest.mark.parametrize("argument", ["state", "patterns"])
def test_none_is_no_array(argument):
    with pytest.raises(TypeError, match=argument):
        call("retrieve", **{argument: None})


@pytest.mark.parametrize("argument", ["state", "patterns", "values"])
def test_ragged_lists(argument):
    with pytest.raises((ValueError, TypeError), match=rf"hopfield\.retrieve.*\b{argument}\b"):
        call("retrieve", **{argument: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("beta", ["1.0", 1 + 0j, None, np.array(["x"]), np.array([1j]), {"a": 1}], ids=repr)
def test_beta_is_a_number(op, beta):
    with pytest.raises(TypeError, match=rf"hopfield\.{op}.*\bbeta\b"):
        call(op, beta=beta)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("mask", "came"),
    [(np.ones((3, 5)), "float64"), (np.ones((3, 5), np.int8), "int8"), (np.full((3, 5), "x"), "U1|str"), ([1.0, 0.0, 1.0, 1.0, 0.0], "float64")],
)  # fmt: skip
def test_mask_is_boolean(op, mask, came):
    refused(op, TypeError, "mask", came, mask=mask)


@pytest.mark.parametrize("out", [np.ones((3, 2), np.float32), np.ones((3, 2), int), np.ones((3, 2), complex)])
def test_out_has_the_number_type_of_the_result(out):
    refused("retrieve", TypeError, "out", out.dtype.name, out=out)


@pytest.mark.parametrize("out", [[[0.0] * 2] * 3, "x", 1.0])
def test_out_is_an_array(out):
    with pytest.raises(TypeError, match=r"hopfield\.retrieve.*\bout\b"):
        call("retrieve", out=out)


def test_out_is_writable():
    out = np.zeros((3, 2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"hopfield\.retrieve.*\bout\b.*(read-only|writ)"):
        call("retrieve", out=out)
    assert (out == 0).all()


@pytest.mark.parametrize(
    "changes", [{"beta": -1.0}, {"patterns": shape(5, 7)}, {"mask": np.ones(4, bool)}, {"steps": 0}]
)
def test_a_refused_call_leaves_out_alone(changes):
    out = np.full((3, 2), 7.0)
    with pytest.raises(ValueError):
        call("retrieve", out=out, **changes)
    assert (out == 7).all()


# ------------------------------------------------------------------------------------------------------ calls


@pytest.mark.parametrize("op", OPS)
def test_beta_has_no_default(op):
    function = getattr(rc.hopfield, op)
    with pytest.raises(TypeError, match="beta"):
        function(shape(3, 8), shape(5, 8))
    with pytest.raises(TypeError):
        function(shape(3, 8), shape(5, 8), 1.0)
    with pytest.raises(TypeError):
        function(shape(3, 8), beta=1.0)
    with pytest.raises(TypeError, match="bta"):
        function(shape(3, 8), shape(5, 8), beta=1.0, bta=1.0)


def test_a_tensor_that_requires_grad_is_refused():
    torch = pytest.importorskip("torch")
    for op in OPS:
        for argument, sizes in (("state", (3, 8)), ("patterns", (5, 8))):
            leaf = torch.ones(sizes, requires_grad=True)
            refused(op, TypeError, argument, r"require.*grad", **{argument: leaf})
            refused(op, TypeError, argument, r"require.*grad", **{argument: 2 * leaf})
    refused("retrieve", TypeError, "values", r"require.*grad", values=torch.ones(5, 2, requires_grad=True))
    refused("retrieve", TypeError, "beta", r"require.*grad", beta=torch.tensor(1.0, requires_grad=True))


def test_a_tensor_without_grad_is_an_array():
    torch = pytest.importorskip("torch")
    o = good("retrieve")
    tensors = {k: torch.from_numpy(a) for k, a in o.items() if k != "beta"}
    np.testing.assert_array_equal(np.asarray(call("retrieve", **tensors)), call("retrieve"))


# -------------------------------------------------------------------------------------------------- gradients


def test_vjp_refuses_what_the_function_refuses():
    for op in OPS:
        function = getattr(rc.hopfield, op)
        with pytest.raises(ValueError, match=rf"hopfield\.{op}.*patterns.*\(5, 7\)"):
            rc.vjp(function, shape(3, 8), shape(5, 7), beta=1.0)
        with pytest.raises(ValueError, match=rf"hopfield\.{op}.*beta.*-1"):
            rc.vjp(function, shape(3, 8), shape(5, 8), beta=-1.0)
        with pytest.raises(TypeError, match=rf"hopfield\.{op}.*state.*complex"):
            rc.vjp(function, shape(3, 8) * 1j, shape(5, 8), beta=1.0)
        with pytest.raises(TypeError, match="beta"):
            rc.vjp(function, shape(3, 8), shape(5, 8))


def test_vjp_knows_only_its_functions():
    for function in (np.sin, len, rc.set_num_threads, None, "retrieve"):
        with pytest.raises((TypeError, ValueError), match="vjp"):
            rc.vjp(function, shape(3, 8), shape(5, 8), beta=1.0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("d_out", [shape(3), shape(2, 8), shape(1, 3, 8), 1.0, shape(8, 3), shape(1)])
def test_the_cotangent_has_the_shape_of_the_result(op, d_out):
    out, pullback = rc.vjp(getattr(rc.hopfield, op), shape(3, 8), shape(5, 8), beta=1.0)
    if np.shape(d_out) == out.shape:
        d_out = shape(4)
    with pytest.raises(ValueError, match=rf"hopfield\.{op}.*\bd_out\b.*{re.escape(str(np.shape(d_out)))}"):
        pullback(d_out)


@pytest.mark.parametrize("d_out", [shape(3, 8) * 1j, np.full((3, 8), "x"), np.ones((3, 8), bool), None])
def test_the_cotangent_is_of_numbers(d_out):
    _, pullback = rc.vjp(rc.hopfield.retrieve, shape(3, 8), shape(5, 8), beta=1.0)
    with pytest.raises(TypeError, match="d_out"):
        pullback(d_out)


# ---------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("n", [0, -1])
def test_the_number_of_threads_is_positive(n):
    before = rc.get_num_threads()
    with pytest.raises(ValueError, match=rf"threads.*{n}"):
        rc.set_num_threads(n)
    assert rc.get_num_threads() == before


@pytest.mark.parametrize("n", [1.5, "2", None, [2]])
def test_the_number_of_threads_is_whole(n):
    before = rc.get_num_threads()
    with pytest.raises(TypeError):
        rc.set_num_threads(n)
    assert rc.get_num_threads() == before
