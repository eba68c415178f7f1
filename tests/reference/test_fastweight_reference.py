"""The oracle's own witnesses: loops over the definition, closed forms, identities, complex steps, finite differences."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import fastweight as ref  # noqa: E402
from tests.reference import fastweight_rules as rules  # noqa: E402
from tests.reference import feature_maps as maps  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
STEP = EPS ** (1 / 3)  # see test_attention_reference
DIFFERENCE_TOL = 1e3 * STEP**2


def draw(rng, *shape):
    return LONG(rng.standard_normal(shape))


def agree(a, b, tol=512 * EPS):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1.0, float(np.abs(b).max(initial=0))))


def unit(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def favor(K, m=5):
    return "favor", np.random.default_rng(1).standard_normal((m, K))


# ---------------------------------------------------------------------------------------------------- feature maps

MAPS = ["identity", "relu", "squared_relu", "elu1", "softmax", "l2", ("dpfp", 1), ("dpfp", 3), favor(4)]
BY_NAME = [str(m if isinstance(m, str) else m[0]) for m in MAPS]


def test_feature_maps_by_hand():
    x = np.array([1.0, -2.0])
    agree(maps.value(x, "relu"), np.array([1.0, 0.0]))
    agree(maps.value(x, "squared_relu"), np.array([1.0, 0.0]))
    agree(maps.value(x, "elu1"), np.array([2.0, np.exp(-2.0)]), 1e-15)
    agree(maps.value(x, "softmax"), np.array([np.exp(3), 1]) / (1 + np.exp(3)), 1e-15)
    agree(maps.value(3 * x, "l2"), x / np.sqrt(5), 1e-15)
    # r = (1, 0, 0, 2): products with the next, the one after, and the third, which wraps around
    agree(maps.value(x, ("dpfp", 1)), np.array([0.0, 0, 0, 2]))
    agree(maps.value(x, ("dpfp", 3)), np.array([0.0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0]))
    R = np.array([[1.0, 0.0], [0.5, 0.5]])
    z, half = np.array([1.0, -0.5]) / 2**0.25, 5 / 2**1.5
    agree(maps.value(x, ("favor", R)), np.exp([*(z - half), *(-z - half)]) / 2, 1e-15)
    agree(maps.value(x, "elu1", "sum"), np.array([2, np.exp(-2)]) / (2 + np.exp(-2)), 1e-15)
    agree(maps.value(x, "elu1", "l2"), np.array([2, np.exp(-2)]) / np.hypot(2, np.exp(-2)), 1e-15)


def test_vectors_without_direction_or_sum_are_zero():
    for how, x in ((("l2", "none"), [0.0, 0.0]), (("relu", "sum"), [-1.0, -2.0]), (("relu", "l2"), [-1.0, 0.0])):
        x = np.array(x)
        agree(maps.value(x, *how), np.zeros(2))
        agree(maps.pullback(x, np.ones(2), *how), np.zeros(2))


@pytest.mark.parametrize("normalize", ["none", "sum", "l2"])
@pytest.mark.parametrize("name", MAPS, ids=BY_NAME)
def test_pullbacks_of_feature_maps(name, normalize):
    rng = np.random.default_rng(0)
    x = draw(rng, 3, 4)
    x = np.where(np.abs(x) < 0.05, LONG(0.3), x)
    phi = maps.value(x, name, normalize)
    assert phi.shape == (3, maps.width(name, 4)) and phi.dtype == LONG
    g = draw(rng, *phi.shape)
    exact = ref.complex_step(lambda x: (g * maps.value(x, name, normalize)).sum(), {"x": x}, "x")
    agree(maps.pullback(x, g, name, normalize), exact, 1e5 * EPS if normalize == "sum" else 512 * EPS)
    if normalize == "none":
        agree(exact, difference(lambda x: (g * maps.value(x, name)).sum(), x), DIFFERENCE_TOL)


def test_features_of_favor_estimate_the_exponential_kernel():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 6)) * 0.7
    phi = [[maps.value(x, ("favor", R)) for x in (q, k)] for R in rng.standard_normal((4000, 8, 6))]
    estimates = np.array([a @ b for a, b in phi])
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - np.exp(q @ k / np.sqrt(6))) < 4 * error


# ---------------------------------------------------------------------------------------------- the definitions


def problem(seed=0, T=7, K=4, V=3, batch=()):
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, *batch, T, K), unit(draw(rng, *batch, T, K)), draw(rng, *batch, T, V)
    return rng, {"q": q, "k": k, "v": v}


def decays(rng, *shape):
    return np.exp(-LONG(rng.exponential(0.5, shape)))


def state(rng, K=4, V=3, batch=()):
    return ref.State(draw(rng, *batch, K, V), LONG(rng.uniform(0.5, 2, (*batch, K))))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_sum_rule_is_its_double_sum(normalize):
    rng, o = problem()
    o["k"], o["q"] = np.abs(o["k"]), np.abs(o["q"])
    D, first = decays(rng, 7, 4), state(rng)
    got = ref.sum_rule(**o, normalize=normalize, decay=D, scale=LONG(0.7), state=first)
    for t in range(7):
        S, z = D[: t + 1].prod(0)[:, None] * first.S, D[: t + 1].prod(0) * first.z
        for j in range(t + 1):
            left = D[j + 1 : t + 1].prod(0) * o["k"][j]
            S, z = S + np.outer(left, o["v"][j]), z + left
        agree(got.out[t], LONG(0.7) * (S.T @ o["q"][t]) / (z @ o["q"][t] if normalize else 1))
    agree(got.state.S, S)
    agree(got.state.z, z)
    agree(ref.quadratic(**o, normalize=normalize, decay=D, scale=LONG(0.7), state=first), got.out)
    last = ref.full_sum(**o, normalize=normalize, scale=LONG(0.7))[-1]
    agree(last, ref.sum_rule(**o, normalize=normalize, scale=LONG(0.7)).out[-1])


def test_the_delta_rule_is_its_form_without_a_loop():
    rng, o = problem(1, T=20)
    o = {name: a.astype(float) for name, a in o.items()}
    beta, D, first = rng.uniform(0, 2, 20), decays(rng, 20, 4).astype(float), state(rng).S.astype(float)
    got = ref.delta_rule(**o, beta=beta, decay=D, state=ref.State(first))
    other = rules.delta_rule_at_once(**o, beta=beta, decay=D, S0=first)
    agree(got.out, other.out, 1e-12)
    agree(got.state.S, other.state.S, 1e-12)


def test_the_delta_rule_with_attention_normalisation_by_hand():
    """Positive keys a, a: the first write finds nothing, the second finds v1 whole; the reads divide by what is there."""
    k = np.array([[2.0, 0.0], [2.0, 0.0]])
    v, beta = np.array([[3.0], [5.0]]), np.array([0.5, 1.0])
    got = ref.delta_rule(k, k, v, beta, attention=True)
    # S: 2 * 0.5 * 3 = 3, z = 2, read 6 / 4; v-bar = 6 / 4, S = 3 + 2 (5 - 1.5) = 10, z = 4, read 20 / 8
    agree(got.out, np.array([[1.5], [2.5]]))
    agree(got.state.S[0], np.array([10.0]))
    agree(got.state.z, np.array([4.0, 0.0]))


@pytest.mark.parametrize("rule", ["sum", "delta", "fast weight"])
def test_a_sequence_in_two_parts(rule):
    rng, o = problem(2)
    o["k"], o["q"] = np.abs(o["k"]), np.abs(o["q"])
    run, more = variants(rng)[rule][0], variants(rng)[rule][2]
    o = o | more | {"decay": decays(rng, 7, 4)}
    whole = run(**o)
    first = run(**{name: a[:3] for name, a in o.items()})
    second = run(**{name: a[3:] for name, a in o.items()}, state=first.state)
    agree(np.concatenate([first.out, second.out]), whole.out)
    agree(second.state.S, whole.state.S)


def test_no_time_at_all():
    rng, o = problem(3, T=0, batch=(2,))
    first = state(rng, batch=(2,))
    for rule, more in ((ref.sum_rule, {}), (ref.delta_rule, {"beta": LONG(np.ones((2, 0)))})):
        got = rule(**o, **more, state=first)
        assert got.out.shape == (2, 0, 3)
        agree(got.state.S, first.S)


def test_leading_axes_broadcast():
    rng = np.random.default_rng(4)
    o = {
        "q": draw(rng, 2, 1, 5, 4),
        "k": unit(draw(rng, 3, 5, 4)),
        "v": draw(rng, 5, 3),
        "beta": LONG(rng.uniform(0, 2, (2, 1, 5))),
    }
    D, scale = decays(rng, 3, 5, 1), draw(rng, 2, 1)
    got = ref.delta_rule(**o, decay=D, scale=scale)
    for b in range(2):
        for h in range(3):
            alone = ref.delta_rule(o["q"][b, 0], o["k"][h], o["v"], o["beta"][b, 0], decay=D[h], scale=scale[b, 0])
            agree(got.out[b, h], alone.out)


# ------------------------------------------------------------------------------------------------- the named rules


def cores(rng, o, T=7, K=4, V=3):
    """Each named rule by its own definition, and the operands of the general recurrence that it is."""
    k, v = o["k"], o["v"]
    beta, a1, aK = LONG(rng.uniform(0, 2, T)), decays(rng, T, 1), decays(rng, T, K)
    p, e, w, rate = (
        unit(draw(rng, T, K)),
        LONG(rng.uniform(0, 1, (T, K))),
        LONG(rng.uniform(0, 1, (T, V))),
        LONG(rng.uniform(0, 1, (T, K))),
    )
    zero, b = np.zeros_like(k), beta[:, None]
    g = rules.gains(k, LONG(0.5), LONG(0.9))
    return {
        "linear attention": (rules.linear_attention(k, v), (k, v, zero, zero, None)),
        "retnet": (rules.retnet(k, v, a1[:, 0]), (k, v, zero, zero, a1)),
        "gated linear attention": (rules.gated_linear_attention(k, v, aK), (k, v, zero, zero, aK)),
        "delta net": (rules.delta_net(k, v, beta), (b * k, v, -b * k, k, None)),
        "gated delta net": (rules.gated_delta_net(k, v, beta, a1[:, 0]), (b * k, v, -b * k, a1 * k, a1)),
        "kimi delta attention": (rules.kimi_delta_attention(k, v, beta, aK), (b * k, v, -b * k, aK * k, aK)),
        "comba": (rules.comba(k, v, beta, p, a1[:, 0]), (b * k, v, -b * k, a1 * p, a1)),
        "gated delta rule 2": (rules.gated_delta_rule_2(k, v, e, w, aK), (k, w * v, -k, aK * e * k, aK)),
        "rwkv 7": (rules.rwkv7(k, v, p, rate, aK), (k, v, rate * p, -p, aK)),
        "least squares": (rules.recursive_least_squares(k, v, LONG(0.5), LONG(0.9)), (g, v, -g, k, None)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(cores(*problem())))
def test_named_rules_are_general_recurrences(name):
    rng, o = problem(5)
    own, (k, v, a, b, decay) = cores(rng, o)[name]
    first = state(rng).S
    got = rules.run(o["q"], own, LONG(0.7), first)
    core = ref.fast_weight(o["q"], k, v, a, b, decay=decay, scale=LONG(0.7), state=ref.State(first))
    agree(got.out, core.out)
    agree(got.state.S, core.state.S)


def test_delta_product_is_several_delta_steps():
    rng = np.random.default_rng(6)
    q, k, v = draw(rng, 5, 4), unit(draw(rng, 5, 3, 4)), draw(rng, 5, 3, 2)
    beta, decay = LONG(rng.uniform(0, 2, (5, 3))), decays(rng, 5)
    got = rules.run(q, rules.delta_product(k, v, beta, decay))
    gate = np.ones((5, 3), LONG)
    gate[:, 0] = decay
    flat = ref.delta_rule(
        np.repeat(q, 3, 0), k.reshape(15, 4), v.reshape(15, 2), beta.ravel(), decay=gate.reshape(15, 1)
    )
    agree(got.out, flat.out[2::3])
    agree(got.state.S, flat.state.S)


@pytest.mark.parametrize("forget", [LONG(1), LONG(0.9)])
def test_recursive_least_squares_is_the_ridge_solution(forget):
    _, o = problem(7, T=9)
    transitions = rules.recursive_least_squares(o["k"], o["v"], LONG(0.3), forget)
    for t in (1, 4, 9):
        S = rules.run(o["q"][:t], tuple(a[:t] for a in transitions)).state.S
        agree(S, rules.least_squares(o["k"], o["v"], LONG(0.3), forget, t), 1e4 * EPS)


# -------------------------------------------------------------------------------------------------------- gradients


def difference(function, a):
    gradient = np.zeros(a.shape, LONG)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += STEP
        down[i] -= STEP
        gradient[i] = (function(up) - function(down)) / (2 * LONG(STEP))
    return gradient


def variants(rng, T=7, K=4, V=3):
    """Rules: forward, gradients, operands besides q, k, v, options."""
    beta = {"beta": LONG(rng.uniform(0, 2, T))}
    both = {"a": draw(rng, T, K) / 2, "b": draw(rng, T, K) / 2}
    return {
        "sum": (ref.sum_rule, ref.sum_rule_gradients, {}, {}),
        "sum, normalised": (ref.sum_rule, ref.sum_rule_gradients, {}, {"normalize": True}),
        "delta": (ref.delta_rule, ref.delta_rule_gradients, beta, {}),
        "delta, attention": (ref.delta_rule, ref.delta_rule_gradients, beta, {"attention": True}),
        "fast weight": (ref.fast_weight, ref.fast_weight_gradients, both, {}),
    }


FIELDS = {"q": "query", "k": "key", "v": "value"}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", list(variants(np.random.default_rng(0))))
def test_gradients_are_derivatives(name, channels):
    rng, o = problem(8)
    forward, gradients, more, options = variants(rng)[name]
    if options:
        o["k"], o["q"] = np.abs(o["k"]), np.abs(o["q"])
    first, last = state(rng), ref.State(draw(rng, 4, 3), draw(rng, 4))
    o = o | more | {"decay": decays(rng, 7, channels), "scale": LONG(0.7), "S": first.S, "z": first.z}
    g = draw(rng, 7, 3)

    def total(S, z, **o):
        got = forward(**o, **options, state=ref.State(S, z))
        more = (last.z * got.state.z).sum() if got.state.z is not None else 0
        return (g * got.out).sum() + (last.S * got.state.S).sum() + more

    given = {k: a for k, a in o.items() if k not in "Sz"}
    found = gradients(**given, d_out=g, **options, state=first, d_state=last)
    found |= {"S": found["state"].S, "z": found["state"].z}
    for name, a in o.items():
        if name == "z" and forward is ref.fast_weight:
            continue  # no such operand
        got = found[FIELDS.get(name, name)]
        got = ref.sum_to(got.reshape(got.shape[: np.ndim(a) or None]) if np.ndim(a) == 1 else got, np.shape(a))
        agree(got, ref.complex_step(total, o, name))
        agree(got, difference(lambda x, name=name: total(**o | {name: x}), np.asarray(a)), DIFFERENCE_TOL)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_of_the_full_sum_are_derivatives(normalize):
    rng, o = problem(9)
    o = {name: np.abs(a) for name, a in o.items()} | {"scale": LONG(0.7)}
    o["k"], o["v"] = o["k"][:5], o["v"][:5]
    g = draw(rng, 7, 3)
    found = ref.full_sum_gradients(**o, d_out=g, normalize=normalize)
    for name in o:
        exact = ref.complex_step(lambda **o: (g * ref.full_sum(**o, normalize=normalize)).sum(), o, name)
        agree(found[FIELDS.get(name, name)], exact)


def test_a_denominator_of_zero_gives_zeros_and_no_gradient():
    """Keys and queries that share no channel."""
    q, k, v = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0], [4.0]])
    agree(ref.sum_rule(q, k, v, normalize=True).out, np.array([[0.0], [3.0]]))
    found = ref.sum_rule_gradients(q, k, v, np.ones((2, 1)), normalize=True)
    assert (found["query"][0] == 0).all() and np.isfinite(found["key"]).all()
    found = ref.delta_rule_gradients(q, k, v, np.ones(2), np.ones((2, 1)), attention=True)
    assert all(np.isfinite(found[name]).all() for name in ("query", "key", "value", "beta"))
    assert (found["query"][0] == 0).all()


@pytest.mark.parametrize("kind", [np.float64, LONG])
def test_the_number_type_is_kept(kind):
    rng, o = problem(10)
    o = {name: a.astype(kind) for name, a in o.items()}
    got = ref.delta_rule(**o, beta=np.ones(7, kind), scale=2.0)
    assert got.out.dtype == got.state.S.dtype == kind
    found = ref.delta_rule_gradients(**o, beta=np.ones(7, kind), d_out=got.out)
    assert all(found[name].dtype == kind for name in ("query", "key", "value", "beta", "scale"))
