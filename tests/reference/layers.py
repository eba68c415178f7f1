"""Layers, in float64, from their equations, one batch entry and one head at a time. Nothing of recollect is imported.

Parameters are dicts of arrays under the names that the layers give them, weights (out, in), y = x W^T + b.

    layer norm    y = g (x - mean) / sqrt(mean((x - mean)^2) + eps) + d
    multi-head    head_h = softmax(q_h k_h^T / sqrt(d)) v_h,  q_h, k_h, v_h the h-th d columns of the projections; out = [heads] Wo^T + bo
    Hopfield      q_h <- softmax(beta_h q_h k_h^T) k_h, then z_h = softmax(beta_h q_h k_h^T) v_h; out = [z_h] Wo^T + bo
    Gaussian      A_ij = exp(-((s_j - mu_i) / sigma_i)^2 / 2) / sum over j that are kept,  s_j = (j - (N - 1) / 2) / ((N - 1) / 2)
    encoder       post-norm: h = LN(x + MHA(x)), LN(h + FFN(h));  pre-norm: h = x + MHA(LN(x)), h + FFN(LN(h));  FFN = W2 relu(W1 z + b1) + b2
    positions     PE[t, 2 i] = sin(t / 10000^(2 i / D)),  PE[t, 2 i + 1] = cos of the same
"""

import numpy as np


def norm(x, p, name, eps=1e-5):
    y = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index] - np.mean(x[index])
        y[index] = row / np.sqrt(np.mean(row**2) + eps)
    return y * p.get(f"{name}weight", 1.0) + p.get(f"{name}bias", 0.0)


def linear(x, p, name):
    return np.einsum("...i,oi->...o", x, p[f"{name}.weight"]) + p.get(f"{name}.bias", 0.0)


def softmax(s):
    """Of one row; zeros where nothing is finite."""
    if not np.isfinite(s).any():
        return np.zeros_like(s)
    e = np.exp(s - s.max())
    return e / e.sum()


def read_row(q, k, v, beta, keep):
    return softmax(np.where(keep, beta * (k @ q), -np.inf)) @ v


def columns(x, h, d):
    return x[:, h * d : (h + 1) * d]


def multi_head(p, heads, query, key, value, keep):
    """query (B, n, .), key, value (B, m, .), keep (B, H, n, m)."""
    q, k, v = linear(query, p, "query"), linear(key, p, "key"), linear(value, p, "value")
    d = q.shape[-1] // heads
    joined = np.zeros(q.shape)
    for b in range(len(q)):
        for h in range(heads):
            qh, kh, vh = columns(q[b], h, d), columns(k[b], h, d), columns(v[b], h, d)
            for i, row in enumerate(qh):
                joined[b, i, h * d : (h + 1) * d] = read_row(row, kh, vh, 1 / np.sqrt(d), keep[b, h, i])
    return linear(joined, p, "output")


def hopfield(p, heads, stored, state, projection, keep, *, beta, steps=0, eps=None, normalised=(True, True, True), static=(False, False, False),
             connected=False, space=False, zero_row=False):  # fmt: skip
    """stored (B, S, .), state (B, L, .), projection (B, S, .), keep (B, H, L, S), beta (H,); the flags in this order of roles.

    steps: updates before the read, None: until a row moves by at most eps. A role without projection is static.
    """
    names = ("stored_pattern", "state_pattern", "pattern_projection")
    y, r, u = (
        norm(x, p, f"norm_{name}.") if on else x
        for x, name, on in zip((stored, state, projection), names, normalised, strict=True)
    )
    outs = []
    for b in range(len(y)):
        zs = []
        for h in range(heads):

            def head(x, name, is_static, h=h):
                if is_static:
                    return x
                rows = linear(x, p, name)
                return columns(rows, h, rows.shape[-1] // heads)

            def in_space(x):
                return norm(x, p, "norm_hopfield_space.") if space else x

            k, q = in_space(head(y[b], names[0], static[0])), in_space(head(r[b], names[1], static[1]))
            if connected and not static[0]:
                parts = [linear(u[b], p, names[0])]
                d = parts[0].shape[-1] // heads
                through = [in_space(columns(parts[0], g, d)) for g in range(heads)]
                v = through[h] if static[2] else head(np.concatenate(through, -1), names[2], False)
            else:
                v = head(u[b], names[2], static[2])
            kept = keep[b, h]
            if "bias_stored_pattern" in p:
                k = np.concatenate([k, p["bias_stored_pattern"].reshape(heads, 1, -1)[h]])
                v = np.concatenate([v, p["bias_pattern_projection"].reshape(heads, 1, -1)[h]])
            if zero_row:
                k, v = np.concatenate([k, np.zeros((1, k.shape[1]))]), np.concatenate([v, np.zeros((1, v.shape[1]))])
            kept = np.concatenate([kept, np.ones((len(kept), len(k) - kept.shape[1]), bool)], axis=1)
            z = np.zeros((len(q), v.shape[1]))
            for i, row in enumerate(q):
                for _ in range(999 if steps is None else steps):
                    moved = read_row(row, k, k, beta[h], kept[i])
                    far = np.linalg.norm(moved - row)
                    row = moved
                    if steps is None and far <= eps:
                        break
                z[i] = read_row(row, k, v, beta[h], kept[i])
            zs.append(z)
        outs.append(np.concatenate(zs, axis=-1))
    out = np.stack(outs)
    return linear(out, p, "output") if "output.weight" in p else out


def gaussian_head(mean, spread, value, keep):
    """mean, spread (H, N), value (B, H, N, e), keep (B, N)."""
    n = value.shape[-2]
    s = np.array([(j - (n - 1) / 2) / ((n - 1) / 2) for j in range(n)]) if n > 1 else np.zeros(1)
    out = np.zeros(value.shape)
    for b, h in np.ndindex(value.shape[:2]):
        for i in range(n):
            e = ((s - mean[h, i]) / spread[h, i]) ** 2 / 2
            out[b, h, i] = softmax(np.where(keep[b], -e, -np.inf)) @ value[b, h]
    return out


def positions(length, width):
    table = np.zeros((length, width))
    for t in range(length):
        for c in range(width):
            angle = t / 10000 ** (2 * (c // 2) / width)
            table[t, c] = np.cos(angle) if c % 2 else np.sin(angle)
    return table


def encoder(p, heads, x, keep, *, pre):
    inner = {name.removeprefix("attention."): array for name, array in p.items()}

    def attend(z):
        return multi_head(inner, heads, z, z, z, keep)

    def feed(z):
        return linear(np.maximum(linear(z, p, "expand"), 0), p, "contract")

    if pre:
        h = x + attend(norm(x, p, "norm_attention."))
        return h + feed(norm(h, p, "norm_feed_forward."))
    h = norm(x + attend(x), p, "norm_attention.")
    return norm(h + feed(h), p, "norm_feed_forward.")
