"""How far a result may be from the truth, and a sweep that measures how far it is.

    python -m tests.accuracy --cases 100000

draws random retrieval problems (beta from 1e-6 to 1e6, scores up to 1e4), compares recollect with the
oracle in a wider number type, and prints the constant c that was observed in

    |error| <= c * eps * (1 + S) * max|read|,      S = largest beta * sum_k |x_ik q_k| of the row

where `read` is what the weights read out: the values, or the patterns. S is the largest |beta * score|, but for
products that cancel: a scalar product is off by some eps * sum_k |x_ik q_k| in any order of summation, and its
weight exp(beta z) by the factor eps * S. So the bound is the conditioning of the problem, and only c belongs
to the implementation. (With |beta * score| itself no c would do: of a million random problems some have two
products of 100 that cancel to 0.1. The last column tells what c would have been.) The tests use the same bounds,
so this file is also where they are stated.
"""

import argparse
import sys
from typing import NamedTuple

import numpy as np

from tests.reference import hopfield as ref

# Stated in the documentation; the sweep prints what was observed.
C_READ = 8.0  # one read
C_ENERGY = 16.0  # energy and lse, against the sum of the magnitudes of their terms
C_GRADIENT = 16.0
# Absolute promises where S stays below 10, in units of max|read|.
MODERATE = 10.0
MODERATE_ERROR = {"float32": 5e-6, "float64": 1e-13}


def eps(dtype):
    return float(np.finfo(dtype).eps)


def judge(dtype):
    """The wider number type that judges dtype."""
    return np.float64 if np.dtype(dtype) == np.float32 else np.longdouble


def widen(dtype, *arrays):
    """The operands as the judge sees them: the very numbers that recollect was given."""
    return tuple(None if a is None else np.asarray(a).astype(judge(dtype)) for a in arrays)


def largest_score(state, patterns, beta, mask=None):
    """(..., n): the largest |beta * score| over admissible patterns."""
    w = ref.weigh(state, patterns, beta, mask)
    z = np.where(w.keep, np.abs(w.z), 0).max(axis=-1, initial=0)
    return ref.per_row(beta, w.z.dtype)[..., 0] * z


def score_size(state, patterns, beta, mask=None):
    """S of every row, (..., n): the largest |beta * score| if all products had one sign."""
    return largest_score(np.abs(state), np.abs(patterns), beta, mask)


def read_unit(dtype, state, patterns, beta, values=None, mask=None):
    """(..., n): eps * (1 + S) * max|read|, the unit in which one read errs."""
    read = patterns if values is None else values
    size = np.abs(read).max(axis=(-1, -2), initial=0)[..., None]
    return eps(dtype) * (1 + score_size(state, patterns, beta, mask)) * size


def response(state, patterns, beta, values=None, mask=None):
    """(..., n): spectral norm of d(read)/d(state) = beta sum_i p_i (v_i - v) (x_i - x)^T."""
    w = ref.weigh(state, patterns, beta, mask)
    read = patterns if values is None else values
    x = patterns[..., None, :, :] - (w.p @ patterns)[..., None, :]
    v = read[..., None, :, :] - (w.p @ read)[..., None, :]
    J = ref.transpose(v) @ (w.p[..., None] * x) * ref.per_row(beta, w.z.dtype)[..., None]
    return np.linalg.norm(J.astype(np.float64), ord=2, axis=(-1, -2))


def path_bound(dtype, state, patterns, beta, steps, values=None, mask=None, c=C_READ):
    """(..., n): bound on the 2-norm of the error after several steps.

    An error made in one step is stretched by the Jacobian of the next: e <- |J| e + (one read).
    """
    error = 0.0
    for t in range(steps):
        last = values if t == steps - 1 else None
        width = (patterns if last is None else last).shape[-1]
        one = c * read_unit(dtype, state, patterns, beta, last, mask) * np.sqrt(width)
        error = 2 * response(state, patterns, beta, last, mask) * error + one
        state = ref.step(state, patterns, beta, mask=mask)
    return error


def energy_unit(dtype, state, patterns, beta, mask=None):
    """(..., n): eps times the magnitudes that are added up in the energy (and in lse)."""
    w = ref.weigh(state, patterns, beta, mask)
    z = np.where(w.keep, np.abs(w.z), 0).max(axis=-1, initial=0)
    b = ref.per_row(beta, w.z.dtype)[..., 0]
    squares = np.where(w.keep, (patterns**2).sum(-1)[..., None, :], 0).max(axis=-1, initial=0)
    return eps(dtype) * (z + (1 + np.log(np.maximum(w.count, 1))) / b + (state**2).sum(-1) / 2 + squares / 2)


