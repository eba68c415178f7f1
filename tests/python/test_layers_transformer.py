"""GaussianHead, sinusoidal positions and TransformerEncoderBlock against the oracle, torch and finite differences."""

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import check_gradients, refused, stir
from tests.reference import layers as ref

Block, Head = rc.layers.TransformerEncoderBlock, rc.layers.GaussianHead


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}


def wide(layer):
    return {name: array.astype(np.float64) for name, array in layer.parameters.items()}


# ------------------------------------------------------------------------------------------------- GaussianHead


@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("padded", [False, True])
def test_gaussian_head_values(rng, dtype, n, padded):
    layer = Head(n, 3, rng=rng, dtype=dtype)
    assert ((layer.parameters["mean"] >= -1) & (layer.parameters["mean"] <= 1)).all()
    spread = np.exp(layer.parameters["log_spread"].astype(np.float64))
    assert ((spread > 0.7499) & (spread < 1.2501)).all()
    value = rng.standard_normal((2, 3, n, 4)).astype(dtype)
    padding = np.arange(n) >= np.array([[n], [n // 2]]) if padded else None
    keep = np.ones((2, n), bool) if padding is None else ~padding
    out = layer(value, padding_mask=padding)
    assert out.dtype == dtype
    expected = ref.gaussian_head(layer.parameters["mean"].astype(np.float64), spread, value.astype(np.float64), keep)
    np.testing.assert_allclose(out, expected, **tolerance(dtype))


def test_gaussian_head_limits(rng, dtype):
    layer, value = Head(9, dtype=dtype), rng.standard_normal((1, 9, 4)).astype(dtype)
    layer.parameters["log_spread"][...] = 20
    np.testing.assert_allclose(
        layer(value), np.broadcast_to(value.mean(-2, keepdims=True), value.shape), **tolerance(dtype)
    )
    layer.parameters["log_spread"][...] = -6
    layer.parameters["mean"][...] = layer.positions[::-1]
    np.testing.assert_allclose(layer(value), value[:, ::-1], **tolerance(dtype))
    np.testing.assert_allclose(layer(np.ones((1, 9, 1), dtype)), 1, **tolerance(dtype))


@pytest.mark.parametrize("n", [1, 5])
def test_gaussian_head_gradients(rng, n):
    layer = Head(n, 2, rng=rng, dtype=np.float64)
    for batch in ((), (3,), (2, 3)):
        check_gradients(layer, [rng.standard_normal((*batch, 2, n, 4))], rng)
    check_gradients(
        layer, [rng.standard_normal((3, 2, n, 4))], rng, padding_mask=np.arange(n) >= np.array([[n], [2], [0]])
    )


# ------------------------------------------------------------------------------------------------------ positions


@pytest.mark.parametrize("length, width", [(1, 1), (10, 8), (300, 7), (0, 4), (4, 0)])
def test_positions(dtype, length, width):
    table = rc.layers.sinusoidal_positions(length, width, dtype=dtype)
    assert table.dtype == dtype and table.shape == (length, width)
    np.testing.assert_allclose(table, ref.positions(length, width), atol=1e-7 if dtype == np.float32 else 1e-12)


# -------------------------------------------------------------------------------------------------- encoder block


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [None, "causal", "mask", "padding"])
def test_encoder_block(rng, dtype, norm, bias, masked):
    layer = stir(Block(8, 2, 12, norm=norm, bias=bias, dtype=dtype), rng)
    x = rng.standard_normal((3, 5, 8)).astype(dtype)
    mask, padding = rng.random((5, 5)) < 0.7, rng.random((3, 5)) < 0.3
    options, keep = {
        None: ({}, True),
        "causal": ({"causal": True}, np.tri(5, dtype=bool)),
        "mask": ({"mask": mask}, mask),
        "padding": ({"key_padding_mask": padding}, ~padding[:, None, None]),
    }[masked]
    expected = ref.encoder(wide(layer), 2, x.astype(np.float64), np.broadcast_to(keep, (3, 2, 5, 5)), pre=norm == "pre")
    out = layer(x, **options)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected, **tolerance(dtype))
    if dtype == np.float64:
        check_gradients(layer, [x], rng, **options)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("masked", [None, "causal", "padding"])
def test_encoder_block_like_torch(rng, norm, masked):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm == "pre", dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.tensor(0.5 * rng.standard_normal(tuple(parameter.shape))))
    layer = Block(8, 2, 12, norm=norm, dtype=np.float64)
    layer.load_state_dict({name: array.numpy() for name, array in theirs.state_dict().items()})
    x = rng.standard_normal((3, 5, 8))
    tensor = torch.tensor(x, requires_grad=True)
    padding = np.arange(5) >= np.array([[5], [4], [2]])
    ours, told = {
        None: ({}, {}),
        "causal": ({"causal": True}, {"src_mask": torch.tensor(~np.tri(5, dtype=bool))}),
        "padding": ({"key_padding_mask": padding}, {"src_key_padding_mask": torch.tensor(padding)}),
    }[masked]
    expected = theirs(tensor, **told)
    out, tape = layer.forward(x, **ours)
    np.testing.assert_allclose(out, expected.detach().numpy(), atol=1e-11)
    d_out = rng.standard_normal(out.shape)
    expected.backward(torch.tensor(d_out))
    d_x, gradients = layer.backward(tape, d_out)
    np.testing.assert_allclose(d_x, tensor.grad.numpy(), atol=1e-10)
    apart = Block(8, 2, 12, norm=norm, dtype=np.float64)
    apart.load_state_dict({name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()})
    for name, g in gradients.items():
        np.testing.assert_allclose(g, apart.parameters[name], atol=1e-10, err_msg=name)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_samples_do_not_see_each_other(rng, norm):
    layer = stir(Block(8, 2, 12, norm=norm, dtype=np.float64), rng)
    x = rng.standard_normal((3, 5, 8))
    for sample, row in zip(x, layer(x), strict=True):
        np.testing.assert_allclose(layer(sample), row, atol=1e-12)


