"""Gradients of hopfield.energy and hopfield.retrieve, each by name, by four witnesses that share no code:
the closed forms of the oracle, finite differences, the adjoint identity, torch autograd."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests.reference import hopfield as ref

NAMES = ["state", "patterns", "beta", "values"]
# Central differences at h and 2 h, extrapolated, err by h^4 (times a fifth derivative, which is large after several
# steps) and by eps / h. A small h leaves the second: a sum of some dozen numbers, each off by some eps.
H = acc.eps(np.float64) ** 0.25
FD_TOL = 2000 * acc.eps(np.float64) / H


def operands(rng, dtype=np.float64, n=4, N=7, d=5, e=3, batch=(), beta=0.7):
    return {
        "state": rng.standard_normal((*batch, n, d)).astype(dtype),
        "patterns": rng.standard_normal((*batch, N, d)).astype(dtype),
        "beta": np.asarray(beta, dtype),
        "values": None if e is None else rng.standard_normal((*batch, N, e)).astype(dtype),
    }


def arguments(function, o, more):
    values = {"values": o["values"]} if function is rc.hopfield.retrieve and o["values"] is not None else {}
    return {"state": o["state"], "patterns": o["patterns"], "beta": o["beta"]} | values | more


def call(function, o, **more):
    return function(**arguments(function, o, more))


def vjp(function, o, **more):
    return rc.vjp(function, **arguments(function, o, more))


def check_fields(gradients, function, o):
    """One field for each operand, in the order of the signature, each with its operand's shape and type."""
    assert isinstance(gradients, tuple)
    assert list(gradients._fields) == [k for k in NAMES if k in arguments(function, o, {})]
    for name in gradients._fields:
        g = np.asarray(getattr(gradients, name))
        assert g.shape == np.shape(o[name]), name
        assert g.dtype == o["state"].dtype, name


def within(got, expected, bound):
    for name in got._fields:
        error = np.abs(getattr(got, name) - getattr(expected, name))
        assert (error <= getattr(bound, name)).all(), f"d_{name}: {error.max()}"


def check_oracle(dtype, o, steps=1, mask=None, rng=None):
    out, pullback = vjp(rc.hopfield.retrieve, o, steps=steps, mask=mask)
    d_out = rng.standard_normal(out.shape).astype(dtype)
    got = pullback(d_out)
    check_fields(got, rc.hopfield.retrieve, o)
    q, x, beta, v, g = acc.widen(dtype, *o.values(), d_out)
    expected = ref.retrieve_gradients(q, x, beta, g, v, steps, mask)
    bound = acc.gradient_bounds(dtype, q, x, beta, g, v, steps, mask)
    within(got, expected, bound)


def check_energy_oracle(dtype, o, mask=None, rng=None):
    out, pullback = vjp(rc.hopfield.energy, o, mask=mask)
    d_out = rng.standard_normal(out.shape).astype(dtype)
    got = pullback(d_out)
    check_fields(got, rc.hopfield.energy, o)
    q, x, beta, g = acc.widen(dtype, o["state"], o["patterns"], o["beta"], d_out)
    expected = ref.energy_gradients(q, x, beta, g, mask)
    bound = acc.energy_gradient_bounds(dtype, q, x, beta, g, mask)
    within(got, expected, bound)


# ------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("e", [None, 1, 3])
@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0])
def test_retrieve_against_the_oracle(rng, dtype, steps, e, beta):
    check_oracle(dtype, operands(rng, dtype, e=e, beta=beta), steps, rng=rng)


@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0, 40.0])
def test_energy_against_the_oracle(rng, dtype, beta):
    check_energy_oracle(dtype, operands(rng, dtype, beta=beta), rng=rng)


def masks(rng, n, N):
    ragged = rng.random((n, N)) < 0.5
    ragged[1] = False
    return {"shared": np.arange(N) % 3 != 1, "per query": ragged, "one": np.arange(N) == 2, "none": np.zeros(N, bool)}


