"""An oracle for fast weights, written from the equations alone. It imports nothing of recollect.

The state S (K, V) is key-major: a value is read by S^T q. Each rule is a loop over time; each gradient keeps every
state and walks back. All is slow and plain on purpose, and works in whatever number type it is given, so that
np.longdouble judges float64 and a complex step differentiates (`complex_step`).

    sum rule       S_t = D_t S_{t-1} + k_t v_t^T,            z_t = D_t z_{t-1} + k_t
    delta rule     S' = D_t S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T
    with attention normalisation   v_t - S'^T k_t / (z' . k_t),   z' = D_t z_{t-1},   z_t = z' + k_t
    fast weight    S_t = D_t S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T
    read           o_t = scale S_t^T q_t,   normalised: S_t^T q_t / (z_t . q_t)

k and q stand for the features phi(k), phi(q). A denominator of 0 gives zeros and no gradient.

Shapes: query, key (..., T, K), value (..., T, V), beta (..., T), decay (..., T, 1) or (..., T, F), scale over the
leading axes, state S (..., F, V) and z (..., F); leading axes broadcast.
"""

from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    S: np.ndarray  # (..., F, V)
    z: np.ndarray | None = None  # (..., F), where a denominator is kept


class Result(NamedTuple):
    out: np.ndarray  # (..., T, V)
    state: State


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def read(S, q):
    """S^T q"""
    return (S * q[..., :, None]).sum(axis=-2)


def dot(a, b):
    return (a * b).sum(axis=-1)


def inverse(n):
    """1 / n, and 0 for 0."""
    return np.where(n == 0, 0, 1 / np.where(n == 0, 1, n))


