"""Hopfield, with every option, against a loop over batch entries and heads, torch autograd and finite differences."""

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import check_gradients, refused, stir
from tests.reference import layers as ref

Hopfield = rc.layers.Hopfield
B, H, L, S = 3, 4, 5, 7  # more than one batch entry and head, and no two sizes equal
STATIC = {"stored_pattern_as_static": 0, "state_pattern_as_static": 1, "pattern_projection_as_static": 2}
UNNORMALISED = dict.fromkeys(
    ("normalize_stored_pattern", "normalize_state_pattern", "normalize_pattern_projection"), False
)


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-11}


def expected(layer, options, stored, state=None, projection=None, keep=True, scaling=None):
    """What the oracle says of a layer with these options."""
    y, r, u = (np.asarray(stored if x is None else x, np.float64) for x in (stored, state, projection))
    p = {name: array.astype(np.float64) for name, array in layer.parameters.items()}
    static = [options.get(name, False) for name in STATIC]
    space = options.get("normalize_hopfield_space", False)
    if scaling is None:
        hidden = r.shape[-1] if static[1] else len(p["state_pattern.weight"]) // layer.heads
        scaling = np.full(layer.heads, hidden**-0.5)
    keep = np.broadcast_to(keep, (len(y), layer.heads, r.shape[1], y.shape[1]))
    return ref.hopfield(
        p, layer.heads, y, r, u, keep, beta=np.broadcast_to(scaling, layer.heads), steps=options.get("update_steps_max", 0),
        eps=options.get("update_steps_eps", 1e-4), normalised=[options.get(name, True) for name in UNNORMALISED], static=static,
        connected=options.get("pattern_projection_as_connected", False), space=space, zero_row=options.get("add_zero_association", False),
    )  # fmt: skip


CASES = {
    "plain": {},
    "one head": {"num_heads": 1},
    "sizes": {"hidden_size": 3, "output_size": 6, "pattern_size": 5, "stored_pattern_size": 9, "pattern_projection_size": 10},
    "updates": {"update_steps_max": 3, "scaling": 0.9},
    "beta by head": {"scaling": np.array([0.2, 0.6, 1.5, 3.0])},
    "beta by head, updates": {"scaling": np.array([0.2, 0.6, 1.5, 3.0]), "update_steps_max": 2, "hidden_size": 3},
    "no norms": UNNORMALISED,
    "norms without parameters": {f"{name}_affine": False for name in UNNORMALISED},
    "norms in space": {"hidden_size": 5, "normalize_hopfield_space": True, "normalize_hopfield_space_affine": True, "update_steps_max": 1},
    "norms in space, no parameters": {"normalize_hopfield_space": True, "hidden_size": 3},
    "stored static": {"stored_pattern_as_static": True, "hidden_size": 3},
    "state static": {"state_pattern_as_static": True, "hidden_size": 3},
    "projection static": {"pattern_projection_as_static": True, "pattern_size": 5},
    "states and stored static": {"stored_pattern_as_static": True, "state_pattern_as_static": True, "hidden_size": 3, "scaling": 0.8},
    "all static": dict.fromkeys(STATIC, True) | {"hidden_size": 3, "pattern_size": 4, "update_steps_max": 1},
    "connected": {"pattern_projection_as_connected": True},
    "connected, norms in space": {"hidden_size": 5, "pattern_projection_as_connected": True, "normalize_hopfield_space": True, "normalize_hopfield_space_affine": True, "pattern_size": 5},
    "connected, projection static": {"pattern_projection_as_connected": True, "pattern_projection_as_static": True},
    "connected, stored static": {"pattern_projection_as_connected": True, "stored_pattern_as_static": True, "hidden_size": 3},
    "zero row": {"add_zero_association": True},
    "bias row": {"concat_bias_pattern": True},
    "both rows, updates": {"concat_bias_pattern": True, "add_zero_association": True, "update_steps_max": 2, "pattern_size": 3},
    "no bias": {"input_bias": False, "pattern_size": 3},
    "no output projection": {"disable_out_projection": True, "pattern_size": 3},
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def made(case, dtype=np.float64, rng=None):
    options = {"num_heads": H} | CASES[case]
    layer = Hopfield(8, dtype=dtype, **options)
    return (layer if rng is None else stir(layer, rng)), options


def inputs(layer, rng, dtype=np.float64, batch=(B,)):
    """stored, state, projection, of the widths that the layer takes."""
    widths = (layer.width_of("stored_pattern"), layer.width_of("state_pattern"), layer.width_of("pattern_projection"))
    return [rng.standard_normal((*batch, n, width)).astype(dtype) for n, width in zip((S, L, S), widths, strict=True)]


@every_case
def test_values(rng, dtype, case):
    layer, options = made(case, dtype, rng)
    given = inputs(layer, rng, dtype)
    out = layer(*given)
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out, expected(layer, options, *given, scaling=options.get("scaling")), **tolerance(dtype)
    )


