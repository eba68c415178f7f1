"""The own witnesses of the oracle for networks with any separation: the softmax oracles, finite differences, the adjoint
at the fixed point against a long unrolled gradient."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import attention as att  # noqa: E402
from tests.reference import hopfield as hop  # noqa: E402
from tests.reference import scores, separated  # noqa: E402
from tests.reference import separations as sep  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
STEP = 4e-6
DIFFERENCE_TOL = 1e-9
ALL = [
    "softmax", "sparsemax", "entmax15", ("entmax", 1.2), ("entmax", 2.5), ("normmax", 1.5), ("normmax", 3), ("k_subset", 1),
    ("k_subset", 3), "hard", ("top_k_softmax", 3), "linear",
]  # fmt: skip
NAMES = ("state", "patterns", "beta", "values")


def long(rng, *shape):
    return LONG(rng.standard_normal(shape))


def agree(a, b, tol=1e3 * EPS):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0))))


def check_along(gradient, function, a):
    """<gradient, u> for a few random directions u against central differences at h and 2 h, extrapolated."""
    a, rng = np.asarray(a, LONG), np.random.default_rng(a.shape)
    assert np.shape(gradient) == a.shape
    for _ in range(3):
        u = long(rng, *a.shape)
        u /= max(1, np.sqrt((u * u).sum()) / 3)
        near, far = ((function(a + h * u) - function(a - h * u)) / (2 * LONG(h)) for h in (STEP, 2 * STEP))
        agree((gradient * u).sum(), (4 * near - far) / 3, DIFFERENCE_TOL)


def smooth(separation, path):
    """(..., n): rows that no step takes close to where a weight changes its law."""
    return np.min([sep.gap(separation, separated.logits(x), x.keep) for x in path], axis=0) > 4e-3


def last(o, more):
    """The end of `visited`: what retrieve returns, without the energies."""
    x = separated.visited(**o, **more)[-1]
    return separated.weigh(x, more["separation"]).p @ x.value


def operands(seed, n=6, N=7, d=4, e=3, batch=(), beta=0.6):
    rng = np.random.default_rng(seed)
    o = {"state": long(rng, *batch, n, d), "patterns": long(rng, *batch, N, d), "beta": LONG(beta)}
    return o | {"values": None if e is None else long(rng, *batch, N, e)}, rng


def mask_of(rng, n=6, N=7):
    mask = rng.random((n, N)) < 0.7
    mask[1], mask[:, 2] = False, False
    return mask


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("e", [None, 3])
def test_softmax_is_the_hopfield_oracle(steps, e):
    o, rng = operands(0, e=e)
    for mask in (None, mask_of(rng)):
        theirs = hop.retrieve(**o, steps=steps, mask=mask)
        for a, b in zip(separated.retrieve(**o, steps=steps, mask=mask), theirs, strict=True):
            agree(a, b)
        g = long(rng, *theirs.state.shape)
        mine, expected = separated.retrieve_gradients(**o, d_out=g, steps=steps, mask=mask), hop.retrieve_gradients(**o, d_out=g, steps=steps, mask=mask)  # fmt: skip
        for a, b in zip(mine, expected, strict=True):
            assert (a is None) == (b is None)
            agree(a, b) if a is not None else None
        e_args = [o[k] for k in NAMES[:3]]
        agree(separated.energy(*e_args, mask=mask), hop.energy(*e_args, mask=mask))
        for a, b in zip(separated.energy_gradients(*e_args, g[:, 0], mask=mask), hop.energy_gradients(*e_args, g[:, 0], mask), strict=True):  # fmt: skip
            agree(a, b)


def test_softmax_is_the_attention_oracle():
    rng = np.random.default_rng(1)
    q, k, v = long(rng, 2, 6, 3, 4), long(rng, 2, 2, 5, 4), long(rng, 2, 2, 5, 3)
    more = {"scale": long(rng, 6), "bias": long(rng, 6, 1, 5), "causal": True}
    for a, b in zip(separated.attend(q, k, v, **more), att.attend(q, k, v, **more), strict=True):
        agree(a, b)
    g = long(rng, 2, 6, 3, 3)
    for absolute in (False, True):
        mine = separated.attend_gradients(q, k, v, g, absolute=absolute, **more)
        expected = att.gradients(q, k, v, g, **more)
        if absolute:
            assert all((a >= np.abs(b)).all() for a, b in zip(mine[:5], expected[:5], strict=True))
        else:
            for a, b in zip(mine[:5], expected[:5], strict=True):
                agree(a, b)


@pytest.mark.parametrize("separation", ALL, ids=str)
@pytest.mark.parametrize("e", [None, 3])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_retrieval_are_finite_differences(separation, e, steps, masked):
    o, rng = operands(2, e=e, batch=(2,), beta=[0.3, 0.9])
    mask = mask_of(rng) if masked else None
    more = {"separation": separation, "steps": steps, "mask": mask}
    if masked:
        o["patterns"][:, 2] = np.nan
    clear = smooth(separation, separated.visited(**o, **more))
    g = long(rng, 2, 6, e or 4) * clear[..., None]
    assert clear.sum() >= 6
    d = separated.retrieve_gradients(**o, d_out=g, **more)
    size = separated.retrieve_gradients(**o, d_out=g, absolute=True, **more)
    for name in NAMES:
        if o[name] is None:
            continue
        check_along(getattr(d, name), lambda a, name=name: (g * last(o | {name: a}, more)).sum(), o[name])
        assert (np.abs(getattr(d, name)) <= getattr(size, name) * (1 + 1e-12)).all()


@pytest.mark.parametrize("separation", ALL, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_energy_are_finite_differences(separation, masked):
    o, rng = operands(3, e=None, batch=(2,), beta=[0.3, 0.9])
    args = [o[k] for k in NAMES[:3]]
    mask = mask_of(rng) if masked else None
    clear = smooth(separation, separated.visited(*args, separation=separation, mask=mask))
    g = long(rng, 2, 6) * clear
    d = separated.energy_gradients(*args, g, separation, mask)

    def total(i, a):
        moved = [*args[:i], a, *args[i + 1 :]]
        e = separated.energy(*moved, separation, mask)
        if separation == "softmax" and i == 1:  # M is a constant of the patterns
            e = (
                e
                - np.where(np.broadcast_to(True if mask is None else mask, (2, 6, 7)), (a * a).sum(-1)[:, None], 0).max(
                    -1
                )
                / 2
            )
        return (g * np.where(np.isfinite(e), e, 0)).sum()

    for i in range(3):
        check_along(d[i], lambda a, i=i: total(i, a), args[i])
    assert (separated.energy(*args, separation, mask)[:, 1] == np.inf).all() == masked


@pytest.mark.parametrize("separation", ALL, ids=str)
def test_the_gradient_of_energy_is_state_minus_update(separation):
    o, _ = operands(4, e=None)
    args = [o[k] for k in NAMES[:3]]
    step = separated.retrieve(**o, separation=separation).state
    agree(separated.energy_gradients(*args, np.ones(6, LONG), separation).state, o["state"] - step)


@pytest.mark.parametrize("separation", [s for s in ALL if s != "linear"], ids=str)
def test_energy_never_rises(separation):
    """Every potential here is convex: retrieval minimises |q|^2 / 2 minus its tangent."""
    for beta in (0.1, 1, 5):
        o, _ = operands(5, n=20, N=30, e=None, beta=beta)
        path = separated.visited(**o, separation=separation, steps=12)
        energies = [separated.energy(x.query, o["patterns"], o["beta"], separation) for x in path]
        assert (np.diff(energies, axis=0) <= 1e3 * EPS * (1 + np.abs(energies[:-1]))).all()


# --------------------------------------------------------------------------------------- at the fixed point


@pytest.mark.parametrize("separation", ["softmax", "sparsemax", "entmax15", ("entmax", 1.2), ("normmax", 2), ("k_subset", 3)], ids=str)  # fmt: skip
@pytest.mark.parametrize("e", [None, 3])
def test_implicit_gradients_are_those_of_many_steps(separation, e):
    o, rng = operands(6, n=8, N=7, d=4, e=e, beta=0.35)
    more = {"separation": separation, "mask": mask_of(rng, 8)}
    path = separated.visited(**o, steps=400, **more)
    fixed = separated.update(path[-1], separation).query
    still = np.sqrt(((fixed - path[-1].query) ** 2).sum(-1)) < 1e-15
    clear = still & smooth(separation, path[-1:])
    assert clear.sum() >= 3
    g = long(rng, 8, e or 4) * clear[:, None]
    unrolled = separated.retrieve_gradients(**o, d_out=g, steps=400, **more)
    implicit = separated.implicit_gradients(fixed, o["patterns"], o["beta"], g, o["values"], **more)
    assert (implicit.state == 0).all() and np.abs(unrolled.state).max() < 1e-12
    for a, b in zip(implicit[1:], unrolled[1:], strict=True):
        assert (a is None) == (b is None)
        agree(a, b, 1e-11) if a is not None else None
    J = separated.jacobian(path[-1], separation).astype(float)
    np.testing.assert_allclose(J, J.swapaxes(-1, -2), rtol=0, atol=1e-14 * max(1, np.abs(J).max()))


# ----------------------------------------------------------------------------- attention with scores of any kind


def score_of(name, rng, d, width):
    return {
        "bilinear": scores.Bilinear(long(rng, d, width)),
        "additive": scores.Additive(long(rng, 5, width), long(rng, 5, d), long(rng, 5)),
    }.get(name, name)


@pytest.mark.parametrize("separation", ["softmax", "sparsemax", ("normmax", 2), ("k_subset", 2), "linear"], ids=str)
@pytest.mark.parametrize("name", ["dot", "cosine", "gaussian", "bilinear", "additive"])
def test_gradients_of_attention_are_finite_differences(separation, name):
    rng = np.random.default_rng(7)
    width = 3 if name in ("bilinear", "additive") else 4
    score = score_of(name, rng, 4, width)
    o = {"query": long(rng, 2, 4, 4), "key": long(rng, 5, width), "value": long(rng, 5, 3)}
    o |= {"scale": LONG(0.8), "bias": long(rng, 4, 5)}
    more = {"mask": mask_of(rng, 4, 5), "separation": separation}
    o["bias"][0, 3] = -np.inf
    x = att.pose(**o, mask=more["mask"])
    clear = sep.gap(separation, separated.logits(x, score), x.keep) > 4e-3
    assert clear.sum() >= 4
    g = long(rng, 2, 4, 3) * clear[..., None]
    d = separated.attend_gradients(**o, d_out=g, score=score, **more)
    for field in ("query", "key", "value", "scale", "bias"):

        def total(a, field=field):
            a = np.where(np.isfinite(o[field]), a, o[field])
            return (g * separated.attend(**o | {field: a}, score=score, **more).out).sum()

        check_along(getattr(d, field), total, np.where(np.isfinite(o[field]), o[field], 0))
    for field, got in d.parameters.items():

        def moved(a, field=field):
            return (g * separated.attend(**o, score=score._replace(**{field: a}), **more).out).sum()

        check_along(got, moved, getattr(score, field))