def sum_to(gradient, shape):
    """Sums a gradient over the axes along which its operand was broadcast."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=stretched, keepdims=True).reshape(shape)


def start(shape, kind, state):
    """Leading axes and first state: zeros where none is given. `shape`: of what is read, (..., F, V)."""
    S, z = np.zeros(shape, kind), np.zeros(shape[:-1], kind)
    if state is None:
        return S, z
    return S + state.S, z if state.z is None else z + state.z


def lead(*operands):
    """The common leading axes of (array, number of own axes)."""
    return np.broadcast_shapes(*(np.shape(a)[: np.ndim(a) - own] for a, own in operands if a is not None))


def kind_of(*operands):
    return np.result_type(*(np.asarray(a).dtype for a in operands if a is not None and not np.isscalar(a)))


def setting(q, k, v, decay, scale, state, *more):
    """Number type, decay and scale as arrays, leading axes with those of `more`, (array, own axes)."""
    parts = () if state is None else ((state.S, 2), (state.z, 1))
    kind = kind_of(q, k, v, decay, scale, *(a for a, _ in (*parts, *more)))
    D = np.ones((k.shape[-2], 1), kind) if decay is None else decay
    scale = np.asarray(scale, kind)
    batch = lead((q, 2), (k, 2), (v, 2), (D, 2), (scale, 0), *parts, *more)
    S, z = start((*batch, k.shape[-1], v.shape[-1]), kind, state)
    return kind, D, scale[..., None], batch, S, z


def stack(rows, batch, width, kind):
    """(..., T, width) of what was made at each time."""
    out = np.zeros((*batch, len(rows), width), kind)
    for t, row in enumerate(rows):
        out[..., t, :] = row
    return out


# ---------------------------------------------------------------------------------------------------- the sum rule


def sum_rule(q, k, v, normalize=False, decay=None, scale=1.0, state=None):
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state)
    rows = []
    for t in range(k.shape[-2]):
        d, kt, qt = D[..., t, :], k[..., t, :], q[..., t, :]
        S = d[..., None] * S + outer(kt, v[..., t, :])
        z = d * z + kt
        rows.append(scale * read(S, qt) * (inverse(dot(z, qt))[..., None] if normalize else 1))
    return Result(stack(rows, batch, v.shape[-1], kind), State(S, z))


def sum_rule_gradients(q, k, v, d_out, normalize=False, decay=None, scale=1.0, state=None, d_state=None, hold=False):
    """n_t = z_t . q_t:  g' = g / n, dn = -(g . o) / n;  G_t = sum_{s >= t} D..D q_s g'_s^T,  r_t = sum dn_s q_s;
    dk = G v + r,  dv = G^T k,  dD = rowsum(G * S_{t-1}) + r z_{t-1}

    hold: denominators count as constants. What is left is the part that the rest may cancel with, so that it tells how
    large the terms are which rounding errors come from.
    """
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state)
    kept = [(S, z)]
    for t in range(k.shape[-2]):
        d = D[..., t, :]
        kept.append((d[..., None] * kept[-1][0] + outer(k[..., t, :], v[..., t, :]), d * kept[-1][1] + k[..., t, :]))
    G, r = start(S.shape, kind, d_state)
    made = {name: [] for name in ("query", "key", "value", "decay")}
    d_scale = np.zeros(batch, kind)
    for t in reversed(range(k.shape[-2])):
        d, kt, vt, qt = D[..., t, :], k[..., t, :], v[..., t, :], q[..., t, :]
        S, z = kept[t + 1]
        n = inverse(dot(z, qt))[..., None] if normalize else np.ones((*batch, 1), kind)
        got, g = read(S, qt) * n, scale * d_out[..., t, :]
        dn = -dot(g, got)[..., None] * n if normalize and not hold else np.zeros((*batch, 1), kind)
        d_scale = d_scale + dot(d_out[..., t, :], got)
        made["query"].append((S * (n * g)[..., None, :]).sum(axis=-1) + dn * z)
        G, r = G + outer(qt, n * g), r + dn * qt
        made["key"].append((G * vt[..., None, :]).sum(axis=-1) + r)
        made["value"].append(read(G, kt))
        made["decay"].append((G * kept[t][0]).sum(axis=-1) + r * kept[t][1])
        G, r = d[..., None] * G, d * r
    return finish(made, batch, kind, G, r, d_scale)


def finish(made, batch, kind, G, r, d_scale):
    """What a walk back has made, in the order of time."""
    widths = {"value": G.shape[-1], "beta": 1, "beta size": 1}
    grads = {name: stack(rows[::-1], batch, widths.get(name, G.shape[-2]), kind) for name, rows in made.items()}
    return grads | {"state": State(G, r), "scale": d_scale}


def full_sum(q, k, v, normalize=False, scale=1.0):
    """Not causal: every query reads the sum over all keys."""
    S, z = np.swapaxes(k, -1, -2) @ v, k.sum(axis=-2)
    scale = np.asarray(scale, kind_of(q, k, v, scale))[..., None, None]
    n = inverse((q * z[..., None, :]).sum(axis=-1))[..., None] if normalize else 1
    return scale * (q @ S) * n


def full_sum_gradients(q, k, v, d_out, normalize=False, scale=1.0, hold=False):
    S, z = np.swapaxes(k, -1, -2) @ v, k.sum(axis=-2)
    scale = np.asarray(scale, kind_of(q, k, v, scale))[..., None, None]
    n = inverse((q * z[..., None, :]).sum(axis=-1))[..., None] if normalize else np.ones_like(d_out[..., :1])
    g, got = scale * d_out, q @ S * n
    dn = -dot(g, got)[..., None] * n * (normalize and not hold)
    G, r = np.swapaxes(q, -1, -2) @ (n * g), (dn * q).sum(axis=-2)
    return {
        "query": (n * g) @ np.swapaxes(S, -1, -2) + dn * z[..., None, :],
        "key": v @ np.swapaxes(G, -1, -2) + r[..., None, :],
        "value": k @ G,
        "scale": (d_out * got).sum(axis=(-1, -2)),
    }


def quadratic(q, k, v, normalize=False, decay=None, scale=1.0, state=None):
    """The sum rule without a state that is carried: w_ij = sum_f q_if e^{G_if - G_jf} k_jf for j <= i."""
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state)
    T = k.shape[-2]
    G = np.cumsum(np.log(D), axis=-2)
    past = np.exp(np.where(np.tri(T, dtype=bool)[..., None], G[..., :, None, :] - G[..., None, :, :], -np.inf))
    w = (q[..., :, None, :] * past * k[..., None, :, :]).sum(axis=-1)
    first = np.exp(G) * q
    out = w @ v + first @ S
    n = inverse(w.sum(axis=-1) + dot(first, z[..., None, :]))[..., None] if normalize else 1
    return scale[..., None] * out * n


def joint_weights(log_q, log_k, log_decay=None, causal=True):
    """Normalised attention over keys j and features f at once, of logarithms of any size:

    p_i(j, f) = e^{l_i(j, f)} / sum of all of i's,    l_i(j, f) = log q_if + log k_jf + sum of log D_f over j < t <= i
    """
    logs = log_q[:, None, :] + log_k[None, :, :]
    if log_decay is not None:
        G = np.cumsum(log_decay, axis=0)
        logs = logs + G[:, None, :] - G[None, :, :]
    if causal:
        logs = np.where(np.tri(len(log_k), dtype=bool)[..., None], logs, -np.inf)
    p = np.exp(logs - logs.max(axis=(1, 2), keepdims=True))
    return p / p.sum(axis=(1, 2), keepdims=True)


def of_logarithms(log_q, log_k, v, log_decay=None, causal=True):
    """The normalised sum rule: o_i = sum_j,f p_i(j, f) v_j"""
    return joint_weights(log_q, log_k, log_decay, causal).sum(axis=-1) @ v


def of_logarithms_gradients(log_q, log_k, v, d_out, log_decay=None, causal=True, absolute=False):
    """With e_i(j, f) = p_i(j, f) g_i . (v_j - o_i):  d log q_if = sum_j e_i(j, f),  d log k_jf = sum_i e_i(j, f); d log D_tf = the
    sum of e_i(j, f) over j < t <= i. absolute: the sizes of the terms of these sums"""
    p = joint_weights(log_q, log_k, log_decay, causal)
    out = p.sum(axis=-1) @ v
    found, held = d_out @ v.T, (d_out * out).sum(axis=-1, keepdims=True)
    e = p * (np.abs(found) + np.abs(held) if absolute else found - held)[..., None]
    made = {"query": e.sum(axis=1), "key": e.sum(axis=0), "value": p.sum(axis=-1).T @ d_out}
    if log_decay is not None:
        T = range(len(log_k))
        made["log_decay"] = np.stack([e[t:, :t].sum(axis=(0, 1)) for t in T])
    return made


# -------------------------------------------------------------------------------------------------- the delta rule


def delta_rule(q, k, v, beta, attention=False, decay=None, scale=1.0, state=None):
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state, (beta, 1))
    rows = []
    for t in range(k.shape[-2]):
        d, kt, qt = D[..., t, :], k[..., t, :], q[..., t, :]
        S, z = d[..., None] * S, d * z
        old = read(S, kt) * (inverse(dot(z, kt))[..., None] if attention else 1)
        S = S + beta[..., t, None, None] * outer(kt, v[..., t, :] - old)
        z = z + kt
        rows.append(scale * read(S, qt) * (inverse(dot(z, qt))[..., None] if attention else 1))
    return Result(stack(rows, batch, v.shape[-1], kind), State(S, z))


def delta_rule_gradients(
    q, k, v, beta, d_out, attention=False, decay=None, scale=1.0, state=None, d_state=None, hold=False
):
    """e = v - v-bar, S_t = S' + beta k e^T:  de = beta G^T k = dv,  dk = beta G e + S' dp + m' z',  dbeta = k . G e,
    p = S'^T k, m = z' . k, v-bar = p / m:  dp = -de / m, dm = (de . v-bar) / m;  dS' = G + k dp^T, dz' = r + dm k"""
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state, (beta, 1))
    kept = []
    one = np.ones((*batch, 1), kind)
    for t in range(k.shape[-2]):
        d, kt = D[..., t, :], k[..., t, :]
        before, Sp, zp = (S, z), d[..., None] * S, d * z
        m = inverse(dot(zp, kt))[..., None] if attention else one
        old = read(Sp, kt) * m
        S, z = Sp + beta[..., t, None, None] * outer(kt, v[..., t, :] - old), zp + kt
        kept.append((before, Sp, zp, m, old, S, z))
    G, r = start(S.shape, kind, d_state)
    made = {name: [] for name in ("query", "key", "value", "beta", "beta size", "decay")}
    d_scale = np.zeros(batch, kind)
    for t in reversed(range(k.shape[-2])):
        d, kt, qt, b = D[..., t, :], k[..., t, :], q[..., t, :], beta[..., t, None]
        (S0, z0), Sp, zp, m, old, S, z = kept[t]
        n = inverse(dot(z, qt))[..., None] if attention else one
        g, got = scale * n * d_out[..., t, :], read(S, qt)
        d_scale = d_scale + dot(d_out[..., t, :], got * n)
        dn = -dot(g, got * n)[..., None] if attention and not hold else 0 * one
        made["query"].append((S * g[..., None, :]).sum(axis=-1) + dn * z)
        G, r = G + outer(qt, g), r + dn * qt
        e = v[..., t, :] - old
        Ge = (G * e[..., None, :]).sum(axis=-1)
        de = b * read(G, kt)
        dp, dm = -de * m, (dot(de, old)[..., None] * m if attention and not hold else 0 * one)
        made["key"].append(b * Ge + r + (Sp * dp[..., None, :]).sum(axis=-1) + dm * zp)
        made["value"].append(de)
        made["beta"].append(dot(Ge, kt)[..., None])
        made["beta size"].append(dot((np.abs(G) * np.abs(e)[..., None, :]).sum(axis=-1), np.abs(kt))[..., None])
        G, r = G + outer(kt, dp), r + dm * kt
        made["decay"].append((G * S0).sum(axis=-1) + r * z0)
        G, r = d[..., None] * G, d * r
    return finish(made, batch, kind, G, r, d_scale)


# ------------------------------------------------------------------------------------------ the general recurrence


def fast_weight(q, k, v, a, b, decay=None, scale=1.0, state=None):
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state, (a, 2), (b, 2))
    rows = []
    for t in range(k.shape[-2]):
        u = read(S, b[..., t, :])  # of the state before it decays
        S = D[..., t, :, None] * S + outer(a[..., t, :], u) + outer(k[..., t, :], v[..., t, :])
        rows.append(scale * read(S, q[..., t, :]))
    return Result(stack(rows, batch, v.shape[-1], kind), State(S))


def fast_weight_gradients(q, k, v, a, b, d_out, decay=None, scale=1.0, state=None, d_state=None, hold=False):
    """dk = G v, dv = G^T k, da = G u, du = G^T a, db = S_{t-1} du, dD = rowsum(G * S_{t-1}); G <- D G + b du^T"""
    kind, D, scale, batch, S, z = setting(q, k, v, decay, scale, state, (a, 2), (b, 2))
    kept = [S]
    for t in range(k.shape[-2]):
        u = read(kept[-1], b[..., t, :])
        kept.append(D[..., t, :, None] * kept[-1] + outer(a[..., t, :], u) + outer(k[..., t, :], v[..., t, :]))
    G, _ = start(S.shape, kind, d_state)
    made = {name: [] for name in ("query", "key", "value", "a", "b", "decay")}
    d_scale = np.zeros(batch, kind)
    for t in reversed(range(k.shape[-2])):
        at, bt, kt, vt, qt, g = (x[..., t, :] for x in (a, b, k, v, q, d_out))
        d_scale = d_scale + dot(g, read(kept[t + 1], qt))
        made["query"].append((kept[t + 1] * (scale * g)[..., None, :]).sum(axis=-1))
        G = G + outer(qt, scale * g)
        du, u = read(G, at), read(kept[t], bt)
        made["key"].append((G * vt[..., None, :]).sum(axis=-1))
        made["value"].append(read(G, kt))
        made["a"].append((G * u[..., None, :]).sum(axis=-1))
        made["b"].append((kept[t] * du[..., None, :]).sum(axis=-1))
        made["decay"].append((G * kept[t]).sum(axis=-1))
        G = D[..., t, :, None] * G + outer(bt, du)
    return finish(made, batch, kind, G, np.zeros(G.shape[:-1], kind), d_scale)


# ------------------------------------------------------------------------------------- derivatives by complex step


def complex_step(function, operands, name):
    """The gradient of function(**operands), a number, with respect to one operand: Im f(x + ih) / h, exact to rounding."""
    x = np.asarray(operands[name])
    wide = np.result_type(x.dtype, np.complex64)
    h = x.dtype.type(1e-30)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        moved = x.astype(wide)
        moved[i] += 1j * h
        gradient[i] = function(**operands | {name: moved}).imag / h
    return gradient