def gradient_bounds(dtype, state, patterns, beta, d_out, values=None, steps=1, mask=None, c=C_GRADIENT):
    """Bounds for the gradients of retrieve: rounding scales with the sums of magnitudes behind each entry."""
    size = ref.retrieve_gradients(state, patterns, beta, d_out, values, steps, mask, absolute=True)
    S = float(score_size(state, patterns, beta, mask).max(initial=0))
    # Several steps: the error of a visited state moves the weights once more.
    factor = c * eps(dtype) * steps * (1 + S) ** (1 if steps == 1 else 2)
    floor = underflow(dtype, state, patterns, beta, d_out, values)
    return type(size)(*(None if a is None else factor * a + floor for a in size))


def energy_gradient_bounds(dtype, state, patterns, beta, d_out, mask=None, c=C_GRADIENT):
    """Bounds for the gradients of energy, in the same way."""
    w = ref.weigh(state, patterns, beta, mask)
    g, S = np.abs(d_out)[..., None], score_size(state, patterns, beta, mask)[..., None]
    q, x, b = np.abs(state), np.abs(patterns), ref.per_row(beta, w.z.dtype)[..., 0]
    z = np.where(w.keep, np.abs(w.z), 0).max(axis=-1, initial=0)
    d_state = g * (q + (1 + S) * (w.p @ x))
    d_patterns = ref.transpose(w.p * g * (1 + S)) @ q
    d_beta = g[..., 0] * (z * (1 + S[..., 0]) + (1 + np.log(np.maximum(w.count, 1))) / b) / b
    sizes = ref.sum_to(d_state, q.shape), ref.sum_to(d_patterns, x.shape), ref.sum_to(d_beta.sum(-1), np.shape(beta))
    floor = underflow(dtype, state, patterns, beta, d_out)
    return ref.EnergyGradients(*(c * eps(dtype) * size + floor for size in sizes))


def underflow(dtype, *operands):
    """What a weight below the smallest normal number may cost a gradient: it may count as zero."""
    largest = max(1.0, *(float(np.abs(a).max(initial=0)) for a in operands if a is not None))
    return 64 * float(np.finfo(dtype).tiny) * largest**4


# ------------------------------------------------------------------------------------------------ the sweep

SHAPES = [  # n, N, d, e
    (1, 1, 1, None), (1, 2, 1, None), (2, 3, 2, None), (1, 5, 3, 2), (3, 8, 4, None), (1, 16, 7, None),
    (2, 17, 8, 5), (1, 33, 16, None), (3, 40, 33, None), (1, 64, 16, 64), (2, 64, 32, None), (1, 100, 64, None),
    (5, 31, 100, None), (1, 191, 7, 1), (2, 193, 16, None), (1, 257, 24, None), (1, 24, 257, 3), (1, 1, 64, None),
]  # fmt: skip
LARGEST_SCORE = 1e4


class Problem(NamedTuple):
    state: np.ndarray
    patterns: np.ndarray
    beta: np.ndarray
    values: np.ndarray | None
    mask: np.ndarray | None


def draw(rng, dtype, cases, n, N, d, e=None):
    """A batch of `cases` problems of one shape: kinds of patterns, masks, beta and score size all random."""
    x = rng.standard_normal((cases, N, d))
    kind = rng.integers(0, 5, cases)[:, None, None]
    x = np.where(kind == 1, np.sign(x), x)  # +-1 patterns
    x = np.where(kind == 2, x * 10.0 ** rng.uniform(-2, 0, (cases, N, 1)), x)  # unequal norms
    x = np.where(kind == 3, x + 4 * rng.standard_normal((cases, 1, d)), x)  # a common offset
    x = np.where(kind == 4, x[:, rng.integers(0, N, N)], x)  # repeated patterns
    cue = x[np.arange(cases)[:, None], rng.integers(0, N, (cases, n))]
    q = np.where(
        rng.random((cases, n, 1)) < 0.5, cue + 0.3 * rng.standard_normal(cue.shape), rng.standard_normal(cue.shape)
    )
    beta = 10.0 ** rng.uniform(-6, 6, cases)
    scores = 10.0 ** rng.uniform(-3, np.log10(LARGEST_SCORE), cases)
    # |beta z| reaches `scores`; the factor is shared between state and patterns at random
    factor = scores / (beta * np.abs(q @ ref.transpose(x)).max(axis=(-1, -2)))
    share = rng.uniform(0.2, 0.8, cases)
    q *= (factor**share)[:, None, None]
    x *= (factor ** (1 - share))[:, None, None]
    v = None if e is None else rng.standard_normal((cases, N, e)).astype(dtype)
    mask = rng.random((cases, n, N)) < rng.choice([0.3, 0.9, 1.0], (cases, 1, 1)) if rng.random() < 0.5 else None
    return Problem(q.astype(dtype), x.astype(dtype), beta.astype(dtype), v, mask)


