"""Shared by the tests of fast weights: problems, the oracle behind the public signatures, how near is near enough.

A problem is a dictionary of the arguments of one public function by name. Its feature map is a name, or ("dpfp", nu), or
("favor", R); `public` makes of it what the function takes.
"""

import numpy as np
import recollect as rc

from tests import accuracy as acc
from tests.reference import fastweight as ref
from tests.reference import feature_maps as maps

# Errors, relative to the largest entry of the expected result of the same array.
TOL = {"float32": 1e-5, "float64": 1e-12}
GRADIENT_TOL = {"float32": 1e-4, "float64": 1e-11}
# What the chunked and the recurrent form, and parts and the whole, may differ by in float64.
SAME = {"float32": 2e-5, "float64": 1e-10}

CHUNKS = [1, 7, 16, 64]
OPS = ("linear_attention", "delta_rule", "fast_weight")
ARRAYS = ("query", "key", "value", "beta", "a", "b", "decay", "log_decay", "scale")


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def unit(x):
    return (x / np.maximum(np.sqrt((x.astype(float) ** 2).sum(axis=-1, keepdims=True)), 1e-30)).astype(x.dtype)


def favor(K, m=6, seed=1):
    return "favor", np.random.default_rng(seed).standard_normal((m, K))


def feature_maps(K):
    return {
        **{name: name for name in ("identity", "relu", "elu1", "softmax", "l2", "squared_relu")},
        "dpfp 1": ("dpfp", 1), "dpfp 3": ("dpfp", 3), "favor": favor(K),
    }  # fmt: skip


MAPS = list(feature_maps(2))
POSITIVE = [name for name in MAPS if name not in ("identity", "l2")]


def decays(rng, dtype, *shape, strength=0.3):
    return np.exp(-rng.exponential(strength, shape)).astype(dtype)


def linear(rng, dtype, T=20, K=6, V=5, batch=(), **more):
    o = {
        "query": draw(rng, dtype, *batch, T, K),
        "key": draw(rng, dtype, *batch, T, K),
        "value": draw(rng, dtype, *batch, T, V),
    }
    return o | {"feature_map": "elu1", "normalize": True} | more


def delta(rng, dtype, T=20, K=6, V=5, batch=(), top=1.0, **more):
    """Unit keys and beta in (0, top): stable for top <= 2."""
    o = {
        "query": draw(rng, dtype, *batch, T, K),
        "key": unit(draw(rng, dtype, *batch, T, K)),
        "value": draw(rng, dtype, *batch, T, V),
    }
    return o | {"beta": rng.uniform(0, top, (*batch, T)).astype(dtype)} | more


def general(rng, dtype, T=20, K=6, V=5, batch=(), **more):
    """I + a b^T with |a| |b| < 1: the state stays of the size of what is written."""
    o = {
        "query": draw(rng, dtype, *batch, T, K),
        "key": draw(rng, dtype, *batch, T, K),
        "value": draw(rng, dtype, *batch, T, V),
    }
    a, b = (unit(draw(rng, dtype, *batch, T, K)) for _ in range(2))
    return o | {"a": (dtype(0.5) * a).astype(dtype), "b": b, "decay": decays(rng, dtype, *batch, T, K)} | more


def problem(op, rng, dtype, T=20, K=6, V=5, batch=(), **more):
    return {"linear_attention": linear, "delta_rule": delta, "fast_weight": general}[op](
        rng, dtype, T, K, V, batch, **more
    )


# ------------------------------------------------------------------------------------------------- the public side


def public(feature_map):
    """What the public functions take for a map of the oracle."""
    if feature_map is None or isinstance(feature_map, str):
        return feature_map
    return getattr(rc.fastweight, feature_map[0])(feature_map[1])


def arguments(o):
    return {k: public(a) if k == "feature_map" else a for k, a in o.items()}


def call(op, o, **more):
    return getattr(rc.fastweight, op)(**arguments(o | more))


def vjp(op, o, **more):
    return rc.vjp(getattr(rc.fastweight, op), **arguments(o | more))


