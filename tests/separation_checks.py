"""What the tests of separations share: the separations to try, and how far a result may be from the truth.

A score may be off by some eps * S, S the largest sum of magnitudes behind a score of its row, and what is made from it by
some eps of the numbers that weights are made from. separations.spread says what a shift of scores by that much can do to each
weight, beside a threshold or at a tie too: no other slack is given to any separation.
"""

import numpy as np

from tests import accuracy as acc
from tests.reference import attention as att
from tests.reference import separated
from tests.reference import separations as sep

EVERY = [
    "softmax", "sparsemax", "entmax15", ("entmax", 1.2), ("entmax", 1.5), ("entmax", 2), ("entmax", 3.0), ("normmax", 1.5),
    ("normmax", 2), ("normmax", 5.0), ("k_subset", 1), ("k_subset", 3), "hard", ("top_k_softmax", 3), "linear",
]  # fmt: skip
SOME = [
    "sparsemax",
    "entmax15",
    ("entmax", 1.3),
    ("normmax", 2),
    ("k_subset", 3),
    "hard",
    ("top_k_softmax", 3),
    "linear",
]
OTHERS = [s for s in EVERY if s != "softmax"]
NORMALISED = [s for s in EVERY if s not in ("linear", ("k_subset", 3))]
NUMBERS = ("query", "key", "value", "scale", "bias", "state", "patterns", "beta", "values", "d_out")


def operands(rng, dtype, n=5, m=11, d=6, e=4, batch=(), **more):
    """For attention."""
    o = {
        "query": rng.standard_normal((*batch, n, d)).astype(dtype),
        "key": rng.standard_normal((*batch, m, d)).astype(dtype),
        "value": rng.standard_normal((*batch, m, e)).astype(dtype),
    }
    return o | more


def memory(rng, dtype, n=5, N=11, d=6, e=None, batch=(), beta=0.8, **more):
    """For Hopfield networks: named arguments of retrieve."""
    o = {
        "state": rng.standard_normal((*batch, n, d)).astype(dtype),
        "patterns": rng.standard_normal((*batch, N, d)).astype(dtype),
        "beta": np.asarray(beta, dtype),
    }
    return o | ({} if e is None else {"values": rng.standard_normal((*batch, N, e)).astype(dtype)}) | more


def widen(dtype, o, judge=True):
    """The very numbers that recollect was given, in the type that judges dtype."""
    kind = acc.judge(dtype) if judge else np.float64
    return {k: np.asarray(a, kind) if k in NUMBERS and a is not None else a for k, a in o.items()}


# ------------------------------------------------------------------------------------------------------ bounds


def score_sizes(x):
    """S of every row of a Problem."""
    return att.largest_score(x, att.Weights(separated.raw(x), None, None, None))


def shift(dtype, x, separation, c):
    """By how much a score of a row may be off."""
    z = separated.logits(x)
    return c * acc.eps(dtype) * (score_sizes(x) + sep.reach(separation, z, x.keep))


def read_bound(dtype, x, separation, c=acc.C_READ):
    """(..., n, e): how far one read may be from the truth."""
    z = separated.logits(x)
    p = np.abs(sep.separate(separation, z, x.keep).p)
    moved = sep.spread(separation, z, shift(dtype, x, separation, c), x.keep)
    return (moved + c * acc.eps(dtype) * p) @ np.abs(x.value) + acc.underflow(dtype, x.value)


def potential_bound(dtype, x, separation, c=acc.C_ENERGY):
    """(..., n): Omega* moves by sum p times what the scores move. As a sum of p z and Omega(p), taken from the top score, it
    feels a sum of weights that is off by the threshold times that, and no other error of weights: they maximise."""
    z = separated.logits(x)
    p, off = np.abs(weights(x, separation)), shift(dtype, x, separation, c)
    rest = sep.spread(separation, z, shift(dtype, x, separation, 1), x.keep).sum(axis=-1) * sep.reach(
        separation, z, x.keep
    )
    rest = 0 if sep.levels(separation, z, x.keep) is None else rest
    return p.sum(axis=-1) * off + c * acc.eps(dtype) * np.abs(sep.omega(separation, p)) + rest


def weights(x, separation):
    return separated.weigh(x, separation).p


def within(got, expected, bound, what):
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    error, bound = np.abs(got[finite] - expected[finite]), np.broadcast_to(bound, expected.shape)[finite]
    assert (error <= bound).all(), f"{what}: {error.max()}, {(error / bound).max()} times the bound"


def check_attend(rc, dtype, separation, o, judge=True):
    """Output and Omega*, every entry within the bounds; returns what came."""
    got = rc.attention.attend(**o, separation=separation, return_lse=True)
    wide = widen(dtype, o, judge)
    x, expected = att.pose(**wide), separated.attend(**wide, separation=separation)
    assert got.out.dtype == got.lse.dtype == dtype
    within(got.out, expected.out, read_bound(dtype, x, separation), f"out of {separation}")
    within(got.lse, expected.lse, potential_bound(dtype, x, separation), f"lse of {separation}")
    return got


def check_energy(dtype, separation, energy, lse, state, o, judge=True):
    """Energy and lse of a state, each (..., n) or None."""
    wide = widen(dtype, {k: a for k, a in o.items() if k not in ("values", "steps", "tol")} | {"state": state}, judge)
    x = separated.pose(**wide)
    bound = potential_bound(dtype, x, separation) / x.scale[..., 0]
    if lse is not None:
        within(lse, separated.lse(**wide, separation=separation), bound, f"lse of {separation}")
    if energy is not None:
        squares = (x.query**2).sum(axis=-1) / 2
        if separation == "softmax":
            squares = squares + (x.key**2).sum(axis=-1).max(axis=-1, initial=0)[..., None] / 2
            squares = squares + np.log(np.maximum(x.keep.sum(axis=-1), 1)) / x.scale[..., 0]
        whole = bound + acc.C_ENERGY * acc.eps(dtype) * squares
        within(energy, separated.energy(**wide, separation=separation), whole, f"energy of {separation}")


