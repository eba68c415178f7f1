"""Which rule can replace a value (Schlag et al. 2021, https://arxiv.org/abs/2102.11174, section 6.1, setting 2).

    python -m bench.experiments.replacement replacement-results            # small: some minutes on two cores
    python -m bench.experiments.replacement replacement-results --paper    # S = 20, 40, ... 200; hours

Of S keys and S values, 2 S pairs are drawn with replacement and written one after the other; then every key that came is looked up and
has to give its last value (see `retrieval`). Rules, for features phi that are divided by their sum, S the state:

    sum      attention without softmax: S += phi(k) v^T, z += phi(k), read S^T phi(q) / (z . phi(q))
    gated    S <- (1 - beta) S + beta phi(k) v^T, read S^T phi(q): every key forgets (Peng et al. 2021)
    delta    S += beta phi(k) (v - S^T phi(k))^T, read S^T phi(q): the key that is written forgets

and "gated, divided", where z <- (1 - beta) z + beta phi(k) is kept too and what is read is divided by z . phi(q): what is old is then as
large as what is new.

Order is nothing to the sum rule; the best that it can read is the average of a key's values, and the floor beside its losses
is the loss of that. The other rules have the floor 0. Written are a table, JSON (options, seed, curves) and a plot.
"""

import numpy as np
import recollect as rc

from . import sweep
from .pullbacks import sigmoid
from .retrieval import average_floor, chance, train_retrieval
from .sweep import sizes

MAPS = {"elu1": "elu1", "DPFP-1": rc.fastweight.dpfp(1)}


def total(phi):
    """The sum rule as a memory for `Retrieval`."""

    def memory(query, key, value, logit):
        out, pullback = rc.vjp(rc.fastweight.linear_attention, query, key, value, feature_map=phi, causal=False)

        def back(d):
            found = pullback(d)
            return found.query, found.key, None

        return out, back

    return memory


def written(phi, write, read):
    """A memory whose state is written token after token, then read once for each query. `write(features, value, logit)` returns the state
    after the last token and a pullback to the gradients of features and logit; `read` takes the product of queries and state."""

    def memory(query, key, value, logit):
        asked, back_query = rc.vjp(rc.fastweight.feature_map, query, phi, normalize="sum")
        features, back_key = rc.vjp(rc.fastweight.feature_map, key, phi, normalize="sum")
        state, back_state = write(features, value, logit)
        out, back_out = read(asked @ state)

        def back(d):
            d = back_out(d)
            d_features, d_logit = back_state(asked.T @ d)
            return back_query((d @ state.swapaxes(-1, -2)).sum(axis=0)).x, back_key(d_features).x, d_logit

        return out, back

    return memory


def plain(product):
    return product, lambda d: d


def without_last(product):
    return product[..., :-1], lambda d: np.concatenate([d, np.zeros_like(d[..., :1])], axis=-1)


def divided(product):
    """By the last column, z . phi(q); zeros where that is next to nothing: 1/z would be too large to train with."""
    z = product[..., -1:]
    share = np.divide(1, z, out=np.zeros_like(z), where=z > 1e-12)
    out = product[..., :-1] * share
    return out, lambda d: np.concatenate([d, -(d * out).sum(axis=-1, keepdims=True)], axis=-1) * share


def gated(features, value, logit):
    """The state has a column more, z."""
    beta, back_beta = sigmoid(logit[..., None])
    log_kept = np.minimum(-logit, 0) - np.log1p(np.exp(-np.abs(logit)))  # log(1 - beta), exact where beta is nearly 1
    (out, state), pullback = rc.vjp(
        rc.fastweight.linear_attention, features, beta * features, value,
        feature_map=None, log_decay=log_kept, return_state=True,
    )  # fmt: skip

    def back(d_state):
        found = pullback((np.zeros_like(out), d_state))
        d_logit = back_beta((found.key * features).sum(axis=-1, keepdims=True))[..., 0]
        return beta * found.key, d_logit - found.log_decay * beta[..., 0]

    return state, back


def delta(features, value, logit):
    beta, back_beta = sigmoid(logit)
    (out, state), pullback = rc.vjp(rc.fastweight.delta_rule, features, features, value, beta, return_state=True)

    def back(d_state):
        found = pullback((np.zeros_like(out), d_state))
        return found.key, back_beta(found.beta)

    return state, back


def memories():
    """Name -> memory."""
    kinds = {
        "sum": total,
        "gated": lambda phi: written(phi, gated, without_last),
        "gated, divided": lambda phi: written(phi, gated, divided),
        "delta": lambda phi: written(phi, delta, plain),
    }
    return {f"{rule}, {name}": kind(phi) for rule, kind in kinds.items() for name, phi in MAPS.items()}


def draw(rng, batch, size):
    """2 S keys and values, with replacement: (B, 2 S) and (B, 2 S)."""
    return rng.integers(0, size, (2, batch, 2 * size))


def train(name, o):
    floor = average_floor(2 * o.size, o.size) if name.startswith("sum") else 0.0
    return {"floor": floor} | train_retrieval(f"{name}, S={o.size}", o, lambda rng: memories()[name], draw)


def options(arguments=None):
    paper = "S = 20, 40, ... 200, 32 sequences a step, no limit of time"
    return sweep.options("replacement", __doc__.split("\n\n")[0], paper, arguments, (
        ("sizes", sizes, (20, 40, 80), tuple(range(20, 201, 20)), "S, with commas"), ("batch", int, 8, 32, "sequences a step"),
        ("seconds", float, 18, 1e9, "a result, at most"), ("judged", int, 100, 100, "sequences to judge by"),
    ))  # fmt: skip


def main(arguments=None):
    o = options(arguments)
    sweep.report(o, sweep.results(o, memories(), train), "replacement", "mean loss (floor)", {"chance": chance})


if __name__ == "__main__":
    main()
