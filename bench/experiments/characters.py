"""A language model of characters, with the models of Ke et al. 2018, https://arxiv.org/abs/1809.03702.

    python -m bench.experiments.characters results            # small: some minutes on two cores
    python -m bench.experiments.characters results --paper    # sequences of 100, 256 units; hours

The text is what Python's help() says on its topics (pydoc_data.topics, 0.4 million characters, about 100 different ones), since nothing is
downloaded: topics in the order of their names, the same text only once, the first 90 % to train by, 5 % to choose the step of training by and
the last 5 % to report. A model is trained on pieces of `--length` characters from anywhere, each from a state of zero. Reported are bits
a character on the last part when those on the part before were fewest: read in such pieces, and read as eight streams from beginning
to end, the state and the last `--length` microstates carried through. Each h of sparse backtracking has earlier ones as a summand, so
that they grow all the way through a stream; what that does to a model that never saw it is to be seen there. Unigrams and bigrams are
counted in the first part, and one is added to each count.
"""

import argparse
from pydoc_data.topics import topics

import numpy as np

from . import recurrent
from .training import settings

STREAMS = 8
MEASURED = "chosen by", "reported", "streams"


def text():
    """Codes of the characters of Python's help, and how many different ones there are."""
    whole = "".join(dict.fromkeys(topics[name] for name in sorted(topics)))
    characters, codes = np.unique(np.array(list(whole)), return_inverse=True)
    return codes, len(characters)


def bigrams(codes, held, count):
    """Bits a character of `held` by unigrams and by bigrams of `codes`."""
    single = np.bincount(codes, minlength=count) + 1.0
    pairs = np.bincount(codes[:-1] * count + codes[1:], minlength=count * count).reshape(count, count) + 1.0
    pairs /= pairs.sum(axis=1, keepdims=True)
    return -np.log2(single / single.sum())[held].mean(), -np.log2(pairs[held[:-1], held[1:]]).mean()


def task(o):
    codes, count = text()
    train, choose, report = np.split(codes, [len(codes) * 90 // 100, len(codes) * 95 // 100])
    one_hot = np.eye(count, dtype=np.float32)

    def draw(rng):
        return pieces(train[rng.integers(0, len(train) - o.length, o.batch)[:, None] + np.arange(o.length + 1)])

    def pieces(codes):
        return one_hot[codes[:, :-1]], codes[:, 1:]

    def bits(model, held, length):
        """Bits a character of the rows of this length; the first character of each is given."""
        x, targets = pieces(held[: len(held) // length * length].reshape(-1, length))
        return recurrent.cross_entropy(model(x), targets)[0] / np.log(2)

    def measure(model):
        reported = (bits(model, report, length) for length in (o.length + 1, len(report) // STREAMS))
        return [bits(model, choose, o.length + 1), *reported]

    held = zip(MEASURED, (choose, report, report), strict=True)
    counted = [(what, bigrams(train, part, count)) for what, part in held]
    return recurrent.Task(
        name="characters",
        inputs=count,
        outputs=count,
        loss=recurrent.cross_entropy,
        draw=draw,
        measure=measure,
        judge=lambda model, curve: recurrent.chosen(curve, min, *MEASURED),
        measured="bits a character",
        baselines={name: {what: both[i] for what, both in counted} for i, name in enumerate(("unigrams", "bigrams"))},
        most=o.length,
    )


def options(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.characters", description=__doc__.split("\n\n")[0]
    )
    shared = recurrent.options(
        parser, hidden=(64, 256), batch=(16, 64), steps=(2500, 50_000), rate=(4e-3, 2e-3), k_top=(5, 5), k_trunc=(5, 5),
        every=(200, 500),
    )  # fmt: skip
    return settings(
        parser, arguments, (("length", int, 64, 100, "characters of a sequence that is trained on"), *shared)
    )


def main(arguments=None):
    o = options(arguments)
    recurrent.compare(task(o), o)


if __name__ == "__main__":
    main()
