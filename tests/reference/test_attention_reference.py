"""The oracle's own witnesses: loops over the definition, identities, finite differences, torch."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import attention as ref  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
# A central difference with step h errs by h^2 (truncation) and eps / h (rounding): h = eps^(1/3) balances them.
STEP = EPS ** (1 / 3)
DIFFERENCE_TOL = 1e3 * STEP**2
NAMES = ref.Gradients._fields


def operands(seed, n=3, m=5, d=4, e=2, batch=(), **more):
    rng = np.random.default_rng(seed)
    o = {k: LONG(rng.standard_normal((*batch, *own))) for k, own in zip(NAMES, ((n, d), (m, d), (m, e)), strict=False)}
    return o | more, rng


def agree(a, b, tol=16 * EPS):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0))))


def masks(rng, n, m):
    ragged = rng.random((n, m)) < 0.6
    ragged[0] = False
    return {"none": None, "shared": np.arange(m) != 1, "per row, first row empty": ragged, "empty": np.zeros(m, bool)}


# ---------------------------------------------------------------------------------------------- the definition


def by_loops(query, key, value, scale=None, causal=False, mask=None, bias=None, sink=None):
    """One head, one entry at a time; every sum is written out and nothing is subtracted for safety."""
    (n, d), (m, e) = query.shape, value.shape
    scale = 1 / np.sqrt(LONG(d)) if scale is None else scale
    mask = np.broadcast_to(True if mask is None else mask, (n, m))
    bias = np.broadcast_to(LONG(0) if bias is None else bias, (n, m))
    out, lse = np.zeros((n, e), LONG), np.full(n, -np.inf, LONG)
    for i in range(n):
        total = LONG(0) if sink is None else np.exp(LONG(sink))
        read = np.zeros(e, LONG)
        for j in range(m):
            late = (causal == "top-left" and j > i) or (causal is True and n - 1 - i > m - 1 - j)
            if late or not mask[i, j] or bias[i, j] == -np.inf:
                continue
            w = np.exp(scale * sum(query[i] * key[j]) + bias[i, j])
            total += w
            read += w * value[j]
        if total > 0:
            out[i], lse[i] = read / total, np.log(total)
    return ref.Attention(out, lse)


@pytest.mark.parametrize("case", ["none", "shared", "per row, first row empty", "empty"])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
@pytest.mark.parametrize("sink", [None, LONG(0.3)])
@pytest.mark.parametrize("n, m", [(3, 5), (5, 5), (6, 4), (0, 3), (3, 0)])
def test_attention_is_its_definition(case, causal, sink, n, m):
    o, rng = operands(0, n, m, causal=causal, sink=sink)
    mask = masks(rng, n, m)[case] if n else None
    bias = np.where(rng.random((n, m)) < 0.3, -np.inf, LONG(rng.standard_normal((n, m))))
    for more in ({"mask": mask}, {"mask": mask, "bias": bias}, {"mask": mask, "scale": LONG(-0.8)}):
        got, expected = ref.attend(**o, **more), by_loops(**o, **more)
        agree(got.out, expected.out)
        agree(got.lse, expected.lse)


def test_the_number_type_is_kept():
    for kind in (np.float64, LONG):
        o, rng = operands(1, bias=rng_bias(1, (3, 5)), sink=0.5)
        o = {k: np.asarray(a, kind) for k, a in o.items()}
        out, lse = ref.attend(**o)
        assert out.dtype == lse.dtype == kind
        assert all(g.dtype == kind for g in ref.gradients(d_out=np.ones_like(out), **o) if g is not None)


def rng_bias(seed, shape):
    return LONG(np.random.default_rng([seed, 7]).standard_normal(shape))


def test_grouped_queries_read_the_head_of_their_group():
    rng = np.random.default_rng(2)
    q, k, v = (LONG(rng.standard_normal(s)) for s in ((2, 6, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3)))
    out, lse = ref.attend(q, k, v, causal=True)
    for b in range(2):
        for h in range(6):
            alone = by_loops(q[b, h], k[b, h // 3], v[b, h // 3], causal=True)
            agree(out[b, h], alone.out)
            agree(lse[b, h], alone.lse)


def test_leading_axes_broadcast():
    rng = np.random.default_rng(3)
    q, k, v = (LONG(rng.standard_normal(s)) for s in ((2, 1, 3, 4), (3, 5, 4), (5, 2)))
    scale, sink, bias = LONG(rng.uniform(0.2, 1, 3)), LONG(rng.standard_normal((2, 1))), rng_bias(3, (2, 3, 1, 5))
    got = ref.attend(q, k, v, scale=scale, sink=sink, bias=bias)
    for b in range(2):
        for h in range(3):
            alone = by_loops(q[b, 0], k[h], v, scale[h], False, None, bias[b, h], sink[b, 0])
            agree(got.out[b, h], alone.out)
            agree(got.lse[b, h], alone.lse)


def test_what_no_row_admits_may_hold_anything():
    o, rng = operands(4)
    g = LONG(rng.standard_normal((3, 2)))
    mask = np.arange(5) != 2
    clean = ref.attend(**o, mask=mask), ref.gradients(**o, d_out=g, mask=mask)
    o["key"][2], o["value"][2] = np.nan, np.inf
    for a, b in zip(clean, (ref.attend(**o, mask=mask), ref.gradients(**o, d_out=g, mask=mask)), strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True) if x is not None)


# -------------------------------------------------------------------------------------------------- identities


def test_a_sink_is_a_key_that_reads_nothing():
    o, _ = operands(5)
    got = ref.attend(**o, sink=LONG(0.7))
    keys, values = (np.concatenate([a, np.zeros((1, a.shape[1]), LONG)]) for a in (o["key"], o["value"]))
    plain = ref.attend(o["query"], keys, values, bias=np.array([0, 0, 0, 0, 0, 0.7], LONG))
    agree(got.out, plain.out)
    agree(got.lse, plain.lse)


def test_large_scores_do_not_overflow():
    o, _ = operands(6)
    for scale in (LONG(1e6), LONG(-1e6)):
        z = scale * o["query"] @ o["key"].T
        got = ref.attend(**o, scale=scale)
        agree(got.out, o["value"][z.argmax(1)])
        agree(got.lse, z.max(1))
    agree(ref.attend(**o, sink=LONG(1e6)).lse, np.full(3, LONG(1e6)))
    assert (ref.attend(**o, sink=LONG(1e6)).out == 0).all()


@pytest.mark.parametrize("sink", [None, LONG(0.4)])
def test_a_common_shift_of_all_logits_changes_nothing(sink):
    o, rng = operands(7, bias=rng_bias(7, (3, 5)), sink=sink)
    moved = o | {"bias": o["bias"] + 3, "sink": None if sink is None else sink + 3}
    agree(ref.attend(**moved).out, ref.attend(**o).out)
    agree(ref.attend(**moved).lse, ref.attend(**o).lse + 3)
    d = ref.gradients(**o, d_out=LONG(rng.standard_normal((3, 2))))
    assert abs(d.bias.sum() + (0 if sink is None else d.sink)) <= 64 * EPS


def test_the_log_sum_exp_is_the_potential_of_the_weights():
    """d lse / d bias_j = p_j, and its sum with the sink's weight is 1."""
    o, _ = operands(8, bias=rng_bias(8, (3, 5)), sink=LONG(0.4))
    w = ref.weigh(ref.pose(**o))
    agree(difference(lambda b: ref.attend(**o | {"bias": b}).lse.sum(), o["bias"]), w.p, DIFFERENCE_TOL)
    agree((w.p.sum(-1) + w.rest[..., 0]), np.ones(3, LONG))