def parts(state, V):
    """A state of the library as the oracle has it: z is the column after the values, where there is one, and where c is the
    next, rows are held divided by e^c."""
    if state.shape[-1] == V + 2:
        size = np.exp(state[..., V + 1 :].astype(judge(state.dtype)))
        return ref.State(state[..., :V] * size, state[..., V] * size[..., 0])
    return ref.State(state[..., :V], state[..., V] if state.shape[-1] > V else None)


# -------------------------------------------------------------------------------------------------- the oracle's side


def per_channel(decay, T, F):
    return decay.ndim >= 2 and decay.shape[-2:] == (T, F)


def posed(op, o, kind):
    """Features and options as the oracle takes them."""
    o = {k: np.asarray(a, kind) if k in ARRAYS and a is not None else a for k, a in o.items()}
    how = o.get("feature_map", "elu1" if op == "linear_attention" else None)
    normalize = o.get("normalize", "none") if op == "delta_rule" else "none"
    after = normalize if normalize in ("sum", "l2") else "none"
    q, k = (maps.value(o[name], how, after) for name in ("query", "key"))
    D = np.exp(o["log_decay"]) if o.get("log_decay") is not None else o.get("decay")
    if D is not None and not per_channel(D, k.shape[-2], k.shape[-1]):
        D = D[..., None]
    state = None if o.get("state") is None else parts(np.asarray(o["state"], kind), o["value"].shape[-1])
    more = {"decay": D, "scale": o.get("scale", kind(1)), "state": state}
    if op == "linear_attention":
        more["normalize"] = o.get("normalize", True)
    elif op == "delta_rule":
        more |= {"beta": o["beta"], "attention": normalize == "attention"}
    else:
        more |= {"a": k if o["a"] is None else o["a"], "b": o["b"]}
    return o, how, after, q, k, more


RULES = {
    "linear_attention": (ref.sum_rule, ref.sum_rule_gradients),
    "delta_rule": (ref.delta_rule, ref.delta_rule_gradients),
    "fast_weight": (ref.fast_weight, ref.fast_weight_gradients),
}


def expected(op, o, kind=np.longdouble):
    o, _, _, q, k, more = posed(op, o, kind)
    if op == "linear_attention" and not o.get("causal", True):
        return ref.Result(ref.full_sum(q, k, o["value"], more["normalize"], more["scale"]), None)
    return RULES[op][0](q, k, o["value"], **more)


def expected_gradients(op, o, d_out, d_state=None, kind=np.longdouble):
    """By the names of the public signature, each in its operand's shape; states as the oracle has them. Beside them the
    sizes of the terms that they are sums of, where these may cancel."""
    o, how, after, q, k, more = posed(op, o, kind)
    g = np.asarray(d_out, kind)
    if op == "linear_attention" and not o.get("causal", True):
        options = {"normalize": more["normalize"], "scale": more["scale"]}
        found, held = (ref.full_sum_gradients(q, k, o["value"], g, **options, hold=hold) for hold in (False, True))
    else:
        if d_state is not None:
            d_state = parts(np.asarray(d_state, kind), o["value"].shape[-1])
        more |= {"d_out": g, "d_state": d_state}
        found, held = (RULES[op][1](q, k, o["value"], **more, hold=hold) for hold in (False, True))
    if op == "fast_weight" and o["a"] is None:
        found["key"], held["key"] = (each["key"] + each["a"] for each in (found, held))
    made = {name: maps.pullback(o[name], found[name], how, after) for name in ("query", "key")}
    size = {name: maps.pullback(o[name], np.abs(found[name]) + np.abs(held[name]), how, after, True) for name in made}
    for name, own in (("value", "value"), ("scale", "scale"), ("beta", "beta"), ("a", "a"), ("b", "b")):
        if own in found:
            made[name], size[name] = ((a[own][..., 0] if own == "beta" else a[own]) for a in (found, held))
    for name in ("decay", "log_decay"):
        if o.get(name) is not None:
            factor = more["decay"] if name == "log_decay" else 1
            pair = ((a["decay"] * factor) for a in (found, held))
            if not per_channel(o[name], k.shape[-2], k.shape[-1]):
                pair = (a.sum(axis=-1) for a in pair)
            made[name], size[name] = pair
    made = {name: ref.sum_to(a, np.shape(o[name])) for name, a in made.items() if o.get(name) is not None}
    sizes = {name: float(np.abs(size[name]).max(initial=0)) for name in made}
    # A gate may scale what S_t holds (q dq) less what it has just been given (k dk) instead of all that S_{t-1} held.
    moved = [
        float(np.abs(x * each[name]).max(initial=0)) for each in (found, held) for name, x in (("query", q), ("key", k))
    ]
    sizes |= {name: max(sizes[name], *moved) for name in ("decay", "log_decay") if name in sizes}
    if "beta" in sizes:
        sizes["beta"] = float(found["beta size"].max(initial=0))
    if "scale" in sizes:
        sizes["scale"] = float(np.abs(g * expected(op, o | {"scale": kind(1)}, kind).out).sum())
    if more["state"] is not None:
        shapes = [None if a is None else a.shape for a in more["state"]]
        pairs = zip(found["state"], shapes, strict=True)
        made["state"] = ref.State(*(None if s is None else ref.sum_to(a, s) for a, s in pairs))
    return made, sizes


