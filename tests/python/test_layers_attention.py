"""LayerNorm and MultiHeadAttention against the oracle, torch, and finite differences."""

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import check_gradients, refused, stir
from tests.reference import layers as ref

MHA = rc.layers.MultiHeadAttention


def tolerance(dtype):
    return {"rtol": 1e-5, "atol": 2e-5} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}


def wide(layer):
    return {name: array.astype(np.float64) for name, array in layer.parameters.items()}


def normal(rng, *shape):
    return rng.standard_normal(shape)


# ------------------------------------------------------------------------------------------------ LayerNorm


@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6), (2, 3, 4, 6), (0, 6)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm_values(rng, dtype, shape, eps):
    layer = stir(rc.layers.LayerNorm(6, eps, dtype=dtype), rng)
    x = normal(rng, *shape).astype(dtype) * 3 + 2
    out = layer(x)
    assert out.dtype == dtype and out.shape == shape
    np.testing.assert_allclose(out, ref.norm(x.astype(np.float64), wide(layer), "", eps), **tolerance(dtype))


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_gradients(rng, affine):
    layer = stir(rc.layers.LayerNorm(5, affine=affine, dtype=np.float64), rng)
    check_gradients(layer, [normal(rng, 2, 3, 5)], rng)
    check_gradients(layer, [normal(rng, 5)], rng)


def test_layer_norm_of_a_constant_row_and_of_width_one(rng):
    layer = rc.layers.LayerNorm(4, dtype=np.float64)
    out, tape = layer.forward(np.full((2, 4), 7.0))
    assert (out == 0).all() and np.isfinite(layer.backward(tape, normal(rng, 2, 4)).x).all()
    assert (rc.layers.LayerNorm(1, dtype=np.float64)(normal(rng, 3, 1)) == 0).all()


def test_layer_norm_like_torch(rng):
    torch = pytest.importorskip("torch")
    layer = stir(rc.layers.LayerNorm(7, dtype=np.float64), rng)
    x = torch.tensor(normal(rng, 4, 7), requires_grad=True)
    weight, bias = (torch.tensor(layer.parameters[name], requires_grad=True) for name in ("weight", "bias"))
    out = torch.nn.functional.layer_norm(x, (7,), weight, bias, 1e-5)
    d_out = normal(rng, 4, 7)
    out.backward(torch.tensor(d_out))
    ours, tape = layer.forward(x.detach().numpy())
    np.testing.assert_allclose(ours, out.detach().numpy(), atol=1e-12)
    d_x, gradients = layer.backward(tape, d_out)
    for got, expected in ((d_x, x), (gradients["weight"], weight), (gradients["bias"], bias)):
        np.testing.assert_allclose(got, expected.grad.numpy(), atol=1e-12)


# -------------------------------------------------------------------------------------- MultiHeadAttention: values

SIZES = [  # options, query, key, value
    ({}, (3, 5, 8), None, None),
    ({}, (3, 5, 8), (3, 7, 8), None),
    ({"key_width": 6, "value_width": 4}, (3, 5, 8), (3, 7, 6), (3, 7, 4)),
    ({"head_width": 3}, (3, 5, 8), (3, 7, 8), (3, 7, 8)),
    ({"bias": False, "head_width": 5, "key_width": 3}, (2, 1, 8), (2, 9, 3), (2, 9, 8)),
]


def expected(layer, query, key, value, keep=None):
    q = query.astype(np.float64)
    k = q if key is None else key.astype(np.float64)
    v = k if value is None else value.astype(np.float64)
    shape = (len(q), layer.heads, q.shape[1], k.shape[1])
    return ref.multi_head(wide(layer), layer.heads, q, k, v, np.broadcast_to(True if keep is None else keep, shape))


def given(rng, dtype, *shapes):
    return [None if s is None else normal(rng, *s).astype(dtype) for s in shapes]


@pytest.mark.parametrize("options, query, key, value", SIZES)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_values(rng, dtype, options, query, key, value, heads):
    layer = stir(MHA(8, heads, dtype=dtype, **options), rng)
    inputs = given(rng, dtype, query, key, value)
    out = layer(*inputs)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected(layer, *inputs), **tolerance(dtype))


def causal_keep(n, m, rule):
    return np.arange(m) <= np.arange(n)[:, None] + (m - n if rule is True else 0)


