"""Gradients of attention.attend, each by name, by four witnesses that share no code: the closed forms of the
oracle, finite differences, the adjoint identity, torch autograd."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests.reference import attention as ref

NAMES = ["query", "key", "value", "scale", "bias", "sink"]
CAUSAL = [False, True, "top-left"]
# Central differences of a float64 function that errs by some eps: h^2 + eps / h is least at h = eps^(1/3).
H = acc.eps(np.float64) ** (1 / 3)
FD_TOL = 64 * H**2


def operands(rng, dtype=np.float64, n=4, m=7, d=5, e=3, batch=(), **more):
    o = {
        "query": rng.standard_normal((*batch, n, d)).astype(dtype),
        "key": rng.standard_normal((*batch, m, d)).astype(dtype),
        "value": rng.standard_normal((*batch, m, e)).astype(dtype),
    }
    return o | more


def all_six(rng, dtype=np.float64, n=4, m=7, **more):
    o = operands(rng, dtype, n, m, **more)
    return o | {
        "scale": np.array(0.7, dtype),
        "bias": rng.standard_normal((n, m)).astype(dtype),
        "sink": np.array(0.4, dtype),
    }


def split(o):
    return [o[k] for k in NAMES[:3]], {k: a for k, a in o.items() if k not in NAMES[:3]}


def attend(o):
    arrays, more = split(o)
    return rc.attention.attend(*arrays, **more)


def vjp(o):
    arrays, more = split(o)
    return rc.vjp(rc.attention.attend, *arrays, **more)


def widen(dtype, o, judge=True):
    kind = acc.judge(dtype) if judge else np.float64
    return {k: np.asarray(a, kind) if k in (*NAMES, "d_out") and a is not None else a for k, a in o.items()}


def check_fields(gradients, o):
    """One field for each operand, in the order of the signature, each with its operand's shape and type."""
    assert isinstance(gradients, tuple)
    assert list(gradients._fields) == [k for k in NAMES if o.get(k) is not None]
    for name in gradients._fields:
        g = np.asarray(getattr(gradients, name))
        assert g.shape == np.shape(o[name]), name
        assert g.dtype == o["query"].dtype, name


def check(dtype, o, rng, judge=True):
    """Every gradient within c * eps of the magnitudes behind it; judge=False: by float64, which rounds itself."""
    out, pullback = vjp(o)
    d_out = rng.standard_normal(out.shape).astype(dtype)
    got = pullback(d_out)
    check_fields(got, o)
    wide = widen(dtype, o | {"d_out": d_out}, judge)
    expected, size = (ref.gradients(absolute=a, **wide) for a in (False, True))
    unit = acc.C_GRADIENT * acc.eps(dtype) * (1 if judge else 2)
    floor = acc.underflow(dtype, d_out, *(o[k] for k in NAMES[:3]))
    for name in got._fields:
        error, bound = np.abs(getattr(got, name) - getattr(expected, name)), unit * getattr(size, name) + floor
        assert (error <= bound).all(), f"d_{name}: {error.max()}, {(error / bound).max()} times the bound"
    return got


# ------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("scale", [None, 0.05, 0.7, 3.0, -1.0, 0.0])
@pytest.mark.parametrize("e", [1, 3, 9])
@pytest.mark.parametrize("causal", CAUSAL)
def test_against_the_oracle(rng, dtype, scale, e, causal):
    given = {} if scale is None else {"scale": np.array(scale, dtype)}
    check(dtype, operands(rng, dtype, e=e, causal=causal) | given, rng)
    check(dtype, all_six(rng, dtype, e=e, causal=causal) | given, rng)


def masks(rng, n, m):
    ragged = rng.random((n, m)) < 0.5
    ragged[1] = False
    return {"per key": np.arange(m) % 3 != 1, "dense": ragged, "one": np.arange(m) == 2, "none": np.zeros(m, bool)}


@pytest.mark.parametrize("form", ["per key", "dense", "one", "none"])
@pytest.mark.parametrize("causal", CAUSAL)
def test_masks(rng, dtype, form, causal):
    for n, m in ((4, 7), (7, 4), (53, 101)):
        mask = masks(rng, n, m)[form]
        check(dtype, operands(rng, dtype, n, m, mask=mask, causal=causal), rng)
        check(dtype, all_six(rng, dtype, n, m, mask=mask, causal=causal), rng)


BIASES = [(7,), (1,), (1, 7), (4, 1), (4, 7), (3, 1, 7), (3, 4, 7), (2, 1, 4, 7), (2, 3, 4, 7), (1, 3, 4, 1)]


