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
