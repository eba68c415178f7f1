"""Every wrong separation: one sentence that names the op and the argument, says what came and what was expected."""

import re

import numpy as np
import pytest
import recollect as rc

NAMES = ("softmax", "sparsemax", "entmax15", "entmax", "normmax", "k_subset", "hard", "top_k_softmax", "linear")


def shape(*sizes):
    return np.ones(sizes)


def good(op):
    rng = np.random.default_rng(0)
    if op == "attend":
        return {
            "query": rng.standard_normal((3, 8)),
            "key": rng.standard_normal((5, 8)),
            "value": rng.standard_normal((5, 2)),
        }
    return {"state": rng.standard_normal((3, 8)), "patterns": rng.standard_normal((5, 8)), "beta": 1.0}


FUNCTIONS = {"attend": "attention.attend", "retrieve": "hopfield.retrieve", "energy": "hopfield.energy"}
every_op = pytest.mark.parametrize("op", FUNCTIONS)


def function(op):
    return getattr(rc.attention if op == "attend" else rc.hopfield, op)


def sentence(error):
    text = str(error.value)
    assert "\n" not in text.strip() and 20 < len(text) < 400, text
    return text


def refused(op, kind, separation, came=None, **changes):
    """Of the function itself and of vjp."""
    o = good(op) | changes | {"separation": separation}
    calls = [lambda: function(op)(**o)]
    if "out" not in changes and "return_lse" not in changes:
        calls.append(lambda: rc.vjp(function(op), **o))
    for wrong in calls:
        with pytest.raises(kind) as error:
            wrong()
        text = sentence(error)
        assert re.match(rf"{re.escape(FUNCTIONS[op])}: separation is .*; expected ", text), text
        assert (plain(repr(separation)) in plain(text)) if came is None else re.search(came, text), text


def plain(text):
    """2.0 and 2 are one number, however it is written."""
    return re.sub(r"(\d)\.0(?!\d)", r"\1", text)


@every_op
def test_the_good_calls_are_good(op):
    for separation in (
        "softmax", "sparsemax", "entmax15", ("entmax", 1.5), ("entmax", 2), ("normmax", 3.0), ("k_subset", 5), ("k_subset", np.int64(1)),
        "hard", ("top_k_softmax", 5), "linear",
    ):  # fmt: skip
        function(op)(**good(op), separation=separation)
        rc.vjp(function(op), **good(op), separation=separation)


@every_op
@pytest.mark.parametrize("name", ["", "no-such", "Softmax", "SPARSEMAX", "entmax-15", " softmax", "top_k", "max"])
def test_unknown_names(op, name):
    refused(op, ValueError, name)
    refused(op, ValueError, (name, 2))
    with pytest.raises(ValueError, match="softmax.*sparsemax"):  # and tells what there is
        function(op)(**good(op), separation=name)


@every_op
@pytest.mark.parametrize("name", ["entmax", "normmax", "k_subset", "top_k_softmax"])
def test_missing_parameters(op, name):
    for separation in (name, (name,)):
        refused(op, (ValueError, TypeError), separation, name)
    refused(op, (ValueError, TypeError), (name, None), "None")
    refused(op, (ValueError, TypeError), (name, 2, 3), name)


@every_op
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15", "hard", "linear"])
def test_needless_parameters(op, name):
    for parameter in (1, 2.0, 0):
        refused(op, (ValueError, TypeError), (name, parameter))


@every_op
@pytest.mark.parametrize("name", ["entmax", "normmax"])
@pytest.mark.parametrize("alpha", [1, 1.0, 0.5, 0, -2.0, np.nan, np.inf, -np.inf])
def test_alpha_is_a_finite_number_above_one(op, name, alpha):
    refused(op, ValueError, (name, alpha))


@every_op
@pytest.mark.parametrize("name", ["entmax", "normmax"])
@pytest.mark.parametrize("alpha", ["1.5", 1.5 + 0j, [1.5], {"alpha": 2}, np.array([1.5, 2.0])], ids=repr)
def test_alpha_is_a_number(op, name, alpha):
    refused(op, (TypeError, ValueError), (name, alpha), name)


