"""State dicts of hopfield-layers: under its names, with its stacking; and, where it is installed, equal outputs."""

import numpy as np
import pytest
import recollect as rc

from tests.layer_checks import refused, stir

SIZES = {"hidden_size": 3, "pattern_size": 5, "output_size": 6, "stored_pattern_size": 9, "pattern_projection_size": 10}
UNNORMALISED = {
    f"normalize_{role}{affine}": False
    for role in ("stored_pattern", "state_pattern", "pattern_projection")
    for affine in ("", "_affine")
}


def theirs_of(layer, prefix=""):
    """The state dict that hopfield-layers would have for the parameters of a layer without static roles."""
    p, core = layer.parameters, f"{prefix}association_core."
    projections = [p[f"{role}.weight"] for role in ("state_pattern", "stored_pattern", "pattern_projection")]
    arrays = {}
    if len({w.shape for w in projections}) == 1:
        arrays[f"{core}in_proj_weight"] = np.concatenate(projections)
    else:
        arrays |= {f"{core}{letter}_proj_weight": w for letter, w in zip("qkv", projections, strict=True)}
    arrays[f"{core}in_proj_bias"] = np.concatenate(
        [p[f"{role}.bias"] for role in ("state_pattern", "stored_pattern", "pattern_projection")]
    )
    arrays |= {f"{core}out_proj.{kind}": p[f"output.{kind}"] for kind in ("weight", "bias")}
    for name, array in p.items():
        if name.startswith("norm_hopfield_space."):
            arrays[f"{core}p_norm_{name.rpartition('.')[2]}"] = array
        elif name.startswith("norm_"):
            arrays[prefix + name] = array
        elif name.startswith("bias_"):
            arrays[core + {"bias_stored_pattern": "bias_k", "bias_pattern_projection": "bias_v"}[name]] = array[
                None, None
            ]
        elif name.endswith("_weights"):
            arrays[name] = array[None]
    return arrays


OPTIONS = [
    {"num_heads": 2},
    {"num_heads": 2} | SIZES,
    {
        "num_heads": 4,
        "concat_bias_pattern": True,
        "normalize_hopfield_space": True,
        "normalize_hopfield_space_affine": True,
    },
]


@pytest.mark.parametrize("options", OPTIONS)
def test_their_names(rng, options):
    layer = stir(rc.layers.Hopfield(8, dtype=np.float64, **options), rng)
    loaded = rc.layers.Hopfield.from_state_dict(theirs_of(layer), 8, dtype=np.float64, **options)
    assert list(loaded.parameters) == list(layer.parameters)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array, err_msg=name)


def test_their_names_of_the_wrappers(rng):
    pooling = stir(rc.layers.HopfieldPooling(8, quantity=3, num_heads=2, dtype=np.float64), rng)
    lookup = stir(rc.layers.HopfieldLayer(8, quantity=5, lookup_weights_as_separated=True, dtype=np.float64), rng)
    for layer, options in (
        (pooling, {"quantity": 3, "num_heads": 2}),
        (lookup, {"quantity": 5, "lookup_weights_as_separated": True}),
    ):
        loaded = type(layer).from_state_dict(theirs_of(layer, "hopfield."), 8, dtype=np.float64, **options)
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(loaded.parameters[name], array, err_msg=name)


def test_wrong_state_dicts(rng):
    layer = rc.layers.Hopfield(8, num_heads=2)
    good = theirs_of(layer)
    op = "layers.Hopfield"
    load = rc.layers.Hopfield.from_state_dict
    refused(
        lambda: load(good | {"lookup_weights": np.ones((1, 3, 8))}, 8, num_heads=2), ValueError, op, "lookup_weights"
    )
    refused(
        lambda: load({k: v for k, v in good.items() if "out_proj" not in k}, 8, num_heads=2),
        ValueError,
        op,
        "output.weight",
        "(8, 8)",
    )
    refused(lambda: load(good, 8, hidden_size=3, num_heads=2), ValueError, op, "in_proj_weight", "(24, 8)", "18")
    refused(lambda: load(good, 8, num_heads=2, disable_out_projection=True), ValueError, op, "output.weight")
    refused(
        lambda: load(good, 8, num_heads=2, normalize_state_pattern=False), ValueError, op, "norm_state_pattern.weight"
    )
    refused(lambda: load(3, 8), TypeError, op, "int")
    before = {name: array.copy() for name, array in layer.parameters.items()}
    refused(
        lambda: layer.load_state_dict(good | {"norm_state_pattern.bias": np.ones(3)}),
        ValueError,
        op,
        "norm_state_pattern.bias",
        "(3,)",
    )
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[name])


