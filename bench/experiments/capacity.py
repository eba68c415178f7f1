"""How many pairs a memory holds (Schlag et al. 2021, https://arxiv.org/abs/2102.11174, section 6.1, setting 1).

    python -m bench.experiments.capacity capacity-results            # small: some minutes on two cores
    python -m bench.experiments.capacity capacity-results --paper    # S = 20, 40, ... 600; a day

S different keys are written with S different values, then all keys are looked up (see `retrieval`). Memories: linear attention with
feature maps of different width, which all divide by their normaliser, and softmax attention. No linear memory of K features can have a
loss below (1 - K/S)/2, in any sequence: the floor that is printed beside each loss. FAVOR+ draws new projections for each batch, as in
the paper, so that it has to be what it estimates, softmax attention, and other ones to be judged by. Written are a table, JSON
(options, seed, curves) and a plot; a result whose JSON is there is not made again.
"""

import numpy as np
import recollect as rc

from . import sweep
from .retrieval import chance, rank_floor, train_retrieval
from .sweep import sizes


def memories(o):
    """Name -> (number of features, function of a generator that returns the feature map); None is softmax attention."""
    found = {"linear": (o.width, lambda rng: "elu1")}
    for nu in (1, 2, 3):
        found[f"DPFP-{nu}"] = (2 * nu * o.width, lambda rng, nu=nu: rc.fastweight.dpfp(nu))
    for m in (64, 128, 512):
        found[f"FAVOR+ {m}"] = (2 * m, lambda rng, m=m: rc.fastweight.favor.draw(rng, o.width, m))
    return found | {"softmax": (np.inf, None)}


def reader(feature_map, rng):
    """A memory as `Retrieval` takes it."""

    def memory(query, key, value, logit):
        if feature_map is None:
            out, pullback = rc.vjp(rc.attention.attend, query, key, value)
        else:
            phi = feature_map(rng)
            out, pullback = rc.vjp(rc.fastweight.linear_attention, query, key, value, feature_map=phi, causal=False)

        def back(d):
            found = pullback(d)
            return found.query, found.key, None

        return out, back

    return memory


def draw(rng, batch, size):
    """All keys and all values, in random order: (B, S) and (B, S)."""
    order = np.tile(np.arange(size), (2, batch, 1))
    return rng.permuted(order, axis=-1)


def train(name, o):
    features, feature_map = memories(o)[name]
    found = train_retrieval(f"{name}, S={o.size}", o, lambda rng: reader(feature_map, rng), draw)
    return {"floor": rank_floor(features, o.size)} | found


def options(arguments=None):
    paper = "S = 20, 40, ... 600, 32 sequences a step, no limit of time"
    return sweep.options("capacity", __doc__.split("\n\n")[0], paper, arguments, (
        ("sizes", sizes, (40, 80, 160, 320), tuple(range(20, 601, 20)), "S, with commas"), ("batch", int, 4, 32, "sequences a step"),
        ("seconds", float, 12, 1e9, "a result, at most"), ("judged", int, 20, 20, "sequences to judge by"),
    ))  # fmt: skip


def main(arguments=None):
    o = options(arguments)
    results = sweep.results(o, memories(o), train)
    sweep.report(o, results, "capacity", "mean loss (floor: rank)", {"chance": chance})
    if results:
        closest = min(results, key=lambda r: r["loss"] - r["floor"])
        print(
            f"nearest to its floor: {closest['model']}, S={closest['size']}, {closest['loss'] - closest['floor']:.2g} above it"
        )


if __name__ == "__main__":
    main()
