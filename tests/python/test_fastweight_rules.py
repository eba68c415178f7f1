"""The named rules: each equal to its own definition, as a dense transition of the state, forward and backward."""

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw
from tests.reference import fastweight as ref
from tests.reference import fastweight_rules as rules

T, K, V = 40, 6, 5


def operands(rng, dtype, T=T, batch=()):
    """Everything that any rule is made of."""
    return {
        "query": fw.draw(rng, dtype, *batch, T, K), "key": fw.unit(fw.draw(rng, dtype, *batch, T, K)), "value": fw.draw(rng, dtype, *batch, T, V),
        "beta": rng.uniform(0, 2, (*batch, T)).astype(dtype), "head": fw.decays(rng, dtype, *batch, T), "channel": fw.decays(rng, dtype, *batch, T, K),
        "removal": fw.unit(fw.draw(rng, dtype, *batch, T, K)), "erase": rng.uniform(0, 1, (*batch, T, K)).astype(dtype),
        "write": rng.uniform(0, 1, (*batch, T, V)).astype(dtype), "rate": rng.uniform(0, 1, (*batch, T, K)).astype(dtype),
    }  # fmt: skip


# Each rule by its own definition, and as the operands of the general recurrence.
OWN = {
    "linear attention": lambda o: rules.linear_attention(o["key"], o["value"]),
    "retnet": lambda o: rules.retnet(o["key"], o["value"], o["head"]),
    "gated linear attention": lambda o: rules.gated_linear_attention(o["key"], o["value"], o["channel"]),
    "delta net": lambda o: rules.delta_net(o["key"], o["value"], o["beta"]),
    "gated delta net": lambda o: rules.gated_delta_net(o["key"], o["value"], o["beta"], o["head"]),
    "kimi delta attention": lambda o: rules.kimi_delta_attention(o["key"], o["value"], o["beta"], o["channel"]),
    "comba": lambda o: rules.comba(o["key"], o["value"], o["beta"], o["removal"], o["head"]),
    "gated delta rule 2": lambda o: rules.gated_delta_rule_2(
        o["key"], o["value"], o["erase"], o["write"], o["channel"]
    ),
    "rwkv 7": lambda o: rules.rwkv7(o["key"], o["value"], o["removal"], o["rate"], o["channel"]),
    "least squares": lambda o: rules.recursive_least_squares(o["key"], o["value"], o["key"].dtype.type(0.5)),
}


def core(name, o):
    k, v, b, head = o["key"], o["value"], o["beta"][..., None], o["head"][..., None]
    nothing = np.zeros_like(k)
    return {
        "linear attention": lambda: (k, v, nothing, nothing, None),
        "retnet": lambda: (k, v, nothing, nothing, o["head"]),
        "gated linear attention": lambda: (k, v, nothing, nothing, o["channel"]),
        "delta net": lambda: (b * k, v, -b * k, k, None),
        "gated delta net": lambda: (b * k, v, -b * k, head * k, o["head"]),
        "kimi delta attention": lambda: (b * k, v, -b * k, o["channel"] * k, o["channel"]),
        "comba": lambda: (b * k, v, -b * k, head * o["removal"], o["head"]),
        "gated delta rule 2": lambda: (k, o["write"] * v, -k, o["channel"] * o["erase"] * k, o["channel"]),
        "rwkv 7": lambda: (k, v, o["rate"] * o["removal"], -o["removal"], o["channel"]),
        "least squares": lambda: (rules.gains(k, k.dtype.type(0.5)), v, -rules.gains(k, k.dtype.type(0.5)), k, None),
    }[name]()


def general(name, o):
    key, value, a, b, decay = core(name, o)
    return {"query": o["query"], "key": key, "value": value, "a": a, "b": b, "decay": decay}


def wide(o, kind=np.longdouble):
    return {name: a.astype(kind) for name, a in o.items()}