def check_retrieve(rc, dtype, separation, o, steps=1, judge=True):
    """Every step by itself: the state that the one before returned is read once, by recollect and by the oracle."""
    state, info = o["state"], None
    for t in range(1, steps + 1):
        last = t == steps
        given = o if last else {k: a for k, a in o.items() if k != "values"}
        info = rc.hopfield.retrieve(**given, separation=separation, steps=t, return_info=True)
        assert info.state.dtype == info.energy.dtype == info.lse.dtype == dtype
        wide = widen(dtype, given | {"state": state}, judge)
        expected = separated.retrieve(**wide, separation=separation).state
        within(info.state, expected, read_bound(dtype, separated.pose(**wide), separation), f"step {t} of {separation}")
        state = state if "values" in given else info.state
    check_energy(dtype, separation, info.energy, info.lse, state, o, judge)
    return info


# --------------------------------------------------------------------------------------------------- gradients


def steepness(separation):
    """A weight is level^(1 / (a - 1)), its slope a power of it: relative errors of levels become this many times as large."""
    name, parameter = sep.parse(separation)
    alpha = parameter if name == "normmax" else sep.tsallis(separation)
    return 1.0 if alpha is None else (1 + abs(2 - alpha)) / (alpha - 1)


def clear_rows(dtype, path, separation, room=100.0):
    """(..., n): rows whose scores stay clear of where a weight changes its law, in every step."""
    gaps = [sep.gap(separation, separated.logits(x), x.keep) > room * shift(dtype, x, separation, 1) for x in path]
    return np.all(gaps, axis=0)


def row_units(dtype, path, separation):
    """(..., n): the relative size of rounding errors of a row: of its scores, and of levels that are small beside them."""
    units = []
    for x in path:
        off = shift(dtype, x, separation, 1)
        gap = sep.gap(separation, separated.logits(x), x.keep)
        some = np.isfinite(gap) & (gap > 0)
        lost = np.where(some, off * steepness(separation) / np.where(some, gap, 1), 0)
        units.append(acc.eps(dtype) * (1 + score_sizes(x)) + lost)
    return np.max(units, axis=0)


def compare_gradients(dtype, got, expected, size, d_out, arrays, c):
    assert all(a is None or np.isfinite(a).all() for a in got)
    floor = acc.underflow(dtype, d_out, *arrays)
    for name in got._fields:
        bound = c * getattr(size, name) + floor
        within(np.asarray(getattr(got, name)), getattr(expected, name), bound, f"d_{name}")


def check_attend_gradients(rc, dtype, separation, o, rng, judge=True):
    """Every gradient of attend within the magnitudes behind it, for rows that are clear of ties and thresholds."""
    out, pullback = rc.vjp(rc.attention.attend, **o, separation=separation)
    wide = widen(dtype, o, judge)
    path = [att.pose(**wide)]
    clear = clear_rows(dtype, path, separation)
    d_out = (rng.standard_normal(out.shape) * clear[..., None]).astype(dtype)
    got, g = pullback(d_out), d_out.astype(wide["query"].dtype)
    assert list(got._fields) == [k for k in ("query", "key", "value", "scale", "bias") if o.get(k) is not None]
    for name in got._fields:
        assert np.shape(getattr(got, name)) == np.shape(o[name]) and getattr(got, name).dtype == dtype, name
    expected = separated.attend_gradients(**wide, d_out=g, separation=separation)
    scaled = g * row_units(dtype, path, separation)[..., None]
    size = separated.attend_gradients(**wide, d_out=scaled, separation=separation, absolute=True)
    compare_gradients(dtype, got, expected, size, d_out, [o[k] for k in ("query", "key", "value")], acc.C_GRADIENT)
    return got, clear


def check_retrieve_gradients(rc, dtype, separation, o, rng, steps=1, judge=True):
    """Every gradient of retrieve, in the same way; the error of a visited state moves the weights once more."""
    out, pullback = rc.vjp(rc.hopfield.retrieve, **o, steps=steps, separation=separation)
    wide = widen(dtype, o, judge)
    path = separated.visited(**wide, separation=separation, steps=steps)
    clear = clear_rows(dtype, path, separation, 100.0 if steps == 1 else 1e4)
    d_out = (rng.standard_normal(out.shape) * clear[..., None]).astype(dtype)
    got, g = pullback(d_out), d_out.astype(wide["state"].dtype)
    assert list(got._fields) == [k for k in ("state", "patterns", "beta", "values") if k in o]
    for name in got._fields:
        assert np.shape(getattr(got, name)) == np.shape(o[name]) and np.asarray(getattr(got, name)).dtype == dtype, name
    more = {"separation": separation, "steps": steps}
    expected = separated.retrieve_gradients(**wide, d_out=g, **more)
    scaled = g * row_units(dtype, path, separation)[..., None]
    size = separated.retrieve_gradients(**wide, d_out=scaled, absolute=True, **more)
    S = max(float(score_sizes(x).max(initial=0)) for x in path)
    c = acc.C_GRADIENT * (1 if steps == 1 else steps * (1 + S))
    compare_gradients(dtype, got, expected, size, d_out, [o["state"], o["patterns"]], c)
    return got, clear