@every_case
def test_values_with_masks(rng, case):
    layer, options = made(case, rng=rng)
    given = inputs(layer, rng)
    mask, padding = rng.random((B, layer.heads, L, S)) < 0.6, rng.random((B, S)) < 0.3
    mask[1, 0, 2] = False
    out = layer(*given, mask=mask, stored_pattern_padding_mask=padding)
    keep = mask & ~padding[:, None, None]
    np.testing.assert_allclose(
        out, expected(layer, options, *given, keep, options.get("scaling")), **tolerance(np.float64)
    )


@every_case
def test_gradients(rng, case):
    layer, _ = made(case, rng=rng)
    mask, padding = rng.random((L, S)) < 0.7, rng.random((B, S)) < 0.2
    check_gradients(layer, inputs(layer, rng), rng)
    check_gradients(layer, inputs(layer, rng), rng, mask=mask, stored_pattern_padding_mask=padding)


@every_case
def test_samples_do_not_see_each_other(rng, case):
    layer, _ = made(case, rng=rng)
    given = inputs(layer, rng)
    whole = layer(*given)
    changed = [x.copy() for x in given]
    for x in changed:
        x[:2] = 50 * rng.standard_normal(x[:2].shape)
    np.testing.assert_allclose(layer(*changed)[2], whole[2], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer(*(x[2] for x in given)), whole[2], rtol=1e-12, atol=1e-12)


@every_case
def test_permuting_stored_patterns_changes_nothing(rng, case):
    layer, _ = made(case, rng=rng)
    stored, state, projection = inputs(layer, rng)
    order = rng.permutation(S)
    np.testing.assert_allclose(
        layer(stored[:, order], state, projection[:, order]), layer(stored, state, projection), atol=1e-11
    )


@pytest.mark.parametrize(
    "mask", [(S,), (L, 1), (L, S), (H, 1, 1), (H, L, S), (B, 1, L, S), (B, 1, 1, S), (B, H, L, S)], ids=str
)
@pytest.mark.parametrize("extra", [False, True])
def test_mask_forms(rng, mask, extra):
    options = {"add_zero_association": extra, "concat_bias_pattern": extra, "update_steps_max": 1, "num_heads": H}
    layer = stir(Hopfield(8, dtype=np.float64, **options), rng)
    given = inputs(layer, rng)
    keep = rng.random(mask) < 0.6
    np.testing.assert_allclose(
        layer(*given, mask=keep), expected(layer, options, *given, keep), **tolerance(np.float64)
    )


def test_one_array_in_several_roles(rng):
    layer = stir(Hopfield(8, num_heads=2, update_steps_max=1, dtype=np.float64), rng)
    x, y = rng.standard_normal((B, S, 8)), rng.standard_normal((B, L, 8))
    np.testing.assert_array_equal(layer(x), layer(x, x, x))
    check_gradients(layer, [x], rng)
    check_gradients(layer, [x, y], rng)
    check_gradients(layer, [x, None, x + 1], rng)