@pytest.mark.parametrize("name", OWN)
def test_the_general_recurrence_covers_it(rng, dtype, name):
    for batch in ((), (2,)):
        o = operands(rng, dtype, batch=batch)
        exact = rules.run(wide(o)["query"], OWN[name](wide(o)))
        for chunk in fw.CHUNKS:
            out, state = fw.call("fast_weight", general(name, o), return_state=True, chunk=chunk)
            fw.near(out, exact.out, 4 * fw.TOL[np.dtype(dtype).name])
            fw.near_state(state, exact.state, 4 * fw.TOL[np.dtype(dtype).name])


@pytest.mark.parametrize("name", ["gated delta net", "kimi delta attention", "delta net"])
def test_the_delta_rule_is_it(rng, dtype, name):
    o = operands(rng, dtype, batch=(2,))
    decay = {"gated delta net": o["head"], "kimi delta attention": o["channel"]}.get(name)
    exact = rules.run(wide(o)["query"], OWN[name](wide(o)))
    d = {k: o[k] for k in ("query", "key", "value", "beta")} | {"decay": decay}
    out, state = fw.call("delta_rule", d, return_state=True)
    fw.near(out, exact.out, fw.TOL[np.dtype(dtype).name])
    fw.near_state(state, exact.state, fw.TOL[np.dtype(dtype).name])


@pytest.mark.parametrize("name", OWN)
def test_gradients_through_the_general_recurrence(rng, name):
    """The chain rule from the operands of the recurrence to those of the rule, against complex steps of its definition."""
    o = operands(rng, np.float64, T=7)
    g = general(name, o)
    out, pullback = fw.vjp("fast_weight", g)
    u = fw.draw(rng, np.float64, *out.shape)
    got = pullback(u)

    def total(**o):
        return (u * rules.run(o["query"], OWN[name](o)).out).sum()

    def linear(**o):
        """sum of cotangent * operand, whose derivative is the rest of the chain"""
        made = general(name, o)
        return sum((getattr(got, field) * made[field]).sum() for field in got._fields)

    for field in o:
        fw.near(
            ref.complex_step(linear, o, field),
            ref.complex_step(total, o, field),
            fw.GRADIENT_TOL["float64"],
            field,
            1e-3,
        )


def test_several_steps_a_token(rng, dtype):
    """DeltaProduct: the decay once, then the writes, of which the last is read."""
    n = 3
    key, value = fw.unit(fw.draw(rng, dtype, 10, n, K)), fw.draw(rng, dtype, 10, n, V)
    beta, decay, query = rng.uniform(0, 2, (10, n)).astype(dtype), fw.decays(rng, dtype, 10), fw.draw(rng, dtype, 10, K)
    exact = rules.run(
        *(a.astype(float) for a in (query,)), rules.delta_product(*(a.astype(float) for a in (key, value, beta, decay)))
    )
    gate = np.ones((10, n), dtype)
    gate[:, 0] = decay
    flat = {
        "query": np.repeat(query, n, 0),
        "key": key.reshape(-1, K),
        "value": value.reshape(-1, V),
        "beta": beta.ravel(),
    }
    out, state = fw.call("delta_rule", flat | {"decay": gate.ravel()}, return_state=True)
    fw.near(out[n - 1 :: n], exact.out, fw.TOL[np.dtype(dtype).name])
    fw.near_state(state, exact.state, fw.TOL[np.dtype(dtype).name])


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_recursive_least_squares_holds_the_ridge_solution(rng, ridge):
    o = operands(rng, np.float64)
    g = rules.gains(o["key"], ridge)
    for t in (1, 3, 20, T):
        part = [a[:t] for a in (o["query"], g, o["value"], -g, o["key"])]
        _, state = rc.fastweight.fast_weight(*part, return_state=True)
        fw.near(state, rules.least_squares(o["key"], o["value"], ridge, t=t), 1e-9)


# ------------------------------------------------------------------------------------------- the functions with a name

# The function, its operands by the names above, its definition.
NAMED = {
    "gated_delta_rule": (("beta",), "head", OWN["gated delta net"]),
    "kimi_delta_attention": (("beta",), "channel", OWN["kimi delta attention"]),
    "comba": (("beta", "removal"), "head", OWN["comba"]),
    "gated_delta_rule_2": (("erase", "write"), "channel", OWN["gated delta rule 2"]),
    "rwkv7": (("removal", "rate"), "channel", OWN["rwkv 7"]),
}


