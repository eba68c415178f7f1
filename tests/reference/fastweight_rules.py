"""The named fast-weight rules, each by its own definition as a dense transition of the state. Imports nothing of recollect.

    S_t = A_t S_{t-1} + B_t,   o_t = scale S_t^T q_t

Each rule is a function that gives A_t (..., K, K) and B_t (..., K, V) for every time. None goes through the general
recurrence a (b^T S) + k v^T, which is what makes them witnesses for it. Shapes: vectors over keys (..., T, K), over values
(..., T, V), numbers (..., T).
"""

import numpy as np

from tests.reference.fastweight import Result, State, outer, read


def eye(k):
    return np.eye(k.shape[-1], dtype=k.real.dtype)


def diag(w):
    return w[..., :, None] * eye(w)


def number(x):
    return x[..., None, None]


def run(q, transitions, scale=1.0, state=None):
    A, B = transitions
    batch = np.broadcast_shapes(q.shape[:-2], A.shape[:-3], B.shape[:-3], () if state is None else state.shape[:-2])
    S = np.zeros((*batch, *B.shape[-2:]), np.result_type(q, A, B)) + (0 if state is None else state)
    rows = []
    for t in range(q.shape[-2]):
        S = A[..., t, :, :] @ S + B[..., t, :, :]
        rows.append(scale * read(S, q[..., t, :]))
    out = np.stack(rows, axis=-2) if rows else np.zeros((*batch, 0, B.shape[-1]), S.dtype)
    return Result(out, State(S))


# --------------------------------------------------------------------------------------------- the rules one by one


def linear_attention(k, v):
    return np.broadcast_to(eye(k), (*k.shape, k.shape[-1])), outer(k, v)


def retnet(k, v, decay):
    """S = gamma S + k v^T, gamma one number per head and time; Mamba-2 with gamma = exp(-dt A), k = dt B."""
    return number(decay) * eye(k), outer(k, v)


def gated_linear_attention(k, v, decay):
    """S = Diag(alpha) S + k v^T"""
    return diag(decay), outer(k, v)


def delta_net(k, v, beta):
    """S = (I - beta k k^T) S + beta k v^T"""
    return eye(k) - number(beta) * outer(k, k), number(beta) * outer(k, v)


def gated_delta_net(k, v, beta, decay):
    """S = alpha (I - beta k k^T) S + beta k v^T"""
    A, B = delta_net(k, v, beta)
    return number(decay) * A, B


def kimi_delta_attention(k, v, beta, decay):
    """S = (I - beta k k^T) Diag(alpha) S + beta k v^T"""
    A, B = delta_net(k, v, beta)
    return A @ diag(decay), B


def comba(k, v, beta, removal, decay):
    """S = alpha (I - beta k p^T) S + beta k v^T: reads along p what it writes along k"""
    return number(decay) * (eye(k) - number(beta) * outer(k, removal)), number(beta) * outer(k, v)


def gated_delta_rule_2(k, v, erase, write, decay):
    """S = (I - k (e k)^T) Diag(alpha) S + k (w v)^T"""
    return (eye(k) - outer(k, erase * k)) @ diag(decay), outer(k, write * v)


def rwkv7(k, v, removal, rate, decay):
    """S = (Diag(w) - (a kappa) kappa^T) S + k v^T"""
    return diag(decay) - outer(rate * removal, removal), outer(k, v)


def delta_product(k, v, beta, decay=None):
    """k (..., T, n, K), v (..., T, n, V), beta (..., T, n): n steps of the delta rule a token, the decay once before them."""
    A, B = delta_net(k, v, beta)
    steps = k.shape[-2]
    whole = np.broadcast_to(eye(k), (*k.shape[:-2], k.shape[-1], k.shape[-1]))
    if decay is not None:
        whole = whole * number(decay)
    added = np.zeros((*B.shape[:-3], *B.shape[-2:]), np.result_type(A, B))
    for j in range(steps):
        whole, added = A[..., j, :, :] @ whole, A[..., j, :, :] @ added + B[..., j, :, :]
    return whole, added


# --------------------------------------------------------------------------------------------- recursive least squares


def least_squares(k, v, ridge, forget=1.0, t=None):
    """argmin_S sum_{i <= t} forget^(t - i) |v_i - S^T k_i|^2 + forget^t ridge |S|^2, from the normal equations; t counts from 1."""
    t = k.shape[-2] if t is None else t
    weight = np.asarray(forget, k.dtype) ** np.arange(t - 1, -1, -1)
    k, v = k[..., :t, :], v[..., :t, :]
    left = np.swapaxes(k, -1, -2) @ (weight[:, None] * k) + ridge * np.asarray(forget, k.dtype) ** t * eye(k)
    right = np.swapaxes(k, -1, -2) @ (weight[:, None] * v)
    if left.dtype == np.longdouble:
        return refined(left, right)
    return np.linalg.solve(left, right)


def refined(left, right):
    """A solution in long double from float64 solutions of what is left over."""
    x = np.zeros_like(right)
    for _ in range(4):
        x = x + np.linalg.solve(left.astype(float), (right - left @ x).astype(float))
    return x


def gains(k, ridge, forget=1.0):
    """g_t = P k / (forget + k^T P k), P <- (P - g (P k)^T) / forget, P_0 = I / ridge: then S_t = S + g (v - S^T k)^T"""
    P = np.broadcast_to(eye(k) / ridge, (*k.shape[:-2], k.shape[-1], k.shape[-1]))
    rows = []
    for t in range(k.shape[-2]):
        Pk = (P * k[..., t, None, :]).sum(axis=-1)
        g = Pk / (forget + (Pk * k[..., t, :]).sum(axis=-1, keepdims=True))
        P = (P - outer(g, Pk)) / forget
        rows.append(g)
    return np.stack(rows, axis=-2) if rows else np.zeros_like(k)


def recursive_least_squares(k, v, ridge, forget=1.0):
    """The transitions S = (I - g k^T) S + g v^T"""
    g = gains(k, ridge, forget)
    return eye(k) - outer(g, k), outer(g, v)


# ------------------------------------------------------------------------------------------------ closed chunk form


def delta_rule_at_once(q, k, v, beta, decay, S0):
    """The delta rule over a whole sequence without a loop (WY form), with G_i = sum_{j <= i} log decay_j per channel:

    (I + tril(diag(beta) M, -1)) U = diag(beta) (V - (K e^G) S_0),   M_ij = sum_f k_if e^{G_if - G_jf} k_jf
    O = (Q e^G) S_0 + tril(N) U,  N_ij = sum_f q_if e^{G_if - G_jf} k_jf;   S = e^{G_T} S_0 + (e^{G_T - G} K)^T U
    """
    T = k.shape[-2]
    G = np.cumsum(np.log(decay), axis=-2)
    past = np.exp(np.where(np.tri(T, dtype=bool)[..., None], G[..., :, None, :] - G[..., None, :, :], -np.inf))
    M, N = ((x[..., :, None, :] * past * k[..., None, :, :]).sum(axis=-1) for x in (k, q))
    left = np.eye(T, dtype=k.dtype) + beta[..., :, None] * np.tril(M, -1)
    U = np.linalg.solve(left, beta[..., :, None] * (v - (k * np.exp(G)) @ S0))
    last = G[..., -1:, :]
    S = np.exp(last[..., 0, :, None]) * S0 + np.swapaxes(k * np.exp(last - G), -1, -2) @ U
    return Result((q * np.exp(G)) @ S0 + np.tril(N) @ U, State(S))
