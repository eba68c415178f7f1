"""HopfieldPooling and HopfieldLayer: the same as Hopfield with learned roles; and a needle among 300 000 instances."""

import tracemalloc
from math import log

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import check_gradients, refused, stir
from tests.reference import layers as ref

Pooling, Lookup = rc.layers.HopfieldPooling, rc.layers.HopfieldLayer
STATIC = {"stored_pattern_as_static": True, "state_pattern_as_static": True, "pattern_projection_as_static": True}
PLAIN = dict.fromkeys(
    ("normalize_stored_pattern", "normalize_state_pattern", "normalize_pattern_projection"), False
) | {"disable_out_projection": True}


def expected(layer, heads, stored, state, projection, **more):
    p = {name: array.astype(np.float64) for name, array in layer.parameters.items()}
    keep = np.ones((len(stored), heads, state.shape[1], stored.shape[1]), bool)
    return ref.hopfield(p, heads, stored, state, projection, keep, beta=np.full(heads, (8 // heads) ** -0.5), **more)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update_steps_max": 2},
        {"add_zero_association": True, "concat_bias_pattern": True},
        {"pattern_projection_as_connected": True},
    ],
)
def test_pooling(rng, options):
    layer = stir(Pooling(8, quantity=3, num_heads=2, dtype=np.float64, **options), rng)
    bags, read = rng.standard_normal((4, 20, 8)), rng.standard_normal((4, 20, 8))
    state = np.broadcast_to(layer.parameters["pooling_weights"], (4, 3, 8))
    more = {
        "steps": options.get("update_steps_max", 0),
        "zero_row": "add_zero_association" in options,
        "connected": "pattern_projection_as_connected" in options,
    }
    for given in ([bags], [bags, read]):
        out = layer(*given)
        assert out.shape == (4, 3 * 8)
        np.testing.assert_allclose(out, expected(layer, 2, bags, state, given[-1], **more).reshape(4, 24), atol=1e-10)
        padding = np.arange(20) >= np.array([20, 11, 1, 0])[:, None]
        check_gradients(layer, given, rng)
        check_gradients(layer, given, rng, stored_pattern_padding_mask=padding)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("options", [{}, {"update_steps_max": 2}, {"add_zero_association": True}])
def test_lookup(rng, options, separate):
    layer = stir(
        Lookup(8, quantity=6, num_heads=2, lookup_weights_as_separated=separate, dtype=np.float64, **options), rng
    )
    data = rng.standard_normal((4, 5, 8))
    stored = np.broadcast_to(layer.parameters["lookup_weights"], (4, 6, 8))
    targets = np.broadcast_to(layer.parameters["target_weights"], (4, 6, 8)) if separate else stored
    more = {"steps": options.get("update_steps_max", 0), "zero_row": "add_zero_association" in options}
    np.testing.assert_allclose(layer(data), expected(layer, 2, stored, data, targets, **more), atol=1e-10)
    check_gradients(layer, [data], rng)
    check_gradients(layer, [data], rng, mask=rng.random((5, 6)) < 0.7, stored_pattern_padding_mask=np.arange(6) == 2)


def test_bags_do_not_see_each_other(rng):
    layer = stir(Pooling(8, quantity=2, num_heads=4, state_pattern_as_static=True, dtype=np.float64), rng)
    bags = rng.standard_normal((3, 20, 8))
    whole = layer(bags)
    for bag, row in zip(bags, whole, strict=True):
        np.testing.assert_allclose(layer(bag), row, atol=1e-12)
        np.testing.assert_allclose(layer(bag[rng.permutation(20)]), row, atol=1e-12)
    padded = np.concatenate([bags, np.full((3, 4, 8), 100.0)], axis=1)
    np.testing.assert_allclose(layer(padded, stored_pattern_padding_mask=np.arange(24) >= 20), whole, atol=1e-12)


def test_static_roles_and_other_widths(rng):
    layer = stir(
        Pooling(
            8,
            quantity=3,
            hidden_size=4,
            stored_pattern_size=6,
            pattern_projection_size=7,
            state_pattern_as_static=True,
            dtype=np.float64,
        ),
        rng,
    )
    assert layer.parameters["pooling_weights"].shape == (3, 4)
    check_gradients(layer, [rng.standard_normal((2, 9, 6)), rng.standard_normal((2, 9, 7))], rng)
    layer = stir(
        Lookup(
            8,
            quantity=3,
            hidden_size=4,
            stored_pattern_as_static=True,
            pattern_projection_as_static=True,
            dtype=np.float64,
        ),
        rng,
    )
    assert layer.parameters["lookup_weights"].shape == (3, 4)
    check_gradients(layer, [rng.standard_normal((2, 9, 8))], rng)


def test_what_is_not_trainable_has_no_gradient(rng):
    check_gradients(
        Pooling(8, trainable=False, dtype=np.float64), [rng.standard_normal((2, 9, 8))], rng, frozen=["pooling_weights"]
    )
    data = [rng.standard_normal((2, 9, 8))]
    for options, frozen in (
        ({"trainable": False}, "lookup_weights"),
        ({"lookup_targets_as_trainable": False}, "target_weights"),
    ):
        check_gradients(
            Lookup(8, quantity=3, lookup_weights_as_separated=True, dtype=np.float64, **options),
            data,
            rng,
            frozen=[frozen],
        )


# ------------------------------------------------------------------------------------------------------ needles

N = 300_000


def haystack(rng, width):
    """A bag whose needle has score 1 with the state pattern e_0, and all others score 0; what is read marks the needle."""
    bag = rng.standard_normal((N, width), np.float32)
    bag[:, 0] = 0
    where = int(rng.integers(N))
    bag[where, 0] = 1
    marker = np.zeros((N, 1), np.float32)
    marker[where] = 1
    return bag, marker, where


@pytest.mark.parametrize("miss", [0.5, 0.1, 0.01])
def test_a_needle_at_the_beta_that_theory_asks_for(rng, miss):
    """Its weight is 1 - e exactly where beta = log(N - 1) + log((1 - e) / e): 12.6 for a half, in a bag of 300 000."""
    bag, marker, where = haystack(rng, 16)
    beta = log(N - 1) + log((1 - miss) / miss)
    layer = Pooling(16, scaling=beta, pattern_size=1, pattern_projection_size=1, **STATIC, **PLAIN)
    layer.parameters["pooling_weights"][...] = np.eye(1, 16)
    tracemalloc.start()
    out, tape = layer.forward(bag, marker)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(float(out[0]) - (1 - miss)) < 2e-5
    assert peak < 200_000, "nothing as long as the bag is made"
    d_bag, _, gradients = layer.backward(tape, np.ones(1))
    # d p / d q_0 = beta p (1 - p), and the needle's own row has the same gradient along q
    assert np.isclose(gradients["pooling_weights"][0, 0], beta * miss * (1 - miss), rtol=1e-3)
    assert np.abs(d_bag).argmax() == 16 * where
    low = Pooling(16, scaling=0.5 * beta, pattern_size=1, pattern_projection_size=1, **STATIC, **PLAIN)
    low.parameters["pooling_weights"][...] = np.eye(1, 16)
    assert float(low(bag, marker)[0]) < 0.04


def test_one_pass_makes_nothing_of_queries_times_instances(rng):
    quantity, heads, width = 64, 4, 8
    layer = Pooling(width, quantity=quantity, num_heads=heads)
    bag = rng.standard_normal((1, N, width), np.float32)
    tracemalloc.start()
    layer(bag)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * bag.nbytes < quantity * heads * N * 4 / 2


def test_wrong_calls(rng):
    layer = Pooling(8, num_heads=2, quantity=2)
    op = "layers.HopfieldPooling"
    bags = rng.standard_normal((3, 9, 8))
    refused(lambda: Pooling(8, quantity=0), ValueError, op, "quantity", "0")
    refused(lambda: Pooling(8, num_heads=3), ValueError, op, "num_heads", "3", "8")
    refused(lambda: Pooling(**STATIC, **PLAIN), ValueError, op, "input_size", "None")
    refused(lambda: Pooling(8, quantites=2), TypeError, "quantites")
    refused(lambda: layer(bags[..., :7]), ValueError, op, "stored", "(3, 9, 7)", "8")
    refused(lambda: layer(bags, bags[:, :8]), ValueError, op, "projection", "(3, 8, 8)", "S=9")
    refused(lambda: layer(bags, mask=np.ones((9, 2), bool)), ValueError, op, "mask", "(9, 2)", "(3, 2, 2, 9)")
    refused(
        lambda: layer(bags, stored_pattern_padding_mask=np.ones((3, 8), bool)),
        ValueError,
        op,
        "stored_pattern_padding_mask",
        "(3, 8)",
    )
    out, tape = layer.forward(bags)
    refused(lambda: layer.backward(tape, out[:, :8]), ValueError, op, "d_out", "(3, 8)", "(3, 16)")
    layer.parameters["pooling_weights"] = np.ones((3, 8), np.float32)
    refused(lambda: layer(bags), ValueError, op, "pooling_weights", "(3, 8)", "(2, 8)")
    op = "layers.HopfieldLayer"
    refused(lambda: Lookup(8, quantity=1.5), TypeError, op, "quantity", "1.5")
    refused(lambda: Lookup(8)(bags[..., :7]), ValueError, op, "state", "(3, 9, 7)", "8")
    refused(lambda: Lookup(8)(bags, mask=np.ones((9, 2), bool)), ValueError, op, "mask", "(9, 2)", "(3, 1, 9, 1)")
