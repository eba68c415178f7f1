"""Layers with any separation, and retrieval that leaves stored patterns unprojected."""

import numpy as np
import pytest
import recollect as rc
from recollect.layers import Hopfield, HopfieldLayer, HopfieldPooling, MultiHeadAttention

from tests.layer_checks import check_gradients, refused, stir

SEPARATIONS = [
    "softmax",
    "sparsemax",
    "entmax15",
    ("entmax", 1.3),
    ("normmax", 2.0),
    ("k_subset", 2),
    ("top_k_softmax", 2),
]


@pytest.mark.parametrize("separation", [*SEPARATIONS, "hard", "linear"], ids=str)
def test_the_heads_read_with_it(rng, separation):
    layer = stir(Hopfield(8, num_heads=2, scaling=[0.7, 2.0], separation=separation, dtype=np.float64), rng)
    stored, state = rng.standard_normal((3, 9, 8)), rng.standard_normal((3, 4, 8))
    p = layer.parameters

    def heads(x, name, norm):
        x = rc.layers.LayerNorm(8, dtype=np.float64).forward(x)[0] * p[f"norm_{norm}.weight"] + p[f"norm_{norm}.bias"]
        rows = x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        return rows.reshape(3, -1, 2, 4).swapaxes(1, 2)

    q, k, v = (
        heads(x, n, n)
        for x, n in ((state, "state_pattern"), (stored, "stored_pattern"), (stored, "pattern_projection"))
    )
    z = rc.attention.attend(q, k, v, scale=np.array([0.7, 2.0]), separation=separation)
    expected = z.swapaxes(1, 2).reshape(3, 4, 8) @ p["output.weight"].T + p["output.bias"]
    np.testing.assert_allclose(layer(stored, state), expected, atol=1e-12)


@pytest.mark.parametrize("separation", ["sparsemax", "entmax15", ("k_subset", 2), "linear"], ids=str)
def test_gradients(rng, separation):
    bags = rng.standard_normal((3, 9, 8))
    padding = np.arange(9) >= np.array([9, 5, 2])[:, None]
    for steps in (0, 1):
        pooling = HopfieldPooling(
            8, quantity=2, num_heads=2, separation=separation, update_steps_max=steps, dtype=np.float64
        )
        check_gradients(stir(pooling, rng), [bags], rng, stored_pattern_padding_mask=padding)
    lookup = HopfieldLayer(8, quantity=6, num_heads=2, separation=separation, dtype=np.float64)
    check_gradients(stir(lookup, rng), [bags], rng)
    attention = MultiHeadAttention(8, 2, separation=separation, dtype=np.float64)
    check_gradients(stir(attention, rng), [bags], rng, causal=separation != ("k_subset", 2))


@pytest.mark.parametrize("separation", ["softmax", "entmax15", "hard"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_projections_change_nothing(rng, monkeypatch, dtype, separation, normalise, bias):
    """Values and every gradient, with rows that may see nothing."""
    options = {"normalize_stored_pattern": normalise, "normalize_pattern_projection": normalise, "input_bias": bias}
    layer = stir(HopfieldPooling(8, quantity=2, num_heads=2, separation=separation, dtype=dtype, **options), rng)
    bags, read = (rng.standard_normal((4, 2, 30, 8)).astype(dtype) for _ in range(2))
    padding = np.arange(30) >= np.array([30, 11, 1, 0])[:, None, None]
    d_out, found = None, []
    for folds in (True, False):
        if not folds:
            monkeypatch.setattr(Hopfield, "_folds", lambda *_: False)
        assert layer.hopfield._folds(bags, layer.parameters["pooling_weights"], read) == folds
        out, tape = layer.forward(bags, read, stored_pattern_padding_mask=padding)
        d_out = rng.standard_normal(out.shape).astype(dtype) if d_out is None else d_out
        found.append((out, *layer.backward(tape, d_out)))
    tol = 1e-12 if dtype == np.float64 else 2e-5
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tol * max(1, np.abs(b).max()))
    assert list(found[0][3]) == list(found[1][3])
    for name, gradient in found[1][3].items():
        np.testing.assert_allclose(
            found[0][3][name], gradient, atol=5 * tol * max(1, np.abs(gradient).max()), err_msg=name
        )


def test_what_does_not_fold(rng):
    bag, few, many = np.zeros((50, 8)), np.zeros((1, 8)), np.zeros((2, 40, 8))
    for options, state, folds in [
        ({}, few, True),
        ({}, many, False),  # each of many rows would be compared in full width
        ({"separation": ("k_subset", 2)}, few, False),
        ({"separation": "linear"}, few, False),
        ({"update_steps_max": 1}, few, False),
        ({"add_zero_association": True}, few, False),
        ({"concat_bias_pattern": True}, few, False),
        ({"normalize_hopfield_space": True}, few, False),
        ({"pattern_projection_as_connected": True}, few, False),
        ({"stored_pattern_as_static": True, "hidden_size": 8}, few, False),
    ]:
        assert Hopfield(8, num_heads=2, **options)._folds(bag, state, bag) is folds, options


def test_wrong_calls():
    for make in (lambda **o: Hopfield(8, **o), lambda **o: MultiHeadAttention(8, 2, **o)):
        refused(lambda m=make: m(separation="max"), ValueError, "layers.", "separation is 'max'")
        refused(lambda m=make: m(separation="entmax"), ValueError, "layers.", "separation is 'entmax'")
        refused(lambda m=make: m(separation=3), TypeError, "layers.", "separation is 3")
