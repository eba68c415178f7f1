"""Linear attention with FAVOR+ features that are numbers of no type: rows so long that exp(-|x|^2/2) is nothing. The oracle
sums over keys and features in logarithms."""

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw
from tests.reference import fastweight as ref
from tests.reference import feature_maps as maps

SIZES = [1e-3, 1.0, 30.0, 1e3]  # |x|, about
KINDS = ["causal", "decay per head", "log decay per channel", "strong log decay", "all keys"]


def posed(rng, dtype, size, kind, T=40, d=6, V=5, m=9):
    """Queries and keys of every length up to `size`, and a decay."""
    o = fw.linear(rng, dtype, T, d, V, feature_map=fw.favor(d, m))
    for name in ("query", "key"):
        o[name] *= (size / np.sqrt(d) * rng.uniform(0, 1, (T, 1))).astype(dtype)
    if kind == "decay per head":
        o["decay"] = fw.decays(rng, dtype, T)
    elif kind == "log decay per channel":
        o["log_decay"] = -rng.exponential(0.3, (T, 2 * m)).astype(dtype)
    elif kind == "strong log decay":
        o["log_decay"] = -rng.exponential(200, T).astype(dtype)
    elif kind == "all keys":
        o["causal"] = False
    return o


def logarithms(o):
    kind = fw.judge(o["key"].dtype)
    R = o["feature_map"][1]
    log_q, log_k = (maps.favor_logarithms(o[name].astype(kind), R) for name in ("query", "key"))
    log_decay = np.log(o["decay"].astype(kind)) if "decay" in o else o.get("log_decay")
    if log_decay is not None:
        log_decay = log_decay.astype(kind)
        log_decay = log_decay[:, None] if log_decay.ndim == 1 else log_decay
    return log_q, log_k, o["value"].astype(kind), {"log_decay": log_decay, "causal": o.get("causal", True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_every_length(rng, dtype, size, kind):
    o = posed(rng, dtype, size, kind)
    log_q, log_k, v, more = logarithms(o)
    exact = ref.of_logarithms(log_q, log_k, v, **more)
    for chunk in fw.CHUNKS:
        fw.near(fw.call("linear_attention", o, chunk=chunk), exact, fw.TOL[np.dtype(dtype).name])
    fw.near(fw.call("linear_attention", o, scale=-3.0), -3 * exact, fw.TOL[np.dtype(dtype).name])


def expected_gradients(o, u):
    """By name, and the sizes of the terms that they are sums of."""
    log_q, log_k, v, more = logarithms(o)
    exact, size = (
        ref.of_logarithms_gradients(log_q, log_k, v, u.astype(v.dtype), **more, absolute=terms)
        for terms in (False, True)
    )
    if "decay" in o:
        for made in (exact, size):
            made["decay"] = made.pop("log_decay").sum(axis=1) / o["decay"]
    elif "log_decay" in o and o["log_decay"].ndim == 1:
        for made in (exact, size):
            made["log_decay"] = made["log_decay"].sum(axis=1)
    if "log_decay" in o:  # a gate may scale what S_t holds less what it has just been given
        size["log_decay"] = np.maximum(size["log_decay"].max(), size["key"].max())
    for name in ("query", "key"):
        wide, R = o[name].astype(v.dtype), o["feature_map"][1]
        exact[name] = maps.favor_logarithms_pullback(wide, exact[name], R)
        size[name] = maps.favor_logarithms_pullback(wide, size[name], R, True)
    return exact, {name: a.max() for name, a in size.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_rows_of_every_length(rng, dtype, size, kind):
    o = posed(rng, dtype, size, kind)
    u = fw.draw(rng, dtype, 40, 5)
    exact, sizes = expected_gradients(o, u)
    for chunk in (None, 7):
        got = fw.vjp("linear_attention", o, chunk=chunk)[1](u)
        for name in got._fields:
            fw.near(getattr(got, name), exact[name], fw.GRADIENT_TOL[np.dtype(dtype).name], name, sizes[name])


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("size", SIZES)
def test_a_state_is_carried_on(rng, dtype, size, kind):
    """In parts, token by token, and for gradients."""
    o = posed(rng, dtype, size, kind)
    times = {"decay", "log_decay", "query", "key", "value"}
    u = fw.draw(rng, dtype, 40, 5)

    def part(where):
        return {k: a[where] if k in times else a for k, a in o.items()}

    whole = fw.call("linear_attention", o)
    tol = fw.SAME[np.dtype(dtype).name]
    state = None
    for t in range(40):
        out, state = fw.call("linear_attention", part(slice(t, t + 1)), state=state, return_state=True)
        assert state.shape == (18, 7) and np.isfinite(state).all()
        fw.near(out[0], whole[t], 4 * tol, f"out {t}", np.abs(whole).max())
    (first, middle), back1 = fw.vjp("linear_attention", part(slice(0, 23)), return_state=True)
    second, back2 = fw.vjp("linear_attention", part(slice(23, 40)), state=middle)
    fw.near(np.concatenate([first, second]), whole, tol)
    late = back2(u[23:])
    assert (late.state[:, -1] == 0).all()
    early = back1((u[:23], late.state))
    exact, sizes = expected_gradients(o, u)
    for name in early._fields:
        got = np.concatenate([getattr(early, name), getattr(late, name)])
        fw.near(got, exact[name], fw.GRADIENT_TOL[np.dtype(dtype).name], name, sizes[name])


def test_a_state_of_zeros_holds_nothing(rng, dtype, same_bits):
    o = posed(rng, dtype, 1e3, "causal")
    out, state = fw.call("linear_attention", o, return_state=True)
    again = fw.call("linear_attention", o, state=np.zeros((18, 7), dtype), return_state=True)
    same_bits(again.out, out)
    same_bits(again.state, state)
    none = {k: a[:0] if isinstance(a, np.ndarray) else a for k, a in o.items()}
    assert (fw.call("linear_attention", none, return_state=True).state == 0).all()
    same_bits(fw.call("linear_attention", none, state=state, return_state=True).state, state)


def test_a_state_without_its_logarithms_is_refused(rng):
    o = posed(rng, np.float64, 1.0, "causal")
    with pytest.raises(ValueError, match=r"state has shape \(18, 6\); expected \(\.\.\., K=18, 7\), .* logarithms"):
        fw.call("linear_attention", o, state=np.zeros((18, 6)))
    with pytest.raises(ValueError, match=r"state has shape \(18, 7\); expected \(\.\.\., K=18, 5\)"):
        fw.call("linear_attention", o, state=np.zeros((18, 7)), normalize=False)


def test_a_key_alone_is_read_whole_by_any_query(rng, dtype):
    """However far their largest features are apart."""
    for size in (1.0, 1e2, 1e4):
        o = posed(rng, dtype, size, "causal", T=1)
        fw.near(fw.call("linear_attention", o), o["value"], fw.TOL[np.dtype(dtype).name])


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_later_rows_may_hold_anything(rng, dtype, junk, same_bits):
    o = posed(rng, dtype, 30.0, "decay per head")
    plain = fw.call("linear_attention", o)
    for name in ("query", "key", "value"):
        spoilt = o[name].copy()
        spoilt[21:] = junk
        out = fw.call("linear_attention", o | {name: spoilt})
        same_bits(out[:21], plain[:21])
        assert not np.isfinite(out[21:]).any(), "and what is no number is not hidden"


def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits):
    o = fw.linear(rng, dtype, 70, 6, 9, (5,), feature_map=fw.favor(6, 9), log_decay=-rng.random((5, 70)).astype(dtype))
    made = []
    for count in (1, 2, 7):
        rc.set_num_threads(count)
        (out, state), pullback = fw.vjp("linear_attention", o, return_state=True)
        made.append([out, state, *pullback((np.ones_like(out), np.ones_like(state)))])
    for other in made[1:]:
        for a, b in zip(other, made[0], strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("normalize", ["sum", "l2"])
@pytest.mark.parametrize("size", SIZES)
def test_normalised_features_of_every_length(rng, dtype, size, normalize):
    x = fw.draw(rng, dtype, 20, 6) * dtype(size / np.sqrt(6))
    name, R = fw.favor(6, 9)
    wide = x.astype(fw.judge(dtype))
    logs = maps.favor_logarithms(wide, R)
    scaled = np.exp(logs - logs.max(axis=-1, keepdims=True))
    exact = maps.normalized(scaled, normalize)
    phi, pullback = rc.vjp(rc.fastweight.feature_map, x, rc.fastweight.favor(R), normalize=normalize)
    fw.near(phi, exact, fw.TOL[np.dtype(dtype).name])
    u = fw.draw(rng, dtype, *phi.shape)
    d_log = maps.normalized_pullback(scaled, u.astype(wide.dtype), normalize) * scaled
    terms = maps.normalized_pullback(scaled, np.abs(u).astype(wide.dtype), normalize, 1) * scaled
    (got,) = pullback(u)
    largest = maps.favor_logarithms_pullback(wide, terms, R, True).max()
    tol = fw.GRADIENT_TOL[np.dtype(dtype).name]
    fw.near(got, maps.favor_logarithms_pullback(wide, d_log, R), tol, name, largest)
    # the delta rule with it is finite
    o = fw.delta(rng, dtype, 20, feature_map=(name, R), normalize=normalize) | {"query": x, "key": x}
    out, pullback = fw.vjp("delta_rule", o)
    assert all(np.isfinite(a).all() for a in (out, *pullback(np.ones_like(out))))
