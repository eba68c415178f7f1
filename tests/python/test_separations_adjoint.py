"""Identities of the gradients of every separation: adjoints, symmetric Jacobians, the gradient of the energy, the adjoint that
is solved at a fixed point."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests import separation_checks as check
from tests.reference import attention as att
from tests.reference import separated
from tests.reference import separations as sep

H = 1e-6
each = pytest.mark.parametrize("separation", check.OTHERS, ids=str)


@each
@pytest.mark.parametrize("name", ["query", "key", "value", "scale", "bias"])
def test_adjoint_identity(rng, separation, name):
    """<J u, w> = <u, J^T w>: J u from two evaluations along a direction, J^T w from the pullback."""
    o = check.operands(rng, np.float64, 40, 30, 8, 6, scale=np.array(0.4), bias=0.2 * rng.standard_normal((40, 30)))
    x = att.pose(**o)
    clear = sep.gap(separation, separated.logits(x)) > 1e-4
    assert clear.sum() >= 4
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    w, u = rng.standard_normal(out.shape) * clear[:, None], rng.standard_normal(o[name].shape)
    u /= max(1.0, np.linalg.norm(u))
    ends = [rc.attention.attend(**o | {name: o[name] + s * H * u}, separation=separation) for s in (1, -1)]
    left, right = ((ends[0] - ends[1]) / (2 * H) * w).sum(), (u * getattr(pullback(w), name)).sum()
    # truncation h^2 beside a level of 1e-4, rounding eps / h
    assert abs(left - right) <= 1e-6 * (1 + abs(right)) * np.linalg.norm(w)


@each
def test_one_update_is_its_own_adjoint(rng, separation):
    """The update is a gradient, its Jacobian symmetric: <J u, w> = <J w, u>, both from the pullback alone."""
    h = check.memory(rng, np.float64, n=20, N=30, d=10, beta=0.3)
    out, pullback = rc.vjp(rc.hopfield.retrieve, **h, separation=separation)
    u, w = rng.standard_normal((2, *out.shape))
    a, b = pullback(u).state, pullback(w).state
    size = np.linalg.norm(w, axis=-1) * np.linalg.norm(a, axis=-1) + np.linalg.norm(u, axis=-1) * np.linalg.norm(
        b, axis=-1
    )
    x = separated.pose(**h)
    unit = np.where(check.clear_rows(np.float64, [x], separation), check.row_units(np.float64, [x], separation), np.inf)
    assert (np.abs((w * a).sum(-1) - (u * b).sum(-1)) <= 64 * unit * (size + 1)).all()


@each
def test_energy_gradient_is_state_minus_update(rng, dtype, separation):
    h = check.memory(rng, dtype, n=9, N=30, d=10, beta=0.3)
    energy, pullback = rc.vjp(rc.hopfield.energy, **h, separation=separation)
    step = rc.hopfield.retrieve(**h, separation=separation)
    x = separated.pose(**check.widen(dtype, h))
    bound = 2 * check.read_bound(dtype, x, separation) + 16 * acc.eps(dtype) * np.abs(x.query)
    assert (np.abs(pullback(np.ones_like(energy)).state - (h["state"] - step)) <= bound).all()


@pytest.mark.parametrize("separation", [s for s in check.EVERY if s != "linear"], ids=str)
def test_a_common_shift_of_all_scores_has_no_gradient(rng, separation):
    o = check.operands(rng, np.float64, 30, 40, scale=np.array(0.4), bias=0.2 * rng.standard_normal((30, 40)))
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    g = pullback(rng.standard_normal(out.shape)).bias
    assert (np.abs(g.sum(-1)) <= 1e4 * acc.eps(np.float64) * (1 + np.abs(g).sum(-1))).all()


@each
def test_pullbacks_may_be_called_again_and_are_linear(rng, dtype, separation, same_bits):
    o = check.operands(rng, dtype, 30, 60, scale=np.array(0.4, dtype))
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    same_bits(out, rc.attention.attend(**o, separation=separation))
    u = rng.standard_normal(out.shape).astype(dtype)
    first, doubled, again = pullback(u), pullback(2 * u), pullback(u)
    same_bits(first, again)
    for a, b in zip(first, doubled, strict=True):
        np.testing.assert_array_equal(2 * np.asarray(a), b)  # a factor 2 rounds nothing
    assert all((np.asarray(a) == 0).all() for a in pullback(np.zeros_like(u)))


@pytest.mark.parametrize("separation", ["sparsemax", "entmax15", ("entmax", 1.3), ("normmax", 2), ("k_subset", 1)], ids=str)  # fmt: skip
def test_torch_autograd_of_the_entmax_package_agrees(rng, separation):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    o = check.operands(rng, np.float64, 17, 40, 12, 7, scale=np.array(0.3))
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    u = rng.standard_normal(out.shape)
    got = pullback(u)
    leaves = {k: torch.tensor(o[k], requires_grad=True) for k in got._fields}
    z = leaves["scale"] * (leaves["query"] @ leaves["key"].T)
    p = {
        "sparsemax": entmax.sparsemax, "entmax15": entmax.entmax15, ("entmax", 1.3): lambda z: entmax.entmax_bisect(z, 1.3, n_iter=100),
        ("normmax", 2): lambda z: entmax.normmax_bisect(z, 2, n_iter=100), ("k_subset", 1): lambda z: entmax.budget_bisect(z, 1, n_iter=100),
    }[separation](z)  # fmt: skip
    (p @ leaves["value"] * torch.from_numpy(u)).sum().backward()
    for name in got._fields:
        theirs = leaves[name].grad.numpy()
        np.testing.assert_allclose(
            getattr(got, name), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max(), err_msg=name
        )


# --------------------------------------------------------------------------------------- at the fixed point

RESTING = ["softmax", "sparsemax", "entmax15", ("entmax", 1.2), ("entmax", 3.0), ("normmax", 2), ("k_subset", 3), "hard", ("top_k_softmax", 3)]  # fmt: skip


@pytest.mark.parametrize("separation", RESTING, ids=str)
@pytest.mark.parametrize("e", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_at_rest_are_those_of_many_steps(rng, separation, e, masked):
    """steps=None solves the adjoint at the fixed point: equal to the unrolled gradient to 1e-8, none for the state."""
    h = check.memory(rng, np.float64, n=16, N=7, d=4, e=e, beta=0.3)
    if masked:
        h["mask"] = rng.random((16, 7)) < 0.8
        h["mask"][2] = False
    out, pullback = rc.vjp(rc.hopfield.retrieve, **h, separation=separation, steps=None, tol=1e-15)
    unrolled, pull = rc.vjp(rc.hopfield.retrieve, **h, separation=separation, steps=600)
    bare = {k: a for k, a in h.items() if k != "values"}
    fixed = rc.hopfield.retrieve(**bare, separation=separation, steps=None, tol=1e-15)
    x = separated.pose(**h | {"state": fixed})
    J = np.linalg.norm(separated.jacobian(x, separation), 2, axis=(-1, -2))
    # rows that contract, to a point where nothing changes its law
    clear = (sep.gap(separation, separated.logits(x), x.keep) > 1e-4) & (J < 0.95)
    assert clear.sum() >= 3
    np.testing.assert_allclose(out[clear], unrolled[clear], rtol=0, atol=1e-12)
    u = rng.standard_normal(out.shape) * clear[:, None]
    got, expected = pullback(u), pull(u)
    truth = separated.implicit_gradients(
        fixed, h["patterns"], h["beta"], u, h.get("values"), separation=separation, mask=h.get("mask")
    )
    assert got._fields == expected._fields and (got.state == 0).all() and got.state.shape == h["state"].shape
    for name in got._fields[1:]:
        size = max(1.0, np.abs(getattr(expected, name)).max())
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-8 * size, err_msg=name)
        np.testing.assert_allclose(getattr(got, name), getattr(truth, name), rtol=0, atol=1e-8 * size, err_msg=name)


@pytest.mark.parametrize("separation", ["softmax", "entmax15"], ids=str)
def test_gradients_at_rest_over_heads_and_in_float32(rng, dtype, separation):
    h = check.memory(rng, dtype, n=5, N=7, d=4, batch=(2, 3), beta=[0.2, 0.3, 0.4])
    h["patterns"] = h["patterns"][:1]
    out, pullback = rc.vjp(rc.hopfield.retrieve, **h, separation=separation, steps=None)
    fixed = separated.retrieve(**check.widen(dtype, h), separation=separation, steps=None, tol=1e-15).state
    x = separated.pose(**check.widen(dtype, h | {"state": fixed}))
    J = np.linalg.norm(separated.jacobian(x, separation).astype(float), 2, axis=(-1, -2))
    clear = (sep.gap(separation, separated.logits(x)) > 0.01) & (J < 0.9)
    u = (rng.standard_normal(out.shape) * clear[..., None]).astype(dtype)
    got = pullback(u)
    truth = separated.implicit_gradients(
        fixed, x.key[:1], check.widen(dtype, h)["beta"], u.astype(fixed.dtype), separation=separation
    )
    tol = 1e-5 if dtype == np.float64 else 0.05  # the state that came to rest is off by some tol / (1 - J)
    for name in ("patterns", "beta"):
        a, b = getattr(got, name), getattr(truth, name)
        assert a.shape == b.shape == np.shape(h[name]) and a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * max(1.0, np.abs(b).max()), err_msg=name)
    assert (got.state == 0).all()
