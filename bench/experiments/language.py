"""Next-byte prediction with memories whose state is carried over a whole text (after Schlag et al. 2021, https://arxiv.org/abs/2102.11174,
section 6.3, whose WikiText-103 is too large for this).

    python -m bench.experiments.language language-results            # small: some minutes on two cores
    python -m bench.experiments.language language-results --paper    # the paper's rate, window and width of heads; days

The text is the one that comes with Python, `pydoc_data.topics` (it differs a little from version to version); its end is kept from training.
Each model is blocks of a memory and a feed-forward network on the embeddings of the last few bytes, and differs in the memory only:

    delta      the delta rule, features elu + 1 divided by their sum
    sum        linear attention, features elu + 1, what is read divided by its normaliser
    softmax    attention over the last `window` bytes

Contiguous streams of the text are read chunk by chunk. Gradients stop at the border of a chunk; the state goes on, and is
never reset before the end of the text, in training and in judging. Reported is the perplexity of a byte of the part kept back, read as one
stream that starts with an empty state, beside counted n-grams; then once more with the state emptied before every chunk.
"""

import argparse
from pathlib import Path

import numpy as np

from .bytes_model import MEMORIES, Model
from .descent import descend
from .training import kept, settings


def text():
    """The text as bytes, one array of codes."""
    from pydoc_data.topics import topics

    return np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8).astype(np.int64)


def split(codes, part=0.1):
    """What is trained with, and the end that is judged."""
    border = round(len(codes) * (1 - part))
    return codes[:border], codes[border:]


def chunks(codes, streams, length, context):
    """`codes` as contiguous streams, chunk after chunk: pairs of (streams, context + length) bytes and of the (streams, length) that follow
    each of the last `length`. The first chunk has zeros for context; a rest that fills no chunk is shorter."""
    rows = codes[: len(codes) // streams * streams].reshape(streams, -1)
    padded = np.pad(rows, ((0, 0), (context, 0)))
    for first in range(0, rows.shape[1] - 1, length):
        last = min(first + length, rows.shape[1] - 1)
        yield padded[:, first : last + context], rows[:, first + 1 : last + 1]


def judge(model, codes, o, carry=True):
    """Mean loss of a byte, in nats, over `codes` as one stream."""
    total, state = 0.0, None
    for window, targets in chunks(codes, 1, o.chunk, o.context):
        loss, state, _ = model.loss(window, targets, state if carry else None)
        total += loss * targets.size
    return total / (len(codes) - 1)


def n_gram(train, valid, order, prior=4.0):
    """Mean loss, in nats, of counts of `order` bytes interpolated with those of fewer: p(x | c) = (n(c x) + a p(x | c')) / (n(c) + a) where
    c' is c without its first byte; below one byte it is uniform. Bytes of `valid` that have too little before them are left out."""
    p = np.full(len(valid) - 2, 1 / 256)
    for n in range(1, order + 1):
        (of_train, of_valid) = (
            sum(part[i : len(part) - n + 1 + i] << 8 * (n - 1 - i) for i in range(n)) for part in (train, valid)
        )
        seen, asked = of_valid[3 - n :], of_valid[3 - n :] >> 8
        p = (counts(of_train, seen) + prior * p) / (counts(of_train >> 8, asked) + prior)
    return -float(np.log(p).mean())


def counts(found, asked):
    """How often each of `asked` is among `found`."""
    values, number = np.unique(found, return_counts=True)
    place = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.where(values[place] == asked, number[place], 0)


def train(name, o):
    rng = np.random.default_rng(o.seed)
    model, (training, valid) = Model(name, o, rng), split(text())
    coming, state = iter(()), None

    def batch():
        nonlocal coming, state
        pair = next(coming, None)
        if pair is None:  # the text is over: from its beginning, with nothing remembered
            coming, state = chunks(training, o.batch, o.chunk, o.context), None
            pair = next(coming)
        loss, state, pullback = model.loss(*pair, state)
        return loss, pullback()

    found = descend(name, o, model.parameters, batch, lambda: judge(model, valid[: o.judged], o))
    return found | {"carried": judge(model, valid, o), "reset": judge(model, valid, o, carry=False)}


def table(results, n_grams):
    lines = [
        f"{'perplexity of a byte':24s}{'carried':>10s}{'bits':>8s}{'reset':>10s}{'bits':>8s}{'steps':>8s}{'seconds':>9s}"
    ]
    for name, loss in n_grams.items():
        lines.append(f"{name:24s}{np.exp(loss):10.3f}{loss / np.log(2):8.3f}")
    for r in results:
        cells = "".join(f"{np.exp(r[way]):10.3f}{r[way] / np.log(2):8.3f}" for way in ("carried", "reset"))
        mark = "*" if r["steps"] < r["options"]["steps"] else " "
        lines.append(f"{r['model']:24s}{cells}{r['steps']:8d}{mark}{r['seconds']:8.0f}")
    return "\n".join([*lines, "* cut off by --seconds"])


def plot(results, n_grams, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for r in results:
        steps, _, judged = np.array(r["curve"]).T
        axes.plot(steps, judged / np.log(2), label=r["model"])
    for i, (name, loss) in enumerate(n_grams.items()):
        axes.axhline(loss / np.log(2), color="grey", linestyle=("-", "--", ":")[i], linewidth=0.8, label=name)
    axes.set(xlabel="training step", ylabel="bits of a byte", title="beginning of the part kept back, state carried")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.language", description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path, help="where results are kept")
    parser.add_argument(
        "--paper", action="store_true", help="the sizes of the paper's small model; days, and too large for this text"
    )
    parser.add_argument("--only", default="", help="memories whose name contains this")
    return settings(parser, arguments, (
        ("width", int, 64, 128, "of the model"), ("heads", int, 4, 8, "H"), ("blocks", int, 1, 16, "of memory and feed-forward network"),
        ("inner", int, 256, 2048, "width inside a feed-forward network"), ("embedding", int, 32, 32, "of a byte"),
        ("context", int, 3, 3, "bytes before the current one that are embedded with it"), ("window", int, 256, 256, "bytes that softmax sees"),
        ("batch", int, 16, 96, "streams"), ("chunk", int, 64, 256, "bytes between stops of the gradient"), ("steps", int, 3000, 500_000, "at most"),
        ("seconds", float, 150, 1e9, "a model, at most"), ("rate", float, 4e-3, 2.5e-4, "of Adam"), ("every", int, 200, 1000, "steps, judged"),
        ("judged", int, 8192, 8192, "bytes to judge by meanwhile"), ("seed", int, 0, 0, ""),
    ))  # fmt: skip


def main(arguments=None):
    o = options(arguments)
    names = [name for name in MEMORIES if o.only in name]
    results = [{"model": name} | kept(o, name, lambda name=name: train(name, o)) for name in names]
    parts = split(text())
    n_grams = {name: n_gram(*parts, order) for order, name in ((1, "unigram"), (2, "bigram"), (3, "trigram"))}
    if results:
        plot(results, n_grams, o.directory / "language.png")
        (o.directory / "table.txt").write_text(table(results, n_grams) + "\n")
        print(table(results, n_grams))


if __name__ == "__main__":
    main()
