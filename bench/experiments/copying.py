"""The copy task of sparse attentive backtracking (Ke et al. 2018, https://arxiv.org/abs/1809.03702, section 4).

    python -m bench.experiments.copying results            # small: some minutes on two cores
    python -m bench.experiments.copying results --paper    # the paper's lengths; hours

A sequence: `symbols` digits of 1..8, T - 1 blanks, a marker, blanks; the network is to write the digits down after the marker, and
a blank anywhere else. Reported is the part of the digits that is right. Each model is trained at T (the small size: each batch at a length
of its own, from 5 to T, without which some seeds learn to count to T instead of to wait for the marker), and then judged at T and at
several times it, on sequences of their own. Kept are a table, a plot, and JSON (options, curve) of every
model; a model whose JSON is there is not trained again, and one that was interrupted goes on where it stood.
"""

import argparse

import numpy as np

from . import recurrent
from .training import settings

CLASSES = 10  # blank, eight digits, marker


def draw(rng, batch, length, symbols):
    """One-hot inputs (B, T, 10) and targets (B, T)."""
    digits = rng.integers(1, 9, (batch, symbols))
    codes = np.zeros((batch, length + 2 * symbols), int)
    codes[:, :symbols], codes[:, symbols + length - 1] = digits, 9
    targets = np.zeros_like(codes)
    targets[:, -symbols:] = digits
    return np.eye(CLASSES, dtype=np.float32)[codes], targets


def task(o):
    def right(model, seed, length, sequences):
        x, targets = draw(np.random.default_rng([o.seed, seed]), sequences, length, o.symbols)
        found = model(x)[:, -o.symbols :].argmax(axis=-1)
        return float((found == targets[:, -o.symbols :]).mean())

    def ended(curve):
        last = curve[-o.patience :]
        return len(last) == o.patience and min(row[2] for row in last) > 0.995

    return recurrent.Task(
        name="copying",
        inputs=CLASSES,
        outputs=CLASSES,
        loss=recurrent.cross_entropy,
        draw=lambda rng: draw(rng, o.batch, int(rng.integers(min(o.shortest, o.length), o.length + 1)), o.symbols),
        measure=lambda model: [right(model, 1, o.length, o.batch)],
        judge=lambda model, curve: {f"T={n}": right(model, 2, n, o.judged) for n in o.lengths},
        measured="digits right",
        ended=ended,
        baselines={"one of the eight digits": dict.fromkeys((f"T={n}" for n in o.lengths), 1 / 8)},
    )


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.copying", description=__doc__.split("\n\n")[0])
    shared = recurrent.options(
        parser, hidden=(64, 128), batch=(32, 64), steps=(10_000, 20_000), rate=(3e-3, 1e-3), k_top=(5, 5), k_trunc=(5, 5),
        every=(20, 100),
    )  # fmt: skip
    o = settings(parser, arguments, (
        ("length", int, 20, 100, "T, trained at"), ("shortest", int, 5, 100, "T of a batch, at least"),
        ("symbols", int, 4, 10, "digits to copy"), *shared,
        ("judged", int, 50, 200, "sequences to judge by"), ("patience", int, 3, 5, "measurements without a fault before training ends"),
    ))  # fmt: skip
    o.lengths = [o.length * n for n in (1, 2, 3, 5, 10)]
    return o


def main(arguments=None):
    o = options(arguments)
    recurrent.compare(task(o), o)


if __name__ == "__main__":
    main()
