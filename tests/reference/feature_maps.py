"""An oracle for feature maps, written from the equations alone. It imports nothing of recollect.

    identity      phi_i = x_i
    relu          phi_i = max(x_i, 0)
    squared_relu  phi_i = max(x_i, 0)^2
    elu1          phi_i = x_i + 1 where x_i > 0, else exp(x_i)
    softmax       phi_i = exp(x_i) / sum_j exp(x_j)
    l2            phi_i = x_i / |x|, zeros for x = 0
    dpfp (nu)     phi_[(k - 1) 2K + i] = r_i r_[(i + k) mod 2K],  k = 1..nu,  r = [max(x, 0), max(-x, 0)]
    favor (R)     phi = exp(-|x'|^2 / 2) / sqrt(2 m) [exp(R x'), exp(-R x')],  x' = x / K^(1/4),  R of shape (m, K)

and, on top of any of them, one normalisation:

    sum           phi' = phi / sum_j phi_j, zeros where the sum is 0
    l2            phi' = phi / |phi|, zeros where phi is 0

A map is its name, or ("dpfp", nu), or ("favor", R). Where relu has a kink its derivative is 0; a vector that is
zero by a rule above has no gradient. Every function works in the number type it is given; complex numbers branch on
their real part, so that a complex step differentiates all of them.
"""

import numpy as np

NAMES = ("identity", "relu", "elu1", "dpfp", "favor", "softmax", "l2", "squared_relu")


def positive(x):
    return np.where(x.real > 0, x, 0)


def directions(x):
    """x / |x| and 1 / |x|, both zero where x is."""
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    some = np.where(length == 0, 1, length)
    inverse = np.where(length == 0, 0, 1 / some)
    return x * inverse, inverse


def softmax(x):
    e = np.exp(x - x.real.max(axis=-1, keepdims=True, initial=-np.inf)) if x.shape[-1] else x
    return e / e.sum(axis=-1, keepdims=True)


def halves(x):
    return np.concatenate([positive(x), positive(-x)], axis=-1)


def dpfp(x, nu):
    r = halves(x)
    i = np.arange(r.shape[-1])
    return np.concatenate([r * r[..., (i + k) % r.shape[-1]] for k in range(1, nu + 1)], axis=-1)


def dpfp_pullback(x, g, nu):
    r = halves(x)
    n, i = r.shape[-1], np.arange(r.shape[-1])
    d_r = np.zeros_like(r)
    for k in range(1, nu + 1):
        block = g[..., (k - 1) * n : k * n]
        d_r += block * r[..., (i + k) % n]
        d_r += (block * r)[..., (i - k) % n]
    first, second = np.split(d_r, 2, axis=-1)
    return np.where(x.real > 0, first, 0) - np.where(x.real < 0, second, 0)


def favor_logarithms(x, R):
    """log phi, for rows so long that phi is a number of no type."""
    x = x / np.asarray(x.shape[-1], x.real.dtype) ** x.real.dtype.type(0.25)
    z = x @ np.swapaxes(np.asarray(R, x.real.dtype), 0, 1)
    half = (x * x).sum(axis=-1, keepdims=True) / 2
    return np.concatenate([z - half, -z - half], axis=-1) - np.log(np.asarray(2 * len(R), x.real.dtype)) / 2


def favor(x, R):
    return np.exp(favor_logarithms(x, R))


def favor_pullback(x, g, R, absolute=False):
    """d_x' = sum_j g+_j phi+_j (r_j - x') + g-_j phi-_j (-r_j - x')"""
    return favor_logarithms_pullback(x, g * favor(x, R), R, absolute)


def favor_logarithms_pullback(x, d_log, R, absolute=False):
    """d_x' = sum_j l+_j (r_j - x') + l-_j (-r_j - x'), l the gradient of log phi"""
    temper = np.asarray(x.shape[-1], x.dtype) ** x.dtype.type(-0.25)
    plus, minus = np.split(d_log, 2, axis=-1)
    both, R = (plus + minus).sum(axis=-1, keepdims=True), np.asarray(R, x.dtype)
    if absolute:
        return temper * ((plus + minus) @ np.abs(R) + both * np.abs(temper * x))
    return temper * ((plus - minus) @ R - both * (temper * x))


def split(feature_map):
    """Name and parameters of a map; None is the identity."""
    if feature_map is None:
        return "identity", ()
    return (feature_map, ()) if isinstance(feature_map, str) else (feature_map[0], feature_map[1:])


def value(x, feature_map, normalize="none"):
    name, more = split(feature_map)
    phi = {
        "identity": lambda: x,
        "relu": lambda: positive(x),
        "squared_relu": lambda: positive(x) ** 2,
        "elu1": lambda: np.where(x.real > 0, x + 1, np.exp(np.where(x.real > 0, 0, x))),
        "softmax": lambda: softmax(x),
        "l2": lambda: directions(x)[0],
        "dpfp": lambda: dpfp(x, *more),
        "favor": lambda: favor(x, *more),
    }[name]()
    return normalized(phi, normalize)


def normalized(phi, normalize):
    if normalize == "l2":
        return directions(phi)[0]
    if normalize == "sum":
        total = phi.sum(axis=-1, keepdims=True)
        return np.where(total == 0, 0, phi / np.where(total == 0, 1, total))
    return phi


def normalized_pullback(phi, g, normalize, sign=-1):
    """sum: (g - g . phi') / sum;  l2: (g - (g . phi') phi') / |phi|"""
    if normalize == "l2":
        unit, inverse = directions(phi)
        unit = unit if sign < 0 else np.abs(unit)
        return (g + sign * (g * unit).sum(axis=-1, keepdims=True) * unit) * inverse
    if normalize == "sum":
        total = phi.sum(axis=-1, keepdims=True)
        mean = (g * normalized(phi, "sum")).sum(axis=-1, keepdims=True)
        return np.where(total == 0, 0, (g + sign * mean) / np.where(total == 0, 1, total))
    return g


def pullback(x, d_phi, feature_map, normalize="none", absolute=False):
    """The gradient of sum(d_phi * value(x)). absolute: differences become sums of magnitudes, for d_phi >= 0: what rounding
    errors scale with."""
    name, more = split(feature_map)
    sign = 1 if absolute else -1
    g = normalized_pullback(value(x, feature_map), d_phi, normalize, sign)
    if name == "softmax":
        p = softmax(x)
        return p * (g + sign * (g * p).sum(axis=-1, keepdims=True))
    made = {
        "identity": lambda: g,
        "relu": lambda: np.where(x > 0, g, 0),
        "squared_relu": lambda: 2 * positive(x) * g,
        "elu1": lambda: g * np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
        "l2": lambda: normalized_pullback(x, g, "l2", sign),
        "dpfp": lambda: dpfp_pullback(x, g, *more),
        "favor": lambda: favor_pullback(x, g, *more, absolute),
    }[name]()
    return np.abs(made) if absolute else made


def width(feature_map, K):
    name, more = split(feature_map)
    return {"dpfp": lambda: 2 * K * more[0], "favor": lambda: 2 * len(more[0])}.get(name, lambda: K)()
