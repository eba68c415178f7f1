"""The adding task (Hochreiter and Schmidhuber 1997), with the models of Ke et al. 2018, https://arxiv.org/abs/1809.03702.

    python -m bench.experiments.adding results            # small: some minutes on two cores
    python -m bench.experiments.adding results --paper    # T = 200; hours

A sequence of pairs: a value, uniform in [0, 1], and a marker, which is 1 at one place of the first half and at one of the second, and 0
elsewhere. After the last step the network is to give the sum of the two marked values. Reported is the mean squared error, at the
length of training and at others; who always answers 1 has 1/6.
"""

import argparse

import numpy as np

from . import recurrent
from .training import settings


def draw(rng, batch, length):
    """Inputs (B, T, 2) and targets (B, 1)."""
    x = np.zeros((batch, length, 2), np.float32)
    x[..., 0] = rng.random((batch, length), np.float32)
    rows, half = np.arange(batch), length // 2
    places = rng.integers(0, half, batch), rng.integers(half, length, batch)
    for place in places:
        x[rows, place, 1] = 1
    return x, sum(x[rows, place, 0] for place in places)[:, None]


def task(o):
    def error(model, seed, length, sequences):
        x, targets = draw(np.random.default_rng([o.seed, seed]), sequences, length)
        return recurrent.squared_error(model(x), targets)[0]

    return recurrent.Task(
        name="adding",
        inputs=2,
        outputs=1,
        loss=recurrent.squared_error,
        draw=lambda rng: draw(rng, o.batch, o.length),
        measure=lambda model: [error(model, 1, o.length, 2 * o.batch)],
        judge=lambda model, curve: {f"T={n}": error(model, 2, n, o.judged) for n in o.lengths},
        measured="mean squared error",
        last=True,
        ended=lambda curve: len(curve) >= 3 and max(row[2] for row in curve[-3:]) < o.enough,
        baselines={"always 1": dict.fromkeys((f"T={n}" for n in o.lengths), 1 / 6)},
    )


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.adding", description=__doc__.split("\n\n")[0])
    shared = recurrent.options(
        parser, hidden=(64, 128), batch=(32, 50), steps=(10_000, 100_000), rate=(2e-3, 1e-3), k_top=(5, 10), k_trunc=(5, 20),
        every=(50, 200),
    )  # fmt: skip
    o = settings(parser, arguments, (
        ("length", int, 50, 200, "T, trained at"), *shared, ("judged", int, 500, 1000, "sequences to judge by"),
        ("enough", float, 1e-3, 1e-4, "error, three times in a row, at which training ends"),
    ))  # fmt: skip
    o.lengths = [o.length, 2 * o.length, 4 * o.length]
    return o


def main(arguments=None):
    o = options(arguments)
    recurrent.compare(task(o), o)


if __name__ == "__main__":
    main()
