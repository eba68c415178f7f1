"""What holds for every layer: both number types agree, any array-like will do, nothing that was given is written to, copies work."""

import copy
import pickle

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import refused, stir

L = rc.layers
MAKERS = {
    "LayerNorm": (lambda **o: L.LayerNorm(8, **o), [(3, 5, 8)]),
    "LayerNorm without parameters": (lambda **o: L.LayerNorm(8, affine=False, **o), [(3, 5, 8)]),
    "MultiHeadAttention": (lambda **o: L.MultiHeadAttention(8, 2, **o), [(3, 5, 8), (3, 7, 8), (3, 7, 8)]),
    "Hopfield": (
        lambda **o: L.Hopfield(8, num_heads=2, update_steps_max=2, scaling=[0.5, 1.0], **o),
        [(3, 7, 8), (3, 5, 8), (3, 7, 8)],
    ),
    "HopfieldPooling": (lambda **o: L.HopfieldPooling(8, quantity=2, num_heads=2, **o), [(3, 7, 8), (3, 7, 8)]),
    "HopfieldLayer": (lambda **o: L.HopfieldLayer(8, quantity=6, lookup_weights_as_separated=True, **o), [(3, 7, 8)]),
    "GaussianHead": (lambda **o: L.GaussianHead(7, 2, **o), [(3, 2, 7, 4)]),
    "TransformerEncoderBlock": (lambda **o: L.TransformerEncoderBlock(8, 2, 12, **o), [(3, 5, 8)]),
}
every_layer = pytest.mark.parametrize("kind", MAKERS)


def pair(kind, rng):
    """A layer in float64, and inputs that float32 holds as well."""
    make, shapes = MAKERS[kind]
    layer = stir(make(dtype=np.float64), rng)
    for array in layer.parameters.values():
        array[...] = array.astype(np.float32)
    return layer, [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def flat(result):
    *arrays, gradients = result
    return [*arrays, *gradients.values()]


@every_layer
def test_float32_is_close_to_float64(rng, kind):
    layer, inputs = pair(kind, rng)
    single = MAKERS[kind][0]()
    assert single.dtype == np.float32
    for name, array in single.parameters.items():
        array[...] = layer.parameters[name]
    out, tape = layer.forward(*inputs)
    short, short_tape = single.forward(*inputs)
    assert short.dtype == np.float32
    np.testing.assert_allclose(short, out, rtol=1e-4, atol=2e-5)
    d_out = rng.standard_normal(out.shape).astype(np.float32)
    for got, expected in zip(flat(single.backward(short_tape, d_out)), flat(layer.backward(tape, d_out)), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * (1 + np.abs(expected).max()))


@every_layer
def test_any_layout_and_type(rng, kind):
    layer, inputs = pair(kind, rng)
    out = layer(*inputs)
    np.testing.assert_array_equal(layer(*(x.tolist() for x in inputs)), out)
    np.testing.assert_allclose(layer(*(np.asfortranarray(x) for x in inputs)), out, rtol=1e-12, atol=1e-12)
    swapped = [np.ascontiguousarray(x.swapaxes(0, -2)).swapaxes(0, -2).astype(">f4") for x in inputs]
    np.testing.assert_allclose(layer(*swapped), out, rtol=1e-12, atol=1e-12)
    whole = [np.round(4 * x).astype(np.int16) for x in inputs]
    np.testing.assert_array_equal(layer(*whole), layer(*(x.astype(np.float64) for x in whole)))


@every_layer
def test_nothing_given_is_written_to_and_the_output_is_the_callers(rng, kind):
    layer, inputs = pair(kind, rng)
    wide = [x.astype(np.float64) for x in inputs]
    before = copy.deepcopy((wide, layer.parameters))
    out, tape = layer.forward(*wide)
    d_out = rng.standard_normal(out.shape)
    kept = d_out.copy()
    first = flat(layer.backward(tape, d_out))
    saved = [g.copy() for g in first]
    out[...] = np.nan
    for g in first:
        g[...] = np.nan
    for again, g in zip(flat(layer.backward(tape, d_out)), saved, strict=True):
        np.testing.assert_array_equal(again, g)
    np.testing.assert_array_equal(d_out, kept)
    for old, new in zip(before[0], wide, strict=True):
        np.testing.assert_array_equal(old, new)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[1][name])


@every_layer
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_are_independent(rng, kind, duplicate):
    layer, inputs = pair(kind, rng)
    other = duplicate(layer)
    out = layer(*inputs)
    np.testing.assert_array_equal(other(*inputs), out)
    for array in other.parameters.values():
        array += 1
    np.testing.assert_array_equal(layer(*inputs), out)
    assert not layer.parameters or not np.array_equal(other(*inputs), out)


@every_layer
def test_empty_batches(rng, kind):
    layer, inputs = pair(kind, rng)
    out, tape = layer.forward(*(x[:0] for x in inputs))
    assert out.shape[0] == 0
    *_, gradients = layer.backward(tape, out)
    assert list(gradients) == list(layer.parameters) and all((g == 0).all() for g in gradients.values())


@every_layer
def test_a_tensor_that_requires_grad_is_refused(rng, kind):
    torch = pytest.importorskip("torch")
    layer, inputs = pair(kind, rng)
    tensors = [torch.tensor(x) for x in inputs]
    np.testing.assert_array_equal(layer(*tensors), layer(*inputs))
    tensors[0].requires_grad_()
    refused(lambda: layer(*tensors), TypeError, layer.name, "requires grad")