@pytest.mark.parametrize("rule", [True, "top-left"])
@pytest.mark.parametrize("m", [5, 8, 3])
def test_multi_head_causal(rng, dtype, rule, m):
    layer = stir(MHA(8, 2, dtype=dtype), rng)
    inputs = given(rng, dtype, (3, 5, 8), (3, m, 8), None)
    np.testing.assert_allclose(
        layer(*inputs, causal=rule), expected(layer, *inputs, causal_keep(5, m, rule)), **tolerance(dtype)
    )


@pytest.mark.parametrize(
    "shape", [(5, 7), (7,), (1, 7), (5, 1), (2, 5, 7), (3, 1, 5, 7), (3, 2, 5, 7), (3, 1, 1, 7), (1, 2, 1, 1)], ids=str
)
@pytest.mark.parametrize("padded", [False, True])
def test_multi_head_masks(rng, dtype, shape, padded):
    layer = stir(MHA(8, 2, dtype=dtype), rng)
    inputs = given(rng, dtype, (3, 5, 8), (3, 7, 8), None)
    mask = rng.random(shape) < 0.6
    padding = rng.random((3, 7)) < 0.4 if padded else None
    keep = mask if padding is None else mask & ~padding[:, None, None, :]
    out = layer(*inputs, mask=mask, key_padding_mask=padding)
    np.testing.assert_allclose(out, expected(layer, *inputs, keep), **tolerance(dtype))


def test_a_padding_mask_is_the_shorter_sequence(rng, dtype):
    layer = stir(MHA(8, 2, dtype=dtype), rng)
    x = normal(rng, 2, 6, 8).astype(dtype)
    padding = np.arange(6) >= np.array([[4], [6]])
    out = layer(x, key_padding_mask=padding)
    np.testing.assert_allclose(out[0, :4], layer(x[:1, :4])[0], **tolerance(dtype))
    np.testing.assert_allclose(out[1], layer(x[1:])[0], **tolerance(dtype))
    np.testing.assert_array_equal(layer(x, key_padding_mask=padding[0]), layer(x, mask=~padding[0]))


def test_what_may_attend_to_nothing_is_the_bias_and_passes_no_gradient(rng):
    layer = stir(MHA(8, 2, dtype=np.float64), rng)
    x, memory = normal(rng, 2, 5, 8), normal(rng, 2, 7, 8)
    mask = np.ones((5, 7), bool)
    mask[1] = False
    out, tape = layer.forward(x, memory, mask=mask)
    np.testing.assert_array_equal(out[:, 1], np.broadcast_to(layer.parameters["output.bias"], (2, 8)))
    gradients = layer.backward(tape, np.ones_like(out))
    assert (gradients.query[:, 1] == 0).all() and (gradients.query[:, 0] != 0).any()


@pytest.mark.parametrize("causal", [False, True])
def test_samples_do_not_see_each_other(rng, dtype, causal):
    layer = stir(MHA(8, 4, dtype=dtype), rng)
    x = normal(rng, 4, 6, 8).astype(dtype)
    other = x.copy()
    other[[0, 1, 3]] = 100 * normal(rng, 3, 6, 8)
    np.testing.assert_allclose(layer(x, causal=causal)[2], layer(other, causal=causal)[2], **tolerance(dtype))
    np.testing.assert_allclose(layer(x, causal=causal)[2], layer(x[2], causal=causal), **tolerance(dtype))


def test_leading_axes_are_free(rng):
    layer = stir(MHA(8, 2, dtype=np.float64), rng)
    x, memory = normal(rng, 2, 3, 5, 8), normal(rng, 7, 8)
    out = layer(x, memory)
    flat = layer(x.reshape(6, 5, 8), np.broadcast_to(memory, (6, 7, 8)))
    np.testing.assert_allclose(out.reshape(6, 5, 8), flat, atol=1e-12)
    check_gradients(layer, [x, memory], rng)


def test_permuting_keys_changes_nothing(rng):
    layer = stir(MHA(8, 2, dtype=np.float64), rng)
    x, memory, order = normal(rng, 3, 5, 8), normal(rng, 3, 7, 8), rng.permutation(7)
    np.testing.assert_allclose(layer(x, memory), layer(x, memory[:, order]), atol=1e-12)


# ---------------------------------------------------------------------------------- MultiHeadAttention: gradients