# What hopfield-layers does as its options say, more than one batch entry and head unless a role is static.
EQUAL = [
    ({"num_heads": 2}, 3),
    ({"num_heads": 2, "input_bias": False}, 3),
    ({"num_heads": 2, "update_steps_max": 2, "update_steps_eps": 1e-12, "scaling": 0.7}, 3),
    ({"num_heads": 2} | SIZES, 3),
    ({"num_heads": 2, "add_zero_association": True, "scaling": 1.5}, 3),
    ({"num_heads": 2, "normalize_hopfield_space": True, "hidden_size": 4, "normalize_hopfield_space_affine": True}, 3),
    ({"num_heads": 2, "pattern_projection_as_connected": True}, 3),
    ({"num_heads": 2, "disable_out_projection": True} | UNNORMALISED, 3),
    ({"num_heads": 1, "stored_pattern_as_static": True}, 3),
    ({"num_heads": 2, "state_pattern_as_static": True, "hidden_size": 8}, 1),
    ({"num_heads": 1, "pattern_projection_as_static": True}, 3),
]


def filled(module, rng):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.tensor(0.4 * rng.standard_normal(tuple(parameter.shape))))
    return module.double().eval(), {name: array.numpy() for name, array in module.double().state_dict().items()}


@pytest.mark.parametrize("options, batch", EQUAL)
@pytest.mark.parametrize("masked", [False, True])
def test_equal_outputs(rng, options, batch, masked):
    torch, hflayers = pytest.importorskip("torch"), pytest.importorskip("hflayers")
    module, arrays = filled(hflayers.Hopfield(8, **options), rng)
    layer = rc.layers.Hopfield.from_state_dict(arrays, 8, dtype=np.float64, **options)
    widths = [layer.width_of(role) for role in ("stored_pattern", "state_pattern", "pattern_projection")]
    given = [rng.standard_normal((batch, n, width)) for n, width in zip((7, 5, 7), widths, strict=True)]
    keep, padding = np.ones((5, 7), bool), np.zeros((batch, 7), bool)
    if masked:
        keep, padding = rng.random((5, 7)) < 0.8, rng.random((batch, 7)) < 0.3
        keep[:, 0], padding[:, 0] = True, False
    theirs = module(
        tuple(map(torch.tensor, given)),
        stored_pattern_padding_mask=torch.tensor(padding),
        association_mask=torch.tensor(~keep),
    )
    ours = layer(*given, mask=keep, stored_pattern_padding_mask=padding)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-9)


@pytest.mark.parametrize("kind", ["pooling", "layer", "separate targets"])
def test_equal_outputs_of_the_wrappers(rng, kind):
    torch, hflayers = pytest.importorskip("torch"), pytest.importorskip("hflayers")
    options = {"quantity": 3, "num_heads": 2} | ({"lookup_weights_as_separated": True} if "targets" in kind else {})
    name = "HopfieldPooling" if kind == "pooling" else "HopfieldLayer"
    module, arrays = filled(getattr(hflayers, name)(8, **options), rng)
    layer = getattr(rc.layers, name).from_state_dict(arrays, 8, dtype=np.float64, **options)
    x = rng.standard_normal((2, 7, 8))
    np.testing.assert_allclose(layer(x), module(torch.tensor(x)).detach().numpy(), atol=1e-10)