def named(name, o):
    """The arguments of a function with a name."""
    own, decay, _ = NAMED[name]
    return {k: o[k] for k in ("query", "key", "value", *own)} | {"decay": o[decay]}


@pytest.mark.parametrize("name", NAMED)
def test_a_function_is_the_rule_of_its_name(rng, dtype, name):
    function, tol = getattr(rc.fastweight, name), 4 * fw.TOL[np.dtype(dtype).name]
    for length, batch in ((0, (2,)), (1, ()), (T, (2, 3))):
        o = operands(rng, dtype, length, batch)
        exact = rules.run(wide(o)["query"], NAMED[name][2](wide(o)), np.longdouble(0.7))
        given = named(name, o)
        arrays = [given.pop(k) for k in ("query", "key", "value", *NAMED[name][0])]
        for more in ({}, {"chunk": 7}):
            out, state = function(*arrays, **given, **more, scale=0.7, return_state=True)
            assert out.dtype == state.dtype == dtype
            fw.near(out, exact.out, tol)
            fw.near(state, exact.state.S, tol)
        logarithm = function(*arrays, log_decay=np.log(given["decay"]), scale=0.7)
        fw.near(logarithm, exact.out, 4 * tol)


@pytest.mark.parametrize("name", NAMED)
def test_without_a_decay_nothing_fades(rng, dtype, name):
    o = operands(rng, dtype)
    o |= {"head": np.ones(T, dtype), "channel": np.ones((T, K), dtype)}
    given = named(name, o)
    out = getattr(rc.fastweight, name)(**given)
    given.pop("decay")
    fw.near(getattr(rc.fastweight, name)(**given), out, fw.SAME[np.dtype(dtype).name])


@pytest.mark.parametrize("name", NAMED)
def test_a_sequence_in_parts(rng, dtype, name):
    given = named(name, operands(rng, dtype))
    function = getattr(rc.fastweight, name)
    whole, last = function(**given, return_state=True)
    first = function(**{k: a[:13] for k, a in given.items()}, return_state=True)
    second = function(**{k: a[13:] for k, a in given.items()}, state=first.state, return_state=True)
    fw.near(np.concatenate([first.out, second.out]), whole, fw.SAME[np.dtype(dtype).name])
    fw.near(second.state, last, fw.SAME[np.dtype(dtype).name])


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_gradients_of_a_function_with_a_name(rng, name, logarithm):
    """Against complex steps of the definition, with a state in and out."""
    o = operands(rng, np.float64, T=7)
    given, decay = named(name, o), NAMED[name][1]
    if logarithm:
        given["log_decay"] = np.log(given.pop("decay"))
    given |= {"scale": np.array(0.7), "state": fw.draw(rng, np.float64, K, V)}
    (out, state), pullback = rc.vjp(getattr(rc.fastweight, name), **given, return_state=True)
    u, w = fw.draw(rng, np.float64, *out.shape), fw.draw(rng, np.float64, K, V)
    got = pullback((u, w))
    assert list(got._fields) == list(given)

    def total(**x):
        x = o | x | {decay: np.exp(x["log_decay"]) if logarithm else x["decay"]}
        made = rules.run(x["query"], NAMED[name][2](x), x["scale"], x["state"])
        return (u * made.out).sum() + (w * made.state.S).sum()

    for field in got._fields:
        assert np.asarray(getattr(got, field)).dtype == np.float64
        fw.near(getattr(got, field), ref.complex_step(total, given, field), fw.GRADIENT_TOL["float64"], field)


@pytest.mark.parametrize("name", NAMED)
def test_gradients_of_broadcast_operands(rng, name):
    o = operands(rng, np.float64, T=5, batch=(2, 3))
    given = named(name, o)
    shared = {k: a[:1, 0] if i % 2 else a[0, 0] for i, (k, a) in enumerate(given.items()) if k != "query"}
    given |= shared
    out, pullback = rc.vjp(getattr(rc.fastweight, name), **given)
    u = fw.draw(rng, np.float64, *out.shape)
    full = {
        k: np.broadcast_to(
            a, (2, 3, *a.shape[-1 if k in ("beta",) or (k == "decay" and NAMED[name][1] == "head") else -2 :])
        )
        for k, a in given.items()
    }
    _, whole = rc.vjp(getattr(rc.fastweight, name), **full)
    for field, got, each in zip(full, pullback(u), whole(u), strict=True):
        assert got.shape == given[field].shape, field
        fw.near(got, ref.sum_to(each, got.shape), 1e-10, field)


