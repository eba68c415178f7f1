"""What every layer's tests do: every gradient by name against finite differences, and wrong calls."""

import numpy as np
import pytest

# Fourth-order differences of a smooth function err by some step^4 + eps / step; shorter steps are for sharp functions and kinks.
STEPS = (4e-5, 4e-6, 4e-7)
FD_TOL = 1e-6


def difference(f, flat, i, step):
    """The central difference, of fourth order, of f() for one entry of a flat array that f reads."""
    old = flat[i]
    slope = 0.0
    for times, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
        flat[i] = old + times * step
        slope += weight * f()
    flat[i] = old
    return slope / (12 * step)


def agrees(got, expected):
    return abs(got - expected) <= FD_TOL * (1 + abs(expected))


def check_gradients(layer, inputs, rng, frozen=(), **options):
    """backward against finite differences of sum(d_out * out), for a few entries of each input and of every parameter."""
    assert layer.dtype == np.float64
    out, tape = layer.forward(*inputs, **options)
    d_out = rng.standard_normal(out.shape)
    first, second = layer.backward(tape, d_out), layer.backward(tape, d_out)  # a tape is for more than one use
    assert type(first)._fields[-1] == "parameters"
    *d_inputs, gradients = first
    assert list(gradients) == [name for name in layer.parameters if name not in frozen]
    for name, g in gradients.items():
        assert g.shape == layer.parameters[name].shape and g.dtype == layer.dtype, name
        np.testing.assert_array_equal(g, second.parameters[name])

    def loss():
        return float(np.sum(d_out * layer(*inputs, **options)))

    checked = [(name, layer.parameters[name], g) for name, g in gradients.items()]
    for name, x, g in zip(type(first)._fields, (*inputs, *[None] * len(d_inputs)), d_inputs, strict=False):
        assert (g is None) == (x is None), name
        if x is not None:
            assert g.shape == x.shape, name
            checked.append((name, x, g))
    for name, array, g in checked:
        flat = array.reshape(-1)
        assert np.shares_memory(flat, array) or not array.size
        for i in rng.choice(flat.size, min(5, flat.size), replace=False):
            got = g.reshape(-1)[i]
            tried = []
            for step in STEPS:
                tried.append(difference(loss, flat, i, step))
                if agrees(got, tried[-1]):
                    break
            else:
                raise AssertionError(f"{name}[{i}]: {got} is not {tried}")
    return first


def stir(layer, rng, size=0.5):
    """Every parameter away from where it starts, so that no gradient is zero by luck."""
    for name, array in layer.parameters.items():
        array += (
            size
            * rng.standard_normal(array.shape).astype(array.dtype)
            / (np.sqrt(array.shape[-1]) if name.endswith("weight") else 1)
        )
    return layer


def refused(call, kind, *words):
    """call() is refused with one sentence that has all these words."""
    with pytest.raises(kind) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 400, text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