def test_no_updates_is_attention(rng, dtype):
    layer = stir(Hopfield(8, num_heads=2, dtype=dtype, **UNNORMALISED), rng)
    attention = rc.layers.MultiHeadAttention(8, 2, dtype=dtype)
    for ours, theirs in (
        ("state_pattern", "query"),
        ("stored_pattern", "key"),
        ("pattern_projection", "value"),
        ("output", "output"),
    ):
        for kind in ("weight", "bias"):
            attention.parameters[f"{theirs}.{kind}"][...] = layer.parameters[f"{ours}.{kind}"]
    stored, state, projection = inputs(layer, rng, dtype)
    np.testing.assert_allclose(
        layer(stored, state, projection), attention(state, stored, projection), **tolerance(dtype)
    )


# ---------------------------------------------------------------------------------------- updates until rest


def test_until_rest(rng):
    options = {
        "num_heads": H,
        "update_steps_max": None,
        "update_steps_eps": 1e-9,
        "scaling": np.array([0.5, 1.0, 3.0, 30.0]),
    }
    layer = stir(Hopfield(8, dtype=np.float64, **options), rng)
    given = inputs(layer, rng)
    np.testing.assert_allclose(layer(*given), expected(layer, options, *given, scaling=options["scaling"]), atol=1e-7)


def test_rows_stop_by_themselves(rng):
    """With a coarse eps, what a row takes part with does not change where it stops."""
    layer = stir(
        Hopfield(8, num_heads=2, update_steps_max=None, update_steps_eps=0.2, scaling=2.0, dtype=np.float64), rng
    )
    stored, state, _ = inputs(layer, rng)
    whole = layer(stored, state)
    for b in range(B):
        for i in range(L):
            np.testing.assert_allclose(layer(stored[b], state[b, i : i + 1]), whole[b, i : i + 1], atol=1e-12)


def test_gradients_until_rest(rng):
    layer = stir(
        Hopfield(8, num_heads=2, update_steps_max=None, update_steps_eps=1e-11, scaling=1.0, dtype=np.float64), rng
    )
    check_gradients(layer, inputs(layer, rng), rng)


# ---------------------------------------------------------------------------------------------- torch autograd


@pytest.mark.parametrize("steps", [0, 2])
def test_gradients_like_torch(rng, steps):
    torch = pytest.importorskip("torch")
    scaling = np.array([0.5, 2.0])
    layer = stir(Hopfield(8, num_heads=2, scaling=scaling, update_steps_max=steps, dtype=np.float64), rng)
    arrays = inputs(layer, rng)
    p = {name: torch.tensor(array, requires_grad=True) for name, array in layer.parameters.items()}
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]

    def heads(x, role):
        x = torch.nn.functional.layer_norm(x, (8,), p[f"norm_{role}.weight"], p[f"norm_{role}.bias"])
        x = torch.nn.functional.linear(x, p[f"{role}.weight"], p[f"{role}.bias"])
        return x.reshape(B, -1, 2, 4).transpose(1, 2)

    k, q, v = (
        heads(x, role)
        for x, role in zip(tensors, ("stored_pattern", "state_pattern", "pattern_projection"), strict=True)
    )
    beta = torch.tensor(scaling).reshape(2, 1, 1)
    for _ in range(steps):
        q = torch.softmax(beta * q @ k.transpose(-1, -2), -1) @ k
    z = (torch.softmax(beta * q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).reshape(B, L, 8)
    theirs = torch.nn.functional.linear(z, p["output.weight"], p["output.bias"])
    out, tape = layer.forward(*arrays)
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-12)
    d_out = rng.standard_normal(out.shape)
    theirs.backward(torch.tensor(d_out))
    *d_inputs, gradients = layer.backward(tape, d_out)
    for got, tensor in zip(d_inputs, tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), atol=1e-11)
    for name, g in gradients.items():
        np.testing.assert_allclose(g, p[name].grad.numpy(), atol=1e-11, err_msg=name)


# --------------------------------------------------------------------------------------------- nothing learned