def test_replaced_parameters_reach_the_attention_inside(rng):
    layer, x = Block(8, 2, 12, norm="pre", dtype=np.float64), rng.standard_normal((5, 8))
    other = Block(8, 2, 12, norm="pre", dtype=np.float64, rng=rng)
    layer.parameters |= {name: array.copy() for name, array in other.parameters.items()}
    np.testing.assert_array_equal(layer(x), other(x))
    layer.init(np.random.default_rng(0))
    np.testing.assert_array_equal(layer(x), Block(8, 2, 12, norm="pre", dtype=np.float64)(x))


def test_wrong_calls(rng):
    layer = Block(8, 2, 12)
    x = rng.standard_normal((3, 5, 8))
    op = "layers.TransformerEncoderBlock"
    refused(lambda: Block(8, 3, 12), ValueError, op, "heads", "3", "8")
    refused(lambda: Block(8, 2, 0), ValueError, op, "feed_forward", "0")
    refused(lambda: Block(8, 2, 12, norm="none"), ValueError, op, "norm", "none", "post")
    refused(lambda: Block(8, 2, 12, dtype="int32"), TypeError, op, "dtype", "int32")
    refused(lambda: layer(x[..., :7]), ValueError, op, "x", "(3, 5, 7)", "width=8")
    refused(lambda: layer(x[0, 0]), ValueError, op, "x", "(8,)", "width=8")
    refused(lambda: layer(x, mask=np.ones((5, 4), bool)), ValueError, op, "mask", "(5, 4)", "(3, 2, 5, 5)")
    refused(
        lambda: layer(x, key_padding_mask=np.ones((3, 4), bool)), ValueError, op, "key_padding_mask", "(3, 4)", "(3, 5)"
    )
    refused(lambda: layer(x, causal=3), ValueError, op, "causal", "3")
    refused(
        lambda: layer.load_state_dict({"linear1.weight": np.ones((12, 8))}), ValueError, op, "attention.query.weight"
    )
    out, tape = layer.forward(x)
    refused(lambda: layer.backward(tape, out[0]), ValueError, op, "d_out", "(5, 8)", "(3, 5, 8)")
    op = "layers.GaussianHead"
    head, value = Head(5, 2), rng.standard_normal((3, 2, 5, 4))
    refused(lambda: Head(0), ValueError, op, "length", "0")
    refused(lambda: Head(5, "two"), TypeError, op, "heads", "two")
    refused(lambda: head(value[:, :1]), ValueError, op, "value", "(3, 1, 5, 4)", "H=2")
    refused(lambda: head(value[0, 0]), ValueError, op, "value", "(5, 4)", "N=5")
    refused(lambda: head(value, padding_mask=np.ones((3, 4), bool)), ValueError, op, "padding_mask", "(3, 4)", "(3, 5)")
    refused(lambda: head(value, padding_mask=np.ones(5)), TypeError, op, "padding_mask", "float64", "bool")
    refused(lambda: rc.layers.sinusoidal_positions(-1, 4), ValueError, "sinusoidal_positions", "length", "-1")