class Observed(NamedTuple):
    scores: np.ndarray  # largest |beta * score| of every row
    sizes: np.ndarray  # S of every row
    read: np.ndarray  # error of retrieve in units of eps (1 + S) max|read|
    relative: np.ndarray  # error of retrieve in units of max|read|
    energy: np.ndarray  # error of energy in its unit
    lse: np.ndarray


def observe(rc, dtype, problem):
    """Runs recollect and the oracle on one batch of problems."""
    q, x, beta, v, mask = problem
    info = rc.hopfield.retrieve(q, x, beta=beta, values=v, mask=mask, return_info=True)
    wide = widen(dtype, q, x, beta, v)
    error = np.abs(info.state - ref.step(*wide, mask=mask)).max(axis=-1)
    size = np.abs(wide[1] if v is None else wide[3]).max(axis=(-1, -2))[..., None]
    unit = read_unit(dtype, *wide, mask=mask)
    # without values the info tells of the returned state, with values of the one that read
    final = wide[0] if v is not None else info.state.astype(judge(dtype))
    units = energy_unit(dtype, final, wide[1], wide[2], mask)
    with np.errstate(invalid="ignore"):
        off = [
            np.abs(a - b)
            for a, b in (
                (info.energy, ref.energy(final, wide[1], wide[2], mask)),
                (info.lse, ref.lse(final, wide[1], wide[2], mask)),
            )
        ]
    some = ref.weigh(*wide[:3], mask=mask).count > 0
    if not (np.isposinf(info.energy[~some]).all() and np.isneginf(info.lse[~some]).all()):
        raise AssertionError("a row without admissible patterns must have energy +inf and lse -inf")
    ratios = [np.where(some, o / units, 0) for o in off]
    scores, sizes = (f(*wide[:3], mask=mask) for f in (largest_score, score_size))
    columns = (scores, sizes, error / unit, error / size, *ratios)
    return Observed(*(np.asarray(a, np.float64).ravel() for a in columns))


def sweep(rc, dtype, cases, seed=0):
    """At least `cases` random problems; one row of the result per state pattern."""
    rng = np.random.default_rng([seed, np.dtype(dtype).itemsize])
    parts, done = [], 0
    while done < cases:
        for n, N, d, e in SHAPES:
            batch = max(1, min(500, 1 + cases // len(SHAPES), 2_000_000 // (N * d)))
            parts.append(observe(rc, dtype, draw(rng, dtype, batch, n, N, d, e)))
            done += batch
    return done, Observed(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def violations(dtype, seen):
    """Sentences about every promise that was not kept; none if all is well."""
    name = np.dtype(dtype).name
    moderate = seen.relative[seen.sizes < MODERATE].max(initial=0)
    found = {
        f"c of retrieve is {seen.read.max():.2f}; stated {C_READ}": not seen.read.max() <= C_READ,
        f"c of energy is {seen.energy.max():.2f}; stated {C_ENERGY}": not seen.energy.max() <= C_ENERGY,
        f"c of lse is {seen.lse.max():.2f}; stated {C_ENERGY}": not seen.lse.max() <= C_ENERGY,
        f"error where S < {MODERATE} is {moderate:.2g}; stated {MODERATE_ERROR[name]}": not moderate <= MODERATE_ERROR[name],
    }  # fmt: skip
    return [f"{name}: {sentence}" for sentence, wrong in found.items() if wrong]


def table(dtype, done, seen):
    lines = [
        f"{np.dtype(dtype).name}: {done} cases, {seen.read.size} state patterns, judged in {judge(dtype).__name__}",
        "                   S        rows   error / max|read|   c retrieve   c energy   c lse   c retrieve by |score|",
    ]
    edges = [0, 0.1, 1, MODERATE, 100, 1000, np.inf]
    by_score = seen.relative / (eps(dtype) * (1 + seen.scores))
    for low, high in [*zip(edges, edges[1:], strict=False), (0, np.inf)]:
        rows = (seen.sizes >= low) & (seen.sizes < high)
        relative, read, energy, lse, strict = (
            float(column[rows].max(initial=0)) for column in (seen.relative, seen.read, seen.energy, seen.lse, by_score)
        )
        lines.append(
            f"  {low:6g} to {high:<6g} {rows.sum():11d}   {relative:17.2e}   {read:10.2f}   {energy:8.2f}   {lse:5.2f}   {strict:21.2f}"
        )
    return "\n".join(lines)


def main(arguments=None):
    import recollect as rc

    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="random problems per number type (default 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "float64"], action="append", help="default: both")
    options = parser.parse_args(arguments)
    broken = []
    for name in options.dtype or ["float32", "float64"]:
        done, seen = sweep(rc, np.dtype(name).type, options.cases, options.seed)
        print(table(name, done, seen), flush=True)
        broken += violations(name, seen)
    print("\n".join(broken) or f"every bound holds: c <= {C_READ:g} (retrieve), {C_ENERGY:g} (energy, lse)")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