def test_gates_broadcast(rng, dtype):
    """A gate may be one number a token, or one for all."""
    o = operands(rng, dtype)
    one = rng.uniform(0, 1, (T, 1)).astype(dtype)
    for name, gates in (("gated_delta_rule_2", ("erase", "write")), ("rwkv7", ("rate",))):
        for gate in gates:
            given = named(name, o)
            wide_gate = np.broadcast_to(one, given[gate].shape)
            function = getattr(rc.fastweight, name)
            fw.near(
                function(**given | {gate: one}), function(**given | {gate: wide_gate}), fw.SAME[np.dtype(dtype).name]
            )
            _, pullback = rc.vjp(function, **given | {gate: one})
            _, full = rc.vjp(function, **given | {gate: wide_gate.copy()})
            u = fw.draw(rng, dtype, T, V)
            a, b = getattr(pullback(u), gate), getattr(full(u), gate).sum(axis=-1, keepdims=True)
            assert a.shape == (T, 1)
            fw.near(a, b, 10 * fw.GRADIENT_TOL[np.dtype(dtype).name], gate)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_delta_product(rng, dtype, n):
    key, value = fw.unit(fw.draw(rng, dtype, 2, 20, n, K)), fw.draw(rng, dtype, 2, 20, n, V)
    beta, query = rng.uniform(0, 2, (2, 20, n)).astype(dtype), fw.draw(rng, dtype, 2, 20, K)
    for decay in (None, fw.decays(rng, dtype, 2, 20)):
        gate = {} if decay is None else {"decay": decay}
        exact = rules.run(
            *wide({"q": query}).values(), rules.delta_product(*wide({"k": key, "v": value, "b": beta} | gate).values())
        )
        for chunk in (None, 1, 7, 64):
            out, state = rc.fastweight.delta_product(query, key, value, beta, **gate, chunk=chunk, return_state=True)
            assert out.shape == (2, 20, V) and out.dtype == dtype
            fw.near(out, exact.out, fw.TOL[np.dtype(dtype).name])
            fw.near(state, exact.state.S, fw.TOL[np.dtype(dtype).name])