@pytest.mark.parametrize("options, query, key, value", SIZES)
def test_multi_head_gradients(rng, options, query, key, value):
    layer = stir(MHA(8, 2, dtype=np.float64, **options), rng)
    check_gradients(layer, given(rng, np.float64, query, key, value), rng)


@pytest.mark.parametrize("form", ["causal", "top-left", "mask", "padding", "both"])
def test_multi_head_gradients_with_masks(rng, form):
    layer = stir(MHA(8, 2, dtype=np.float64), rng)
    mask, padding = rng.random((3, 1, 5, 7)) < 0.7, rng.random((3, 7)) < 0.3
    options = {
        "causal": {"causal": True},
        "top-left": {"causal": "top-left"},
        "mask": {"mask": mask},
        "padding": {"key_padding_mask": padding},
        "both": {"mask": mask, "key_padding_mask": padding, "causal": True},
    }[form]
    check_gradients(layer, [normal(rng, 3, 5, 8), normal(rng, 3, 7, 8)], rng, **options)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [None, "causal", "dense", "padding"])
def test_multi_head_like_torch(rng, separate, bias, masked):
    torch = pytest.importorskip("torch")
    more = {"kdim": 6, "vdim": 10} if separate else {}
    theirs = torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64, **more)
    layer = MHA(12, 3, bias=bias, key_width=more.get("kdim"), value_width=more.get("vdim"), dtype=np.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.tensor(0.4 * normal(rng, *parameter.shape)))
    layer.load_state_dict({name: array.numpy() for name, array in theirs.state_dict().items()})
    n, m = 5, 7
    inputs = [normal(rng, 2, n, 12), normal(rng, 2, m, layer.key_width), normal(rng, 2, m, layer.value_width)]
    keep, padding = rng.random((n, m)) < 0.7, rng.random((2, m)) < 0.3
    keep[:, 0], padding[:, 0] = True, False
    ours, told = {
        None: ({}, {}),
        "causal": ({"causal": "top-left"}, {"attn_mask": torch.tensor(~causal_keep(n, m, "top-left"))}),
        "dense": ({"mask": keep}, {"attn_mask": torch.tensor(~keep)}),
        "padding": ({"key_padding_mask": padding}, {"key_padding_mask": torch.tensor(padding)}),
    }[masked]
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = theirs(*tensors, need_weights=False, **told)[0]
    out, tape = layer.forward(*inputs, **ours)
    np.testing.assert_allclose(out, expected.detach().numpy(), atol=1e-11)
    d_out = normal(rng, *out.shape)
    expected.backward(torch.tensor(d_out))
    *d_inputs, gradients = layer.backward(tape, d_out)
    for got, tensor in zip(d_inputs, tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), atol=1e-11)
    # Their gradients, taken apart as their parameters are.
    apart = MHA(12, 3, bias=bias, key_width=more.get("kdim"), value_width=more.get("vdim"), dtype=np.float64)
    apart.load_state_dict({name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()})
    assert list(gradients) == list(apart.parameters)
    for name, g in gradients.items():
        np.testing.assert_allclose(g, apart.parameters[name], atol=1e-11, err_msg=name)


# ---------------------------------------------------------------------------------------------------- the contract


def test_init_is_the_generators(rng):
    a, b, c = MHA(8, 2), MHA(8, 2, rng=np.random.default_rng(0)), MHA(8, 2, rng=np.random.default_rng(1))
    for name in a.parameters:
        np.testing.assert_array_equal(a.parameters[name], b.parameters[name])
    assert (a.parameters["query.weight"] != c.parameters["query.weight"]).any()
    arrays = dict(c.parameters)
    c.init(np.random.default_rng(0))
    for name, array in c.parameters.items():
        assert array is arrays[name]
        np.testing.assert_array_equal(array, a.parameters[name])
    assert a.dtype == np.float32 and all(array.dtype == np.float32 for array in a.parameters.values())


def test_parameters_are_what_forward_reads(rng):
    layer, x = MHA(8, 2, dtype=np.float64), normal(rng, 3, 8)
    before = layer(x)
    layer.parameters["output.weight"] *= 2
    np.testing.assert_allclose(layer(x), 2 * before)
    layer.parameters["output.weight"] = np.zeros((8, 8))
    assert (layer(x) == 0).all()