# --------------------------------------------------------------------------------------------------- gradients


def difference(function, a):
    """Central differences of a scalar function with respect to every entry of a."""
    a = np.array(a, LONG)
    gradient = np.zeros(a.shape, LONG)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += STEP
        down[i] -= STEP
        gradient[i] = (function(up) - function(down)) / (2 * LONG(STEP))
    return gradient


def check_differences(o, g, **more):
    d = ref.gradients(**o, d_out=g, **more)
    for name in NAMES:
        if o.get(name) is None:
            assert getattr(d, name) is None
            continue
        numbers = o[name] if name != "bias" else np.where(np.isfinite(o[name]), o[name], 0)

        def total(a, name=name):
            a = np.where(np.isfinite(o[name]), a, o[name])
            return (g * ref.attend(**o | {name: a}, **more).out).sum()

        agree(getattr(d, name), difference(total, numbers), DIFFERENCE_TOL)


@pytest.mark.parametrize("case", ["none", "shared", "per row, first row empty", "empty"])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
def test_gradients_are_finite_differences(case, causal):
    o, rng = operands(9, scale=LONG(0.8), bias=rng_bias(9, (3, 5)), sink=LONG(0.3))
    o["bias"][1, 2] = -np.inf
    g, mask = LONG(rng.standard_normal((3, 2))), masks(rng, 3, 5)[case]
    check_differences(o, g, causal=causal, mask=mask)
    check_differences(o | {"scale": None, "bias": None, "sink": None}, g, causal=causal, mask=mask)


