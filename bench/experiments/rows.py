"""Digits read pixel by pixel in a permuted order (permuted sequential images, Le et al. 2015, https://arxiv.org/abs/1504.00941), with the
models of Ke et al. 2018, https://arxiv.org/abs/1809.03702.

    python -m bench.experiments.rows results            # 8 x 8 images, 64 steps: some minutes on two cores
    python -m bench.experiments.rows results --paper    # the same images magnified to 28 x 28, 784 steps; hours

The images are the 1797 handwritten digits that come with scikit-learn, since nothing is downloaded: 8 x 8 pixels, their rows laid end
to end. One permutation, drawn from the seed, is applied to all of them, so that nothing is left of neighbourhood, and an image is fed
`--pixels` of its values a step (8: a permuted row); after the last step the network is to name the digit. With --paper they are magnified
by splines to the size of the paper's images; that makes the paths longer, not the task richer. 297 images are kept to choose the step of
training by and 300 to report, the split drawn from the seed: reported is the accuracy on the latter when that on the former was best.
"""

import argparse

import numpy as np

from . import recurrent
from .training import settings

CHOOSE, REPORT = 297, 300


def images(side):
    """Handwritten digits (1797, side * side), values in [0, 1], and their labels."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    pictures = pictures.reshape(-1, 8, 8) / 16
    if side != 8:
        pictures = np.clip(zoom(pictures, (1, side / 8, side / 8), order=3), 0, 1)
    return pictures.reshape(len(pictures), -1).astype(np.float32), labels


def split(o):
    """((x, labels) to train by, to choose by, to report): x (n, steps, pixels a step), in the permuted order."""
    pictures, labels = images(o.side)
    if pictures.shape[1] % o.pixels:
        raise ValueError(f"rows: pixels is {o.pixels}; expected a divisor of {pictures.shape[1]}")
    rng = np.random.default_rng([o.seed, 1])
    x = pictures[:, rng.permutation(pictures.shape[1])].reshape(len(pictures), -1, o.pixels)
    order = rng.permutation(len(x))
    parts = np.split(order, [len(x) - CHOOSE - REPORT, len(x) - REPORT])
    return [(x[part], labels[part, None]) for part in parts]


def task(o):
    train, choose, report = split(o)

    def draw(rng):
        some = rng.integers(0, len(train[0]), o.batch)
        return train[0][some], train[1][some]

    def accuracy(model, x, labels):
        return float((model(x).argmax(axis=-1) == labels).mean())

    most = max(np.bincount(report[1][:, 0])) / REPORT
    return recurrent.Task(
        name="rows",
        inputs=o.pixels,
        outputs=10,
        loss=recurrent.cross_entropy,
        draw=draw,
        measure=lambda model: [accuracy(model, *choose), accuracy(model, *report)],
        judge=lambda model, curve: recurrent.chosen(curve, max, "chosen by", "reported"),
        measured="accuracy",
        last=True,
        baselines={"always the same digit": {"chosen by": most, "reported": most}},
    )


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.rows", description=__doc__.split("\n\n")[0])
    shared = recurrent.options(
        parser, hidden=(64, 128), batch=(32, 64), steps=(4000, 60_000), rate=(2e-3, 1e-3), k_top=(5, 10), k_trunc=(10, 20), every=(100, 500)
    )  # fmt: skip
    return settings(parser, arguments, (
        ("side", int, 8, 28, "pixels of a side; 8: the images as they are"), ("pixels", int, 1, 1, "values fed a step"), *shared,
    ))  # fmt: skip


def main(arguments=None):
    o = options(arguments)
    recurrent.compare(task(o), o)


if __name__ == "__main__":
    main()