def test_a_few_steps_of_descent_fit(rng):
    layer = MHA(4, 2, dtype=np.float64, rng=rng)
    x, target = normal(rng, 2, 5, 4), normal(rng, 2, 5, 4)
    losses = []
    for _ in range(60):
        out, tape = layer.forward(x)
        losses.append(((out - target) ** 2).sum())
        *_, gradients = layer.backward(tape, 2 * (out - target))
        for name, parameter in layer.parameters.items():
            parameter -= 0.01 * gradients[name]
    assert losses[-1] < 0.7 * losses[0]


def test_wrong_calls(rng):
    layer = MHA(8, 2, key_width=6, dtype=np.float64)
    x, k, v = normal(rng, 3, 5, 8), normal(rng, 3, 7, 6), normal(rng, 3, 7, 8)
    out, tape = layer.forward(x, k, v)
    op = "layers.MultiHeadAttention"
    refused(lambda: MHA(8, 3), ValueError, op, "heads", "3", "8")
    refused(lambda: MHA(0, 1), ValueError, op, "width", "0")
    refused(lambda: MHA(8, 2.5), TypeError, op, "heads", "2.5")
    refused(lambda: MHA(8, 2, dtype=np.float16), TypeError, op, "dtype", "float16")
    refused(lambda: MHA(8, 2, rng=3), TypeError, op, "rng", "int")
    refused(lambda: layer(x[..., :7], k, v), ValueError, op, "query", "(3, 5, 7)", "width=8")
    refused(lambda: layer(x), ValueError, op, "query", "(3, 5, 8)", "6")
    refused(lambda: layer(x, k), ValueError, op, "key", "(3, 7, 6)", "8")
    refused(lambda: layer(x, k, v[:, :6]), ValueError, op, "value", "(3, 6, 8)", "m=7")
    refused(lambda: layer(x, k[:2], v), ValueError, op, "key", "(2, 7, 6)")
    refused(lambda: layer(x[0, 0], k, v), ValueError, op, "query", "(8,)")
    refused(lambda: layer(x, k, v, mask=np.ones((5, 6), bool)), ValueError, op, "mask", "(5, 6)", "(3, 2, 5, 7)")
    refused(lambda: layer(x, k, v, mask=np.ones((5, 7))), TypeError, op, "mask", "float64", "bool")
    refused(
        lambda: layer(x, k, v, key_padding_mask=np.ones((3, 5), bool)),
        ValueError,
        op,
        "key_padding_mask",
        "(3, 5)",
        "(3, 7)",
    )
    refused(
        lambda: layer(x, k, v, key_padding_mask=np.ones((3, 7))), TypeError, op, "key_padding_mask", "float64", "bool"
    )
    refused(lambda: layer(x, k, v, causal="both"), ValueError, op, "causal", "both")
    refused(lambda: layer(x.astype(str), k, v), TypeError, op, "query", "dtype")
    refused(lambda: layer.backward(tape, out[0]), ValueError, op, "d_out", "(5, 8)", "(3, 5, 8)")
    refused(lambda: layer.backward(out, out), TypeError, op, "tape", "ndarray")
    refused(lambda: MHA(8, 2).backward(tape, out), ValueError, op, "tape")
    refused(lambda: layer.load_state_dict({}), ValueError, op, "query.weight", "(8, 8)")
    refused(lambda: layer.load_state_dict([]), TypeError, op, "list")
    refused(
        lambda: MHA(8, 2).load_state_dict({"in_proj_weight": np.ones((20, 8))}),
        ValueError,
        op,
        "in_proj_weight",
        "(20, 8)",
        "24",
    )
    refused(lambda: rc.layers.LayerNorm(8)(x[..., :5]), ValueError, "layers.LayerNorm", "x", "(3, 5, 5)", "width=8")
    refused(lambda: rc.layers.LayerNorm(8, eps=-1.0), ValueError, "layers.LayerNorm", "eps", "-1.0")
    layer.parameters["key.bias"] = np.zeros(3)
    refused(lambda: layer(x, k, v), ValueError, op, "key.bias", "(3,)", "(8,)")
    layer.parameters["key.bias"] = np.zeros(8, np.float32)
    refused(lambda: layer(x, k, v), TypeError, op, "key.bias", "float32", "float64")
    del layer.parameters["key.bias"]
    refused(lambda: layer(x, k, v), TypeError, op, "key.bias")