@pytest.mark.parametrize("shape", BIASES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_biases_of_every_shape(rng, dtype, shape, causal):
    o = operands(rng, dtype, batch=(2, 3), causal=causal)
    bias = rng.standard_normal(shape).astype(dtype)
    check(dtype, o | {"bias": bias}, rng)
    bias[rng.random(shape) < 0.3] = -np.inf
    got = check(dtype, o | {"bias": bias, "sink": rng.standard_normal(3).astype(dtype)}, rng)
    assert (got.bias[np.isneginf(bias)] == 0).all()


@pytest.mark.parametrize("hide", ["mask", "bias", "both"])
@pytest.mark.parametrize("sink", [None, 0.3])
def test_what_is_hidden_has_zero_gradients(rng, dtype, hide, sink):
    keep = np.ones((4, 7), bool)
    keep[1] = False  # a row that admits nothing
    keep[:, 3] = False  # a key that no row admits
    o = all_six(rng, dtype) | {"sink": sink}
    o["key"][3], o["value"][3] = np.nan, np.inf
    if hide != "bias":
        o["mask"] = keep
    if hide != "mask":
        o["bias"] = np.where(keep, o["bias"], -np.inf).astype(dtype)
    out, pullback = vjp(o)
    g = pullback(np.ones_like(out))
    assert all(np.isfinite(a).all() for a in g) and np.isfinite(out).all()
    assert (g.query[1] == 0).all() and (g.key[3] == 0).all() and (g.value[3] == 0).all() and (g.bias[~keep] == 0).all()
    assert (g.query[0] != 0).any() and (g.key[2] != 0).any() and (g.value[2] != 0).any() and g.bias[0, 0] != 0


def test_rows_before_the_first_key_have_zero_gradients(rng, dtype):
    got = check(dtype, all_six(rng, dtype, n=60, m=9, causal=True), rng)
    assert (got.query[:51] == 0).all() and (got.bias[:51] == 0).all() and (got.query[52:] != 0).any()
    got = check(dtype, all_six(rng, dtype, n=9, m=60, causal="top-left"), rng)
    assert (got.key[9:] == 0).all() and (got.value[9:] == 0).all() and (got.bias[:, 9:] == 0).all()


@pytest.mark.parametrize("n, m", [(0, 5), (3, 0), (0, 0), (1, 1), (5, 1)])
def test_empty_and_single(rng, dtype, n, m):
    for causal in CAUSAL:
        check(dtype, operands(rng, dtype, n, m, causal=causal), rng)
        check(dtype, all_six(rng, dtype, n, m, causal=causal), rng)


@pytest.mark.parametrize(
    "n, m, d, e",
    [(1, 500, 16, 9), (200, 3, 7, 64), (65, 193, 33, 16), (130, 385, 64, 100), (385, 130, 24, 8), (25, 1200, 100, 1)],
)
def test_larger_problems(rng, dtype, n, m, d, e):
    for causal in CAUSAL:
        check(dtype, operands(rng, dtype, n, m, d, e, causal=causal), rng, judge=False)
    check(dtype, all_six(rng, dtype, n, m, d=d, e=e, causal=True, mask=rng.random((n, m)) < 0.8), rng, judge=False)


def test_across_blocks_tiles_and_segments(rng, dtype):
    n, m = 400, 2500
    o = operands(rng, dtype, n, m, 32, 24, causal=True, mask=np.arange(m) % 7 != 3)
    check(dtype, o | {"sink": np.array(0.5, dtype), "bias": rng.standard_normal(m).astype(dtype)}, rng, judge=False)
    check(dtype, operands(rng, dtype, m, n, 16, 8, causal="top-left"), rng, judge=False)


# ---------------------------------------------------------------------------------- broadcasting and arguments

BROADCASTS = [  # leading axes of query, key, value; shapes of scale and sink
    ((2, 3), (2, 3), (2, 3), (), ()), ((2, 3), (), (), (), (3,)), ((), (2, 3), (2, 3), (), (2, 1)), ((2, 1), (3,), (2, 3), (3,), (2, 3)),
    ((2, 3), (1, 3), (2, 1), (2, 1), (1,)), ((2, 3), (), (2, 3), (1,), (1, 3)), ((), (), (4,), (), ()), ((2, 3), (2, 1), (2, 1), (3,), ()),
    ((4,), (2,), (2,), (4,), ()), ((2, 6), (2, 3), (2, 3), (), (6,)), ((2, 6), (2,), (2,), (2, 1), ()), ((2, 6), (1, 2), (2, 2), (6,), (2, 6)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_broadcast_and_grouped_axes_are_summed(rng, dtype, shapes, causal):
    lead_q, lead_k, lead_v, scale, sink = shapes
    o = {
        "query": rng.standard_normal((*lead_q, 4, 5)).astype(dtype),
        "key": rng.standard_normal((*lead_k, 7, 5)).astype(dtype),
        "value": rng.standard_normal((*lead_v, 7, 3)).astype(dtype),
        "scale": rng.uniform(0.3, 1.5, scale).astype(dtype),
        "bias": rng.standard_normal(7).astype(dtype),
        "sink": rng.standard_normal(sink).astype(dtype),
        "causal": causal,
    }
    check(dtype, o, rng)
    check(dtype, o | {"scale": None, "bias": None, "sink": None}, rng)


def test_grouped_queries_of_some_size(rng, dtype):
    o = operands(rng, dtype, 70, 130, 16, 8, (2, 6), causal=True)
    o |= {"key": o["key"][:, :2], "value": o["value"][:, :2], "bias": rng.standard_normal((6, 1, 130)).astype(dtype)}
    check(dtype, o, rng, judge=False)


def test_fields_are_those_that_were_given(rng):
    o, given = operands(rng), all_six(rng)
    for names in (
        [],
        ["scale"],
        ["bias"],
        ["sink"],
        ["sink", "scale"],
        ["bias", "scale"],
        ["sink", "bias"],
        ["sink", "bias", "scale"],
    ):
        check(np.float64, o | {k: given[k] for k in names}, rng)
    backwards = dict(reversed(list(given.items())))
    out, pullback = rc.vjp(rc.attention.attend, **backwards)
    plain, pull = vjp(given)
    np.testing.assert_array_equal(out, plain)
    a, b = pullback(np.ones_like(out)), pull(np.ones_like(out))
    assert a._fields == b._fields == tuple(NAMES)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_forward_result_is_the_same(rng, dtype, same_bits):
    for o in (operands(rng, dtype), all_six(rng, dtype, causal=True), operands(rng, dtype, 100, 400, causal=True)):
        same_bits(vjp(o)[0], attend(o))


def test_a_pullback_may_be_called_again_and_is_linear(rng, dtype, same_bits):
    out, pullback = vjp(all_six(rng, dtype, 30, 60))
    u = rng.standard_normal(out.shape).astype(dtype)
    first, doubled, again = pullback(u), pullback(2 * u), pullback(u)
    same_bits(first, again)
    for a, b in zip(first, doubled, strict=True):
        np.testing.assert_array_equal(2 * np.asarray(a), b)  # a factor 2 rounds nothing
    assert all((np.asarray(a) == 0).all() for a in pullback(np.zeros_like(u)))


def test_strided_cotangents(rng, dtype, same_bits):
    out, pullback = vjp(all_six(rng, dtype))
    u = rng.standard_normal(out.shape).astype(dtype)
    plain = pullback(u)
    same_bits(pullback(np.asfortranarray(u)), plain)
    same_bits(pullback(u[::-1, ::-1].copy()[::-1, ::-1]), plain)
    same_bits(pullback(np.broadcast_to(np.ones((), dtype), out.shape)), pullback(np.ones_like(out)))


def test_integers_have_float64_gradients():
    out, pullback = rc.vjp(rc.attention.attend, [[1, 0]], [[1, 2], [0, 1]], [[1], [3]], scale=1, sink=0)
    g = pullback(np.ones_like(out))
    assert g._fields == ("query", "key", "value", "scale", "sink")
    assert all(np.asarray(a).dtype == np.float64 for a in g)
    assert g.query.shape == (1, 2) and g.key.shape == (2, 2) and np.shape(g.scale) == np.shape(g.sink) == ()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_keys_and_values_stored_in_half_precision(rng, name):
    half = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    o = operands(rng, np.float32, 20, 60, 16, 8, scale=np.array(0.3, np.float32))
    stored = {k: o[k].astype(half) for k in ("key", "value")}
    exact = o | {k: a.astype(np.float32) for k, a in stored.items()}
    out, pullback = vjp(o | stored)
    u = rng.standard_normal(out.shape).astype(np.float32)
    got = pullback(u)
    wide = widen(np.float32, exact | {"d_out": u})
    expected, size = (ref.gradients(absolute=a, **wide) for a in (False, True))
    for k in got._fields:
        assert getattr(got, k).dtype == np.float32
        error = np.abs(getattr(got, k) - getattr(expected, k))
        assert (error <= acc.C_GRADIENT * acc.eps(np.float32) * getattr(size, k) + 1e-37).all(), k


# ------------------------------------------------------------------------------------------ finite differences


def check_difference(o, name, rng):
    out, pullback = vjp(o)
    u = rng.standard_normal(out.shape)
    got, a = np.asarray(getattr(pullback(u), name)), o[name]
    expected = np.zeros(a.shape)
    for i in np.ndindex(a.shape):
        if not np.isfinite(a[i]):
            continue
        ends = []
        for sign in (1, -1):
            moved = a.copy()
            moved[i] += sign * H
            ends.append((u * attend(o | {name: moved}).astype(np.longdouble)).sum())
        expected[i] = (ends[0] - ends[1]) / (2 * H)
    scale = max(1.0, np.abs(expected).max(initial=0), np.abs(out).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=FD_TOL * scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("form", [None, "per key", "dense"])
def test_finite_differences(rng, name, causal, form):
    o = all_six(rng, causal=causal, mask=None if form is None else masks(rng, 4, 7)[form])
    o["bias"][2, 4] = -np.inf
    check_difference(o, name, rng)
    if name in NAMES[:3]:
        check_difference(o | {"scale": None, "bias": None, "sink": None}, name, rng)


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences_over_groups(rng, name):
    o = operands(rng, n=3, m=4, d=2, e=2, batch=(2, 4), causal=True)
    o |= {"key": o["key"][:, :2], "value": o["value"][:1, :2], "bias": rng.standard_normal((2, 1, 1, 4))}
    o |= {"scale": np.array([0.4, 0.9, -0.7, 1.7]), "sink": rng.standard_normal((2, 1))}
    check_difference(o, name, rng)


# ------------------------------------------------------------------------------------------- adjoint identity


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("name", NAMES)
def test_adjoint_identity(rng, name, causal):
    """<J u, w> = <u, J^T w>: J u from two evaluations along a direction, J^T w from the pullback."""
    o = all_six(rng, n=60, m=210, d=12, e=8, causal=causal) | {"scale": np.array(0.4)}
    out, pullback = vjp(o)
    w, u = rng.standard_normal(out.shape), rng.standard_normal(o[name].shape)
    u /= max(1.0, np.linalg.norm(u))
    ends = [attend(o | {name: o[name] + s * H * u}) for s in (1, -1)]
    left = ((ends[0] - ends[1]) / (2 * H) * w).sum()
    right = (u * getattr(pullback(w), name)).sum()
    assert abs(left - right) <= FD_TOL * np.linalg.norm(w) * np.sqrt(out.size)


def test_a_common_shift_of_all_logits_has_no_gradient(rng, dtype):
    """Over each row the gradients of the biases and of the sink sum to nothing."""
    o = all_six(rng, dtype, 60, 210)
    for sink in (None, np.array(0.4, dtype)):
        got = check(dtype, o | {"sink": sink}, rng, judge=False)
        rest = got.bias.astype(np.float64).sum() + (0 if sink is None else got.sink)
        assert abs(rest) <= 64 * acc.eps(dtype) * np.abs(got.bias).sum()


# ----------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("causal", [False, "top-left"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_torch_autograd_agrees(rng, causal, masked, heads):
    torch = pytest.importorskip("torch")
    o = operands(rng, n=17, m=40, d=12, e=7, batch=(2, 6), causal=causal)
    o |= {"key": o["key"][:, :heads], "value": o["value"][:, :heads], "bias": rng.standard_normal((6, 1, 40))}
    o |= {"scale": np.array([0.3, 0.6, 1.2, 0.1, 0.5, -0.4]), "sink": rng.standard_normal((2, 1))}
    keep = rng.random((17, 40)) < 0.6 if masked else np.ones((17, 40), bool)
    keep[3] = not masked
    out, pullback = vjp(o | {"mask": keep if masked else None})
    u = rng.standard_normal(out.shape)
    got = pullback(u)
    leaves = {k: torch.tensor(o[k], requires_grad=True) for k in NAMES}
    key, value = (leaves[k].repeat_interleave(6 // heads, dim=1) for k in ("key", "value"))
    s = leaves["scale"][:, None, None] * (leaves["query"] @ key.transpose(-1, -2)) + leaves["bias"]
    s = s.masked_fill(~torch.from_numpy(np.tril(keep) if causal else keep), -torch.inf)
    c = leaves["sink"][..., None, None].expand(2, 6, 17, 1)
    theirs = torch.softmax(torch.cat([s, c], -1), -1)[..., :-1] @ value
    theirs.backward(torch.from_numpy(u))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    size = ref.gradients(absolute=True, **widen(np.float64, o | {"mask": keep, "d_out": u}, judge=False))
    for name in NAMES:
        error = np.abs(getattr(got, name) - leaves[name].grad.numpy())
        assert (error <= 2 * acc.C_GRADIENT * acc.eps(np.float64) * getattr(size, name)).all(), (
            f"d_{name}: {error.max()}"
        )


def test_return_lse_has_no_gradient(rng):
    with pytest.raises(ValueError, match=r"attention\.attend.*return_lse"):
        vjp(operands(rng, return_lse=True))
