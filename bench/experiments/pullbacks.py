"""What models of a few lines are made of beside the library's ops: like `recollect.vjp`, each returns its value and its pullback."""

import numpy as np


def linear(x, weight):
    """x W. The pullback gives (d_x, d_weight)."""
    rows = x.reshape(-1, x.shape[-1])

    def pullback(d):
        d_rows = d.reshape(-1, d.shape[-1])
        return (d_rows @ weight.T).reshape(x.shape), rows.T @ d_rows

    return (rows @ weight).reshape(*x.shape[:-1], -1), pullback


def lookup(table, index):
    """table[index]. The pullback gives d_table."""

    def pullback(d):
        chosen = np.zeros((index.size, len(table)), table.dtype)
        chosen[np.arange(index.size), index.ravel()] = 1
        return chosen.T @ d.reshape(index.size, -1)  # much faster than adding row after row

    return table[index], pullback


def sigmoid(x):
    """1 / (1 + exp(-x)). The pullback gives d_x."""
    y = 0.5 * (1 + np.tanh(0.5 * x))
    return y, lambda d: d * y * (1 - y)


def cross_entropy(z, targets):
    """Mean of -log softmax(z)[target], in nats. The pullback gives d_z."""
    p = z - z.max(axis=-1, keepdims=True)
    right = np.take_along_axis(p, targets[..., None], -1)
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)

    def pullback(d=1.0):
        d_z = p / total
        np.put_along_axis(d_z, targets[..., None], np.take_along_axis(d_z, targets[..., None], -1) - 1, -1)
        return d_z * (d / targets.size)

    return float((np.log(total) - right).mean(dtype=np.float64)), pullback


def start(rng, rows, columns, dtype=np.float32):
    """A weight as it starts: U(-a, a), a = 1 / sqrt(rows)."""
    return (rng.uniform(-1, 1, (rows, columns)) / np.sqrt(rows)).astype(dtype)