@pytest.mark.parametrize("form", ["shared", "per query", "one", "none"])
@pytest.mark.parametrize("e", [None, 3])
def test_masks(rng, dtype, form, e):
    mask = masks(rng, 4, 7)[form]
    for steps in (1, 3):
        check_oracle(dtype, operands(rng, dtype, e=e), steps, mask, rng)
    check_energy_oracle(dtype, operands(rng, dtype), mask, rng)


@pytest.mark.parametrize("e", [None, 2])
def test_what_is_masked_out_has_zero_gradients(rng, dtype, e):
    o = operands(rng, dtype, e=e)
    mask = np.ones((4, 7), bool)
    mask[1] = False  # a row that admits nothing
    mask[:, 3] = False  # a pattern that no row admits
    for function, steps in (
        (rc.hopfield.retrieve, {"steps": 1}),
        (rc.hopfield.retrieve, {"steps": 3}),
        (rc.hopfield.energy, {}),
    ):
        out, pullback = vjp(function, o, mask=mask, **steps)
        g = pullback(np.ones_like(out))
        assert (g.state[1] == 0).all() and (g.patterns[3] == 0).all()
        assert (g.state[0] != 0).any() and (g.patterns[2] != 0).any()
        assert all(np.isfinite(a).all() for a in g)
        if "values" in g._fields:
            assert (g.values[3] == 0).all()