@every_op
@pytest.mark.parametrize("name", ["k_subset", "top_k_softmax"])
@pytest.mark.parametrize("k", [0, -1, 6, 2**40, np.int64(6)])
def test_k_is_from_one_to_the_number_of_patterns(op, name, k):
    refused(op, ValueError, (name, k), str(int(k)))
    with pytest.raises(ValueError, match="m=5" if op == "attend" else "N=5"):
        function(op)(**good(op), separation=(name, k))


@every_op
@pytest.mark.parametrize("name", ["k_subset", "top_k_softmax"])
@pytest.mark.parametrize("k", [1.5, 2.0, "2", [2], np.float64(3), 2 + 0j], ids=repr)
def test_k_is_a_whole_number(op, name, k):
    refused(op, (TypeError, ValueError), (name, k), name)


@every_op
@pytest.mark.parametrize("separation", [None, 3, 1.5, b"softmax", (), (1, "softmax"), (None, 2), ("entmax", 1.5, "x"), {"entmax": 1.5}, np.arange(2)], ids=repr)  # fmt: skip
def test_a_separation_is_a_name_or_a_name_with_its_parameter(op, separation):
    refused(op, (TypeError, ValueError), separation, "separation")


@pytest.mark.parametrize("separation", ["sparsemax", ("entmax", 1.5), ("normmax", 2), ("k_subset", 2), "hard", ("top_k_softmax", 2), "linear"], ids=repr)  # fmt: skip
@pytest.mark.parametrize("changes", [{"sink": 0.0}, {"sink": np.zeros(())}, {"top_k": 2}], ids=repr)
def test_sinks_and_top_k_go_with_softmax(separation, changes):
    if "sink" in changes and separation[0] == "top_k_softmax":
        rc.attention.attend(**good("attend"), separation=separation, **changes)
    else:
        refused("attend", ValueError, separation, next(iter(changes)), **changes)


def test_a_refused_call_leaves_out_alone():
    for op, width in (("attend", 2), ("retrieve", 8)):
        for separation in ("no-such", ("entmax", 1.0), ("k_subset", 6), "entmax"):
            out = np.full((3, width), 7.0)
            with pytest.raises((TypeError, ValueError)):
                function(op)(**good(op), separation=separation, out=out)
            assert (out == 7).all()


@pytest.mark.parametrize("separation", ["no-such", "", ("entmax", 1.0), ("normmax", np.nan), "entmax", ("sparsemax", 2), ("k_subset", 0), ("k_subset", 1.5), None, 3], ids=repr)  # fmt: skip
def test_margins_of_what_is_no_separation(separation):
    with pytest.raises((TypeError, ValueError)) as error:
        rc.hopfield.margin(separation)
    assert re.match(r"hopfield\.margin: separation is .*; expected ", sentence(error))


def test_shapes_are_checked_for_every_separation():
    for separation in ("sparsemax", ("entmax", 1.5), ("k_subset", 2), "hard", ("top_k_softmax", 2), "linear"):
        with pytest.raises(ValueError, match=r"^attention\.attend: key has shape \(5, 7\); expected .*d=8"):
            rc.attention.attend(**good("attend") | {"key": shape(5, 7)}, separation=separation)
        with pytest.raises(ValueError, match=r"^hopfield\.retrieve: patterns has shape \(5, 7\); expected .*d=8"):
            rc.hopfield.retrieve(**good("retrieve") | {"patterns": shape(5, 7)}, separation=separation)
        with pytest.raises(ValueError, match=r"^hopfield\.energy: beta is -1"):
            rc.hopfield.energy(**good("energy") | {"beta": -1.0}, separation=separation)


def test_no_more_names_than_are_listed():
    assert {name for name, _ in rc.separations()} == set(NAMES)