def test_without_parameters_it_is_retrieval(rng, dtype):
    layer = Hopfield(
        num_heads=2,
        **dict.fromkeys(STATIC, True),
        **UNNORMALISED,
        disable_out_projection=True,
        scaling=[1.0, 4.0],
        update_steps_max=1,
        dtype=dtype,
    )
    assert layer.parameters == {}
    stored, state, values = (rng.standard_normal(shape).astype(dtype) for shape in ((B, S, 6), (B, L, 6), (B, S, 2)))
    out, tape = layer.forward(stored, state, values)
    one, two = (rc.hopfield.retrieve(state, stored, values=values, beta=beta, steps=2) for beta in (1.0, 4.0))
    np.testing.assert_allclose(out, np.concatenate([one, two], axis=-1), **tolerance(dtype))
    assert layer.backward(tape, out).parameters == {}
    refused(lambda: layer(stored, state[..., :5]), ValueError, "layers.Hopfield", "state", "(3, 5, 5)", "6")
    assert (
        Hopfield(num_heads=2, **dict.fromkeys(STATIC, True), **UNNORMALISED, disable_out_projection=True).scaling == 1
    ).all()


def test_wrong_calls(rng):
    layer = Hopfield(8, num_heads=2, pattern_projection_size=6)
    y, r, u = (rng.standard_normal(shape) for shape in ((B, S, 8), (B, L, 8), (B, S, 6)))
    op = "layers.Hopfield"
    refused(lambda: Hopfield(), ValueError, op, "input_size", "None")
    refused(lambda: Hopfield(8, num_heads=3), ValueError, op, "num_heads", "3", "8")
    refused(lambda: Hopfield(8, hidden_size=0), ValueError, op, "hidden_size", "0")
    refused(lambda: Hopfield(8, num_heads=2, scaling=[1.0, 2.0, 3.0]), ValueError, op, "scaling", "(3,)", "(2,)")
    refused(lambda: Hopfield(8, scaling=-1.0), ValueError, op, "scaling", "-1.0", "positive")
    refused(lambda: Hopfield(8, scaling="high"), TypeError, op, "scaling")
    refused(lambda: Hopfield(8, update_steps_max=-1), ValueError, op, "update_steps_max", "-1")
    refused(lambda: Hopfield(8, update_steps_max=1.5), TypeError, op, "update_steps_max", "1.5")
    refused(lambda: Hopfield(8, update_steps_eps=0.0), ValueError, op, "update_steps_eps", "0.0")
    refused(
        lambda: Hopfield(8, concat_bias_pattern=True, stored_pattern_as_static=True),
        ValueError,
        op,
        "concat_bias_pattern",
        "static",
    )
    refused(
        lambda: Hopfield(8, pattern_projection_as_connected=True, pattern_projection_size=6),
        ValueError,
        op,
        "pattern_projection_size",
        "6",
        "8",
    )
    refused(lambda: Hopfield(8, hiden_size=4), TypeError, "hiden_size")
    refused(lambda: layer(y[..., :7], r, u), ValueError, op, "stored", "(3, 7, 7)", "8")
    refused(lambda: layer(y, r[0, 0], u), ValueError, op, "state", "(8,)")
    refused(lambda: layer(y, r), ValueError, op, "stored", "(3, 7, 8)", "6", "projection")
    refused(lambda: layer(y, r, u[:, :6]), ValueError, op, "projection", "(3, 6, 6)", "S=7")
    refused(lambda: layer(y, r[:2], u), ValueError, op, "state", "(2, 5, 8)")
    refused(lambda: layer(y, r, u, mask=np.ones((S, L), bool)), ValueError, op, "mask", "(7, 5)", "(3, 2, 5, 7)")
    refused(lambda: layer(y, r, u, mask=np.zeros((L, S))), TypeError, op, "mask", "float64", "bool")
    refused(
        lambda: layer(y, r, u, stored_pattern_padding_mask=np.ones((B, L), bool)),
        ValueError,
        op,
        "stored_pattern_padding_mask",
        "(3, 5)",
    )
    out, tape = layer.forward(y, r, u)
    refused(lambda: layer.backward(tape, out[..., :4]), ValueError, op, "d_out", "(3, 5, 4)", "(3, 5, 8)")