# -------------------------------------------------------------------------------------------------- how near is near


def judge(dtype):
    return acc.judge(dtype)


def near(got, exact, tol, what="out", size=0):
    """Every entry within tol of the largest entry, or of `size`."""
    got, exact = np.asarray(got), np.asarray(exact)
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, expected {exact.shape}"
    assert np.isfinite(got).all(), f"{what}: {np.sum(~np.isfinite(got))} of {got.size} entries are not finite"
    size = max(size, np.abs(exact).max(initial=0), np.finfo(got.dtype).tiny)
    error = np.abs(got - exact).max(initial=0)
    assert error <= tol * size, f"{what}: off by {error / size:.3g} of the largest entry"


def near_state(got, exact, tol):
    """A state of the library against that of the oracle."""
    got = parts(got, exact.S.shape[-1])
    near(got.S, exact.S, tol, "state S")
    if got.z is not None:
        near(got.z, exact.z, tol, "state z")


def check(op, o, dtype, factor=1):
    """Output and last state against the oracle; returns the output."""
    exact = expected(op, o, judge(dtype))
    tol = factor * TOL[np.dtype(dtype).name]
    if exact.state is None:
        out = call(op, o)
    else:
        out, state = call(op, o, return_state=True)
        assert isinstance(state, np.ndarray) and state.dtype == dtype
        near_state(state, exact.state, tol)
    assert isinstance(out, np.ndarray) and out.dtype == dtype
    near(out, exact.out, tol)
    return out


def fields(op, o):
    """The operands that have gradients, in the order of the signature."""
    order = {
        "linear_attention": ("query", "key", "value", "decay", "log_decay", "scale", "state"),
        "delta_rule": ("query", "key", "value", "beta", "decay", "log_decay", "scale", "state"),
        "fast_weight": ("query", "key", "value", "a", "b", "decay", "log_decay", "scale", "state"),
    }[op]
    return [name for name in order if o.get(name) is not None]


def check_gradients(op, o, dtype, rng, with_state=False, factor=1):
    """Every gradient against the oracle; with_state: the last state has a cotangent too."""
    out, pullback = vjp(op, o, **({"return_state": True} if with_state else {}))
    d_state = None
    if with_state:
        out, state = out
        d_state = draw(rng, dtype, *state.shape)
    d_out = draw(rng, dtype, *out.shape)
    got = pullback((d_out, d_state) if with_state else d_out)
    exact, sizes = expected_gradients(op, o, d_out, d_state, judge(dtype))
    assert list(got._fields) == fields(op, o)
    tol = factor * GRADIENT_TOL[np.dtype(dtype).name]
    for name in got._fields:
        g = getattr(got, name)
        if name == "state":
            near_state(g, exact["state"], tol)
        else:
            assert np.asarray(g).dtype == dtype, name
            near(g, exact[name], tol, f"d_{name}", sizes[name])
    return got