def test_delta_product_makes_rotations():
    """Two reflections, beta = 2, in a plane: every token turns what is held by the same angle."""
    angle = 0.3
    key = np.array([[1.0, 0.0], [np.cos(angle / 2), np.sin(angle / 2)]])
    state = np.array([[1.0], [0.0]])
    T = 11
    out, last = rc.fastweight.delta_product(
        np.tile(np.eye(2)[0], (T, 1)),
        np.tile(key, (T, 1, 1)),
        np.zeros((T, 2, 1)),
        np.full((T, 2), 2.0),
        state=state,
        return_state=True,
    )
    np.testing.assert_allclose(out[:, 0], np.cos(angle * np.arange(1, T + 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(last), 1, rtol=1e-14)


@pytest.mark.parametrize("n", [1, 3])
def test_gradients_of_delta_product(rng, n):
    given = {
        "query": fw.draw(rng, np.float64, 5, K), "key": fw.unit(fw.draw(rng, np.float64, 5, n, K)), "value": fw.draw(rng, np.float64, 5, n, V),
        "beta": rng.uniform(0, 2, (5, n)), "decay": fw.decays(rng, np.float64, 5), "state": fw.draw(rng, np.float64, K, V),
    }  # fmt: skip
    (out, _), pullback = rc.vjp(rc.fastweight.delta_product, **given, return_state=True)
    u, w = fw.draw(rng, np.float64, *out.shape), fw.draw(rng, np.float64, K, V)
    got = pullback((u, w))

    def total(query, key, value, beta, decay, state):
        made = rules.run(query, rules.delta_product(key, value, beta, decay), 1.0, state)
        return (u * made.out).sum() + (w * made.state.S).sum()

    for field in got._fields:
        fw.near(getattr(got, field), ref.complex_step(total, given, field), fw.GRADIENT_TOL["float64"], field)


# ----------------------------------------------------------------------------------------------- recursive least squares


@pytest.mark.parametrize(("ridge", "forget"), [(1.0, 1.0), (1e-3, 1.0), (0.5, 0.95), (100.0, 0.9)])
def test_recursive_least_squares(rng, dtype, ridge, forget):
    o = wide(operands(rng, dtype), np.float64)
    q, k, v = (o[name].astype(dtype) for name in ("query", "key", "value"))
    tol = 1e-9 if dtype == np.float64 else 1e-2 if ridge < 0.1 else 1e-4
    gains = rc.fastweight.rls_gains(k, forget=forget, ridge=ridge)
    assert gains.dtype == dtype
    fw.near(gains, rules.gains(o["key"], ridge, forget), tol)
    out, state = rc.fastweight.recursive_least_squares(q, k, v, forget=forget, ridge=ridge, return_state=True)
    assert out.dtype == dtype
    for t in (1, 3, K, T):
        S = rules.least_squares(o["key"], o["value"], ridge, forget, t)
        fw.near(out[t - 1], S.T @ o["query"][t - 1], 10 * tol)
    fw.near(state, S, tol)


def test_recursive_least_squares_has_no_gradient_of_its_own():
    """Its gains are no operand; with gains given it is `fast_weight`, whose gradients are tested above."""
    with pytest.raises(TypeError, match=r"vjp.*recursive_least_squares.*expected one of .*fastweight\.fast_weight"):
        rc.vjp(rc.fastweight.recursive_least_squares, np.ones((5, K)), np.ones((5, K)), np.ones((5, V)))


# ------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize("name", [*NAMED, "delta_product", "recursive_least_squares"])
def test_wrong_calls_name_the_function_and_its_argument(rng, name):
    function = getattr(rc.fastweight, name)
    o = operands(rng, np.float64, T=5)
    if name == "delta_product":
        given = {
            "query": o["query"],
            "key": o["key"][:, None],
            "value": o["value"][:, None],
            "beta": o["beta"][:, None],
        }
    else:
        given = named(name, o) if name in NAMED else {k: o[k] for k in ("query", "key", "value")}
    function(**given)
    calls = [function] if name == "recursive_least_squares" else [function, lambda **more: rc.vjp(function, **more)]
    for argument, a in given.items():
        for wrong, kind in ((a[:-1], ValueError), (a.astype(complex), TypeError), (None, TypeError)):
            if argument == "decay" and wrong is None:
                continue
            # of two lengths that do not fit either may be named, but by its own name
            names = "|".join(given) if kind is ValueError else argument
            for call in calls:
                with pytest.raises(kind, match=rf"^fastweight\.{name}: ({names}) ") as error:
                    call(**given | {argument: wrong})
                assert "\n" not in str(error.value)
    if name in NAMED:
        with pytest.raises(ValueError, match=rf"fastweight\.{name}: .*\bdecay\b.*1\.5"):
            function(**given | {"decay": np.full(5, 1.5)})
    if name != "recursive_least_squares":
        with pytest.raises(ValueError, match=rf"fastweight\.{name}: .*\bstate\b.*\(9, 9\)"):
            function(**given, state=np.ones((9, 9)))


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("forget", 0.0), ("forget", 1.1), ("forget", np.nan), ("ridge", 0.0), ("ridge", -1.0), ("ridge", np.inf)],
)
def test_wrong_options_of_least_squares(rng, argument, bad):
    o = operands(rng, np.float64, T=5)
    for name, arrays in (("rls_gains", [o["key"]]), ("recursive_least_squares", [o["query"], o["key"], o["value"]])):
        with pytest.raises(ValueError, match=rf"fastweight\.{name}: .*\b{argument}\b"):
            getattr(rc.fastweight, name)(*arrays, **{argument: bad})