@pytest.mark.parametrize("n, N", [(0, 5), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("e", [None, 2])
def test_empty_and_single(rng, dtype, n, N, e):
    o = operands(rng, dtype, n=n, N=N, e=e)
    for steps in (1, 2):
        check_oracle(dtype, o, steps, rng=rng)
    check_energy_oracle(dtype, o, rng=rng)


@pytest.mark.parametrize("n, N, d", [(1, 500, 16), (200, 3, 7), (65, 193, 33), (130, 385, 64), (3, 3000, 100)])
def test_larger_problems(rng, dtype, n, N, d):
    o = operands(rng, dtype, n, N, d, e=None, beta=1 / np.sqrt(d))
    check_oracle(dtype, o, 1, rng=rng)
    check_energy_oracle(dtype, o, rng=rng)
    o = operands(rng, dtype, n, N, d, e=9, beta=1 / np.sqrt(d))
    check_oracle(dtype, o, 2, rng=rng)


# ---------------------------------------------------------------------------------- broadcasting and arguments

BROADCASTS = [  # leading axes of state, patterns, values; shape of beta
    ((2, 3), (2, 3), (2, 3), ()), ((2, 3), (), (), ()), ((), (2, 3), (2, 3), ()), ((2, 1), (3,), (2, 3), (3,)),
    ((2, 3), (1, 3), (2, 1), (2, 1)), ((3,), (2, 1), (), (2, 3)), ((2, 3), (), (2, 3), (1,)), ((), (), (4,), ()),
]  # fmt: skip


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_broadcast_axes_are_summed(rng, dtype, shapes, steps):
    lead_q, lead_x, lead_v, lead_beta = shapes
    o = {
        "state": rng.standard_normal((*lead_q, 4, 5)).astype(dtype),
        "patterns": rng.standard_normal((*lead_x, 7, 5)).astype(dtype),
        "beta": rng.uniform(0.3, 1.5, lead_beta).astype(dtype),
        "values": rng.standard_normal((*lead_v, 7, 3)).astype(dtype),
    }
    check_oracle(dtype, o, steps, rng=rng)
    if lead_v != (4,):
        check_oracle(dtype, o | {"values": None}, steps, rng=rng)
        check_energy_oracle(dtype, o, rng=rng)


def test_arguments_by_name(rng):
    o = operands(rng)
    out, pullback = rc.vjp(rc.hopfield.retrieve, values=o["values"], patterns=o["patterns"], beta=0.7, state=o["state"])
    same, pull_same = rc.vjp(rc.hopfield.retrieve, o["state"], o["patterns"], beta=0.7, values=o["values"])
    np.testing.assert_array_equal(out, same)
    a, b = pullback(np.ones_like(out)), pull_same(np.ones_like(out))
    assert a._fields == b._fields == tuple(NAMES)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_forward_result_is_the_same(rng, dtype, same_bits):
    o = operands(rng, dtype)
    for steps in (1, 3):
        same_bits(vjp(rc.hopfield.retrieve, o, steps=steps)[0], call(rc.hopfield.retrieve, o, steps=steps))
    same_bits(vjp(rc.hopfield.energy, o)[0], call(rc.hopfield.energy, o))


def test_a_pullback_may_be_called_again_and_is_linear(rng, dtype, same_bits):
    o = operands(rng, dtype)
    out, pullback = vjp(rc.hopfield.retrieve, o, steps=2)
    u = rng.standard_normal(out.shape).astype(dtype)
    first, doubled, again = pullback(u), pullback(2 * u), pullback(u)
    same_bits(first, again)
    for a, b in zip(first, doubled, strict=True):
        np.testing.assert_array_equal(2 * np.asarray(a), b)  # a factor 2 rounds nothing
    assert all((np.asarray(a) == 0).all() for a in pullback(np.zeros_like(u)))


def test_strided_cotangents(rng, dtype, same_bits):
    o = operands(rng, dtype)
    out, pullback = vjp(rc.hopfield.retrieve, o)
    u = rng.standard_normal(out.shape).astype(dtype)
    plain = pullback(u)
    same_bits(pullback(np.asfortranarray(u)), plain)
    same_bits(pullback(u[::-1, ::-1].copy()[::-1, ::-1]), plain)
    one = pullback(np.broadcast_to(np.ones((), dtype), out.shape))
    same_bits(one, pullback(np.ones_like(out)))


def test_integers_have_float64_gradients():
    out, pullback = rc.vjp(rc.hopfield.retrieve, [[1, 0]], [[1, 2], [0, 1]], beta=1)
    g = pullback(np.ones_like(out))
    assert all(np.asarray(a).dtype == np.float64 for a in g)
    assert g.state.shape == (1, 2) and g.patterns.shape == (2, 2) and np.shape(g.beta) == ()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_patterns_stored_in_half_precision(rng, name):
    half = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    o = operands(rng, np.float32, e=None)
    stored = o["patterns"].astype(half)
    o["patterns"] = stored.astype(np.float32)
    out, pullback = rc.vjp(rc.hopfield.retrieve, o["state"], stored, beta=0.7)
    u = rng.standard_normal(out.shape).astype(np.float32)
    got, exact = pullback(u), vjp(rc.hopfield.retrieve, o)[1](u)
    bound = acc.gradient_bounds(np.float32, *acc.widen(np.float32, o["state"], o["patterns"], o["beta"], u))
    assert got.patterns.shape == stored.shape
    for k in ("state", "beta"):
        assert (np.abs(getattr(got, k) - getattr(exact, k)) <= 2 * getattr(bound, k)).all()
    # d_patterns may come in float32 or in the type of the patterns
    rounding = 2.0 ** -(10 if name == "float16" else 7) * np.abs(exact.patterns) + 2 * bound.patterns + 2.0**-24
    assert (np.abs(got.patterns.astype(np.float32) - exact.patterns) <= rounding).all()


# ----------------------------------------------------------------------------------------- finite differences


def slope(function):
    """The derivative of function(t) at t = 0."""
    near, far = ((function(h) - function(-h)) / (2 * h) for h in (H, 2 * H))
    return (4 * near - far) / 3


def scalar(function, o, u, **more):
    out = np.asarray(call(function, o, **more), np.longdouble)
    return (u * np.where(np.isfinite(out), out, 0)).sum()


def check_difference(function, o, name, rng, constant=lambda o: 0.0, **more):
    out, pullback = vjp(function, o, **more)
    u = rng.standard_normal(out.shape)
    u = np.where(np.isfinite(out), u, 0)
    got = np.asarray(getattr(pullback(u), name))
    a, expected = o[name], np.zeros(o[name].shape)
    for i in np.ndindex(a.shape):

        def along(t, i=i):
            moved = a.copy()
            moved[i] += t
            changed = o | {name: moved}
            return scalar(function, changed, u, **more) - (u * constant(changed)).sum()

        expected[i] = slope(along)
    scale = max(1.0, np.abs(expected).max(initial=0), np.abs(out[np.isfinite(out)]).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=FD_TOL * scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("form", [None, "shared", "per query"])
def test_retrieve_by_finite_differences(rng, name, steps, form):
    mask = None if form is None else masks(rng, 4, 7)[form]
    check_difference(rc.hopfield.retrieve, operands(rng), name, rng, steps=steps, mask=mask)


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("steps", [1, 3])
def test_retrieve_without_values_by_finite_differences(rng, name, steps):
    check_difference(rc.hopfield.retrieve, operands(rng, e=None), name, rng, steps=steps)


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("form", [None, "shared", "per query"])
def test_energy_by_finite_differences(rng, name, form):
    mask = None if form is None else masks(rng, 4, 7)[form]

    def half_M2(o):  # a constant with respect to the patterns, by definition
        keep = np.broadcast_to(True if mask is None else mask, (4, 7))
        return np.where(keep, (o["patterns"] ** 2).sum(-1), 0).max(-1) / 2 if name == "patterns" else 0.0

    check_difference(rc.hopfield.energy, operands(rng), name, rng, constant=half_M2, mask=mask)


@pytest.mark.parametrize("function", ["retrieve", "energy"])
def test_beta_of_every_head_by_finite_differences(rng, function):
    o = operands(rng, batch=(2, 3), beta=[0.4, 0.9, 1.7])
    check_difference(getattr(rc.hopfield, function), o, "beta", rng)


# ------------------------------------------------------------------------------------------- adjoint identity


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_adjoint_identity(rng, name, steps):
    """<J u, w> = <u, J^T w>: J u from two evaluations along a direction, J^T w from the pullback."""
    o = operands(rng, n=20, N=50, d=12, e=8, beta=0.4)
    out, pullback = vjp(rc.hopfield.retrieve, o, steps=steps)
    w, u = rng.standard_normal(out.shape), rng.standard_normal(o[name].shape)
    u /= max(1.0, np.linalg.norm(u))
    left = (slope(lambda t: call(rc.hopfield.retrieve, o | {name: o[name] + t * u}, steps=steps)) * w).sum()
    right = (u * getattr(pullback(w), name)).sum()
    assert abs(left - right) <= FD_TOL * np.linalg.norm(w) * np.sqrt(out.size)


def test_one_update_is_its_own_adjoint(rng):
    """The Jacobian of the update is symmetric: <J u, w> = <J w, u>, both from the pullback alone."""
    o = operands(rng, n=9, N=30, d=10, e=None, beta=0.6)
    _, pullback = vjp(rc.hopfield.retrieve, o)
    u, w = rng.standard_normal((2, 9, 10))
    left, right = (w * pullback(u).state).sum(-1), (u * pullback(w).state).sum(-1)
    J = np.linalg.norm(ref.jacobian(o["state"], o["patterns"], 0.6), 2, axis=(-1, -2))
    size = np.linalg.norm(u, axis=-1) * np.linalg.norm(w, axis=-1) * (1 + J)
    assert (np.abs(left - right) <= 256 * acc.eps(np.float64) * size).all()


def test_energy_gradient_is_state_minus_update(rng, dtype):
    o = operands(rng, dtype, n=9, N=30, d=10, e=None)
    energy, pullback = vjp(rc.hopfield.energy, o)
    g = pullback(np.ones_like(energy))
    update = rc.hopfield.retrieve(o["state"], o["patterns"], beta=o["beta"])
    q, x, beta = acc.widen(dtype, o["state"], o["patterns"], o["beta"])
    unit = acc.read_unit(dtype, q, x, beta)[:, None] + acc.eps(dtype) * np.abs(q)
    assert (np.abs(g.state - (o["state"] - update)) <= 2 * acc.C_READ * unit).all()
    # d_patterns = -p^T q: contracted with the patterns it is -(X p) . q
    left, right = (g.patterns * o["patterns"]).sum(), -(update * o["state"]).sum()
    assert abs(left - right) <= 2 * acc.C_READ * np.sum(unit * np.abs(q)) * 10


# ----------------------------------------------------------------------------------------------------- torch


def torch_retrieve(torch, q, x, beta, v, steps, mask):
    for t in range(steps):
        z = beta * (q @ x.transpose(-1, -2))
        if mask is not None:
            z = z.masked_fill(~mask, -torch.inf)
        q = torch.softmax(z, -1) @ (v if v is not None and t == steps - 1 else x)
    return q


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("e", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_retrieve_against_torch_autograd(rng, steps, e, masked):
    torch = pytest.importorskip("torch")
    o = operands(rng, n=17, N=40, d=12, e=e, batch=(2, 3), beta=0.5)
    o["patterns"] = o["patterns"][:1, :, :, :]
    mask = rng.random((17, 40)) < 0.6 if masked else None
    out, pullback = vjp(rc.hopfield.retrieve, o, steps=steps, mask=mask)
    u = rng.standard_normal(out.shape)
    got = pullback(u)
    leaves = {k: None if a is None else torch.tensor(a, requires_grad=True) for k, a in o.items()}
    theirs = torch_retrieve(
        torch, leaves["state"], leaves["patterns"], leaves["beta"], leaves["values"], steps,
        None if mask is None else torch.from_numpy(mask),
    )  # fmt: skip
    theirs.backward(torch.from_numpy(u))
    wide = acc.widen(np.float64, *o.values())
    bound = acc.gradient_bounds(np.float64, *wide[:3], np.asarray(u, np.longdouble), wide[3], steps, mask)
    path = acc.path_bound(np.float64, ref.spread(*wide, mask), *wide[1:3], steps, wide[3], mask)
    assert (np.linalg.norm(out - theirs.detach().numpy(), axis=-1) <= 2 * path).all()
    grads = type(got)(*(leaves[name].grad.numpy() for name in got._fields))
    within(got, grads, type(bound)(*(None if a is None else 2 * a for a in bound)))


def test_energy_against_torch_autograd(rng):
    torch = pytest.importorskip("torch")
    o = operands(rng, n=17, N=40, d=12, e=None, batch=(2, 3), beta=[0.3, 0.6, 1.2])
    q, x, beta = (torch.tensor(o[k], requires_grad=True) for k in NAMES[:3])
    b = beta[:, None]
    lse = torch.logsumexp(b[..., None] * (q @ x.transpose(-1, -2)), -1) / b
    M2 = (x.detach() ** 2).sum(-1).amax(-1)[..., None]
    # log N / beta is differentiated with respect to beta
    theirs = -lse + (q**2).sum(-1) / 2 + np.log(40) / b + M2 / 2
    energy, pullback = vjp(rc.hopfield.energy, o)
    u = rng.standard_normal(energy.shape)
    got = pullback(u)
    theirs.backward(torch.from_numpy(u))
    wide = acc.widen(np.float64, *(o[k] for k in NAMES[:3]), u)
    unit = acc.energy_unit(np.float64, *wide[:3])
    assert (np.abs(energy - theirs.detach().numpy()) <= 2 * acc.C_ENERGY * unit).all()
    bound = acc.energy_gradient_bounds(np.float64, *wide)
    grads = type(got)(*(leaf.grad.numpy() for leaf in (q, x, beta)))
    within(got, grads, type(bound)(*(2 * a for a in bound)))