@pytest.mark.parametrize("bias", [(5,), (1, 5), (3, 1), (6, 1, 5), (2, 1, 3, 5)])
def test_gradients_of_broadcast_and_grouped_operands_are_sums(bias):
    rng = np.random.default_rng(10)
    shapes = (2, 6, 3, 2), (3, 5, 2), (3, 5, 2)
    o = {k: LONG(rng.standard_normal(s)) for k, s in zip(NAMES, shapes, strict=False)}
    o |= {"scale": LONG(rng.uniform(0.3, 1, (2, 1))), "bias": rng_bias(10, bias), "sink": LONG(rng.standard_normal(6))}
    check_differences(o, LONG(rng.standard_normal((2, 6, 3, 2))), causal=True)


def test_magnitudes_bound_the_gradients():
    o, rng = operands(11, scale=LONG(-0.8), bias=rng_bias(11, (3, 5)), sink=LONG(0.3))
    g = LONG(rng.standard_normal((3, 2)))
    plain, size = (ref.gradients(**o, d_out=g, absolute=a) for a in (False, True))
    for a, b in zip(plain, size, strict=True):
        assert np.shape(a) == np.shape(b) and (np.abs(a) <= b).all()


# ------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("form", ["plain", "mask", "bias", "causal", "grouped"])
def test_torch_agrees(form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    heads = 2 if form == "grouped" else 6
    shapes = (2, 6, 7, 5), (2, heads, 9, 5), (2, heads, 9, 3)
    q, k, v = arrays = [rng.standard_normal(s) for s in shapes]
    mask = rng.random((7, 9)) < 0.6
    mask[:, 0] = True
    bias = rng.standard_normal((6, 7, 9))
    leaves = [torch.tensor(a, requires_grad=True) for a in (*arrays, bias)]
    ours, theirs = {
        "plain": ({}, {}), "mask": ({"mask": mask}, {"attn_mask": torch.from_numpy(mask)}),
        "bias": ({"bias": bias, "scale": np.float64(0.7)}, {"attn_mask": leaves[3], "scale": 0.7}),
        "causal": ({"causal": "top-left"}, {"is_causal": True}), "grouped": ({}, {"enable_gqa": True}),
    }[form]  # fmt: skip
    out = torch.nn.functional.scaled_dot_product_attention(*leaves[:3], **theirs)
    g = rng.standard_normal(out.shape)
    out.backward(torch.from_numpy(g))
    agree(ref.attend(q, k, v, **ours).out, out.detach().numpy(), 1e-13)
    d = ref.gradients(q, k, v, g, **ours)
    for name, leaf in zip(("query", "key", "value", "bias"), leaves, strict=True):
        if getattr(d, name) is not None:
            agree(getattr(d, name), leaf.grad.numpy(), 1e-12)
