"""The copy task of sparse attentive backtracking (Ke et al. 2018, https://arxiv.org/abs/1809.03702, section 4).

    python -m bench.experiments.copying copying-results            # small: some minutes on two cores
    python -m bench.experiments.copying copying-results --paper    # the paper's lengths; hours

A sequence: `symbols` digits of 1..8, T - 1 blanks, a marker, blanks; the network is to write the digits down after the marker, and
a blank anywhere else. Reported is the part of the digits that is right. Each model is trained at one length, and then
judged at that length and at several times it. Written are a table, JSON (options, seeds, curves) and a plot; a model whose JSON is
there is not trained again.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import recollect as rc

from .training import Adam, kept, settings

CLASSES = 10  # blank, eight digits, marker


def models(o):
    """Name -> network, from the same seed."""
    sizes = {"k_top": o.k_top, "k_att": o.k_att, "k_trunc": o.k_trunc, "attention_size": o.hidden}
    b = rc.backtracking
    return {
        "sparse backtracking": lambda rng: b.SparseBacktrackingLSTM(CLASSES, o.hidden, rng=rng, **sizes),
        "without gradient through reminders": lambda rng: b.SparseBacktrackingLSTM(
            CLASSES, o.hidden, rng=rng, reminders=False, **sizes
        ),
        "LSTM, truncated": lambda rng: b.LSTM(CLASSES, o.hidden, k_trunc=o.k_trunc, rng=rng),
        "LSTM, full": lambda rng: b.LSTM(CLASSES, o.hidden, rng=rng),
    }


def draw(rng, batch, length, symbols):
    """One-hot inputs (B, T, 10) and targets (B, T)."""
    digits = rng.integers(1, 9, (batch, symbols))
    codes = np.zeros((batch, length + 2 * symbols), int)
    codes[:, :symbols], codes[:, symbols + length - 1] = digits, 9
    targets = np.zeros_like(codes)
    targets[:, -symbols:] = digits
    return np.eye(CLASSES, dtype=np.float32)[codes], targets


class Classifier:
    """The network and a linear map of its outputs: softmax over the classes."""

    def __init__(self, network, rng):
        self.network, width = network, network(np.zeros((1, 1, CLASSES))).shape[-1]
        weight = rng.uniform(-1, 1, (width, CLASSES)) / np.sqrt(width)
        self.own = {"out_weight": weight.astype(np.float32), "out_bias": np.zeros(CLASSES, np.float32)}
        self.parameters = network.parameters | self.own

    def logits(self, outputs):
        return outputs @ self.own["out_weight"] + self.own["out_bias"]

    def loss_and_gradients(self, x, targets, symbols):
        outputs, tape = self.network.forward(x)
        z = self.logits(outputs)
        p = np.exp(z - z.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        right = np.take_along_axis(p, targets[..., None], -1)
        d_z = p.copy()
        np.put_along_axis(d_z, targets[..., None], right - 1, -1)
        d_z /= targets.size
        loss = -np.log(right + 1e-30).mean()
        flat, d_flat = outputs.reshape(-1, outputs.shape[-1]), d_z.reshape(-1, CLASSES)
        gradients = self.network.backward(tape, d_z @ self.own["out_weight"].T).parameters
        digits = (z[:, -symbols:].argmax(axis=-1) == targets[:, -symbols:]).mean()
        return float(loss), float(digits), gradients | {"out_weight": flat.T @ d_flat, "out_bias": d_flat.sum(axis=0)}

    def accuracy(self, rng, length, symbols, sequences):
        x, targets = draw(rng, sequences, length, symbols)
        found = self.logits(self.network(x)[:, -symbols:]).argmax(axis=-1)
        return float((found == targets[:, -symbols:]).mean())


def train(name, make, o):
    from tqdm import tqdm

    rng = np.random.default_rng(o.seed)
    model = Classifier(make(rng), rng)
    adam, curve, start, solved = Adam(model.parameters, o.rate), [], time.perf_counter(), 0
    bar = tqdm(range(o.steps), desc=name, mininterval=5)
    for step in bar:
        loss, digits, gradients = model.loss_and_gradients(*draw(rng, o.batch, o.length, o.symbols), o.symbols)
        adam.step(gradients)
        if step % 20 == 0 or step == o.steps - 1:
            curve.append([step, loss, digits])
            bar.set_postfix(loss=f"{loss:.4f}", digits=f"{digits:.3f}")
        solved = solved + 1 if digits > 0.995 else 0
        if solved == o.patience or time.perf_counter() - start > o.seconds:
            break
    seconds = time.perf_counter() - start
    judge = np.random.default_rng([o.seed, 1])
    accuracy = {str(n): model.accuracy(judge, n, o.symbols, o.judged) for n in o.lengths}
    return {"model": name, "steps": step + 1, "seconds": seconds, "curve": curve, "accuracy": accuracy}


def plot(results, o, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for r in results:
        left.plot(*np.array(r["curve"])[:, [0, 2]].T, label=r["model"])
        right.plot([int(n) for n in r["accuracy"]], list(r["accuracy"].values()), "o-", label=r["model"])
    left.set(xlabel="training step", ylabel="digits right", title=f"training, T = {o.length}")
    right.set(xlabel="T", xscale="log", title="judged at other lengths", ylim=(0, 1.05))
    right.axhline(1 / 8, color="grey", linewidth=0.5)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(results):
    lengths = list(results[0]["accuracy"])
    lines = [f"{'digits right':36s}" + "".join(f"{'T=' + n:>9s}" for n in lengths) + f"{'steps':>8s}{'seconds':>9s}"]
    for r in results:
        row = "".join(f"{r['accuracy'][n]:9.3f}" for n in lengths)
        lines.append(f"{r['model']:36s}{row}{r['steps']:8d}{r['seconds']:9.0f}")
    return "\n".join(lines)


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.copying", description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path, help="where results are kept")
    parser.add_argument("--paper", action="store_true", help="T = 100, 10 symbols, 128 units, 20 000 steps")
    parser.add_argument("--only", default="", help="models whose name contains this")
    o = settings(parser, arguments, (
        ("length", int, 20, 100, "T, trained at"), ("symbols", int, 4, 10, "digits to copy"), ("hidden", int, 64, 128, "H"),
        ("batch", int, 32, 64, "sequences a step"), ("steps", int, 30_000, 20_000, "at most"), ("seconds", float, 75, 1e9, "a model, at most"),
        ("rate", float, 3e-3, 1e-3, "of Adam"), ("k_top", int, 5, 5, "reminders"), ("k_att", int, 1, 1, "a microstate every"),
        ("k_trunc", int, 5, 5, "length of a window"), ("judged", int, 50, 200, "sequences to judge by"), ("seed", int, 0, 0, ""),
        ("patience", int, 30, 200, "batches without a fault before training ends"),
    ))  # fmt: skip
    o.lengths = [o.length * n for n in (1, 2, 3, 5, 10)]
    return o


def main(arguments=None):
    o = options(arguments)
    chosen = {name: make for name, make in models(o).items() if o.only in name}
    results = [kept(o, name, lambda name=name, make=make: train(name, make, o)) for name, make in chosen.items()]
    if results:
        plot(results, o, o.directory / "copying.png")
        (o.directory / "table.txt").write_text(table(results) + "\n")
        print(table(results))


if __name__ == "__main__":
    main()
