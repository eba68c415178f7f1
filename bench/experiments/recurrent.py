"""What the experiments of sparse attentive backtracking (Ke et al. 2018, https://arxiv.org/abs/1809.03702) share: the models that are
compared, a linear readout, losses, and a comparison with its table and plot."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import recollect as rc

from .training import fit, kept


def models(o, inputs, most=None):
    """Name -> function of a generator that makes a network for inputs of this width and that keeps so many microstates."""
    b, size = rc.backtracking, {"max_memories": most}
    sparse = size | {"k_top": o.k_top, "k_att": o.k_att, "k_trunc": o.k_trunc}
    full = size | {"k_top": None, "k_att": 1, "k_trunc": None}
    return {
        "sparse backtracking": lambda rng: b.SparseBacktrackingLSTM(inputs, o.hidden, rng=rng, **sparse),
        "without gradient through reminders": lambda rng: b.SparseBacktrackingLSTM(
            inputs, o.hidden, rng=rng, reminders=False, **sparse
        ),
        "LSTM, truncated": lambda rng: b.LSTM(inputs, o.hidden, k_trunc=o.k_trunc, rng=rng),
        "LSTM, full": lambda rng: b.LSTM(inputs, o.hidden, rng=rng),
        "full self-attention": lambda rng: b.SparseBacktrackingLSTM(inputs, o.hidden, rng=rng, **full),
    }


def cross_entropy(z, targets):
    """Mean of -log softmax(z)[target], in nats, and its gradient; z (..., C), targets (...)."""
    z = z - z.max(axis=-1, keepdims=True)
    p = np.exp(z)
    total = p.sum(axis=-1, keepdims=True)
    loss = (np.log(total) - np.take_along_axis(z, targets[..., None], -1)).mean(dtype=np.float64)
    d_z = p / total
    np.put_along_axis(d_z, targets[..., None], np.take_along_axis(d_z, targets[..., None], -1) - 1, -1)
    return float(loss), d_z / np.float32(targets.size)


def squared_error(z, targets):
    """Mean of (z - target)^2 and its gradient; z (..., 1), targets (...)."""
    error = z - targets[..., None]
    return float((error * error).mean(dtype=np.float64)), error * np.float32(2 / error.size)


@dataclass
class Task:
    """A task on sequences, and how models are judged by it."""

    name: str  # of its command and its files
    inputs: int
    outputs: int
    loss: Callable  # z, targets -> loss, d_z
    draw: Callable  # rng -> x (B, T, inputs), targets
    measure: Callable  # model -> [number, ...], now and then while it is trained; the first one is drawn
    judge: Callable  # model, curve -> {what: number}, when it has been trained
    measured: str  # what the first number is
    last: bool = False  # an answer is asked for at the last step alone
    ended: Callable = lambda curve: False  # there is nothing left to learn
    baselines: dict = field(default_factory=dict)  # name -> {what: number}
    most: int | None = None  # so many microstates are kept, all if not given


class Model:
    """A network and a linear map of its outputs at the steps where answers are asked for."""

    def __init__(self, task, network, rng):
        self.task, self.network, width = task, network, network(np.zeros((1, 1, task.inputs))).shape[-1]
        weight = rng.uniform(-1, 1, (width, task.outputs)) / np.sqrt(width)
        self.weight, self.bias = weight.astype(np.float32), np.zeros(task.outputs, np.float32)
        self.steps = slice(-1, None) if task.last else slice(None)
        self.parameters = network.parameters | {"out_weight": self.weight, "out_bias": self.bias}

    def __call__(self, x):
        return self.read(self.network(x)[:, self.steps])

    def read(self, outputs):
        return outputs @ self.weight + self.bias

    def loss_and_gradients(self, x, targets):
        outputs, tape = self.network.forward(x)
        asked = outputs[:, self.steps]
        loss, d_z = self.task.loss(self.read(asked), targets)
        d_outputs = np.zeros_like(outputs)
        d_outputs[:, self.steps] = d_z @ self.weight.T
        own = {"out_weight": np.einsum("bti,btj->ij", asked, d_z, optimize=True), "out_bias": d_z.sum(axis=(0, 1))}
        return loss, self.network.backward(tape, d_outputs).parameters | own


def chosen(curve, best, *names):
    """What `measure` found, by name, when the first number was best (min or max)."""
    return dict(zip(names, best(curve, key=lambda row: row[2])[2:], strict=True))


def options(parser, *, hidden, batch, steps, every, rate, k_top, k_trunc):
    """The options that all tasks have, as rows for `training.settings`. An argument here is the small default and the paper's."""
    parser.add_argument("directory", type=Path, help="where results are kept")
    parser.add_argument("--paper", action="store_true", help="the paper's sizes: hours")
    parser.add_argument("--only", default="", help="models whose name contains this")
    return (
        ("hidden", int, *hidden, "H"), ("batch", int, *batch, "sequences a step"), ("steps", int, *steps, "at most"),
        ("seconds", float, 70, 1e9, "a model, at most"), ("every", int, *every, "steps from one measurement to the next"),
        ("rate", float, *rate, "of Adam"), ("k_top", int, *k_top, "reminders"), ("k_att", int, 1, 1, "a microstate every"),
        ("k_trunc", int, *k_trunc, "length of a window"), ("seed", int, 0, 0, ""),
    )  # fmt: skip


def train(task, name, make, o):
    rng = np.random.default_rng(o.seed)
    model = Model(task, make(rng), rng)
    result = fit(o, name, model, rng, task.draw, task.measure, task.ended)
    return {"model": name, **result, "found": task.judge(model, result["curve"])}


def compare(task, o):
    """Trains the models that are not kept in the directory, prints the table, and writes it and the plot there."""
    wanted = {name: make for name, make in models(o, task.inputs, task.most).items() if o.only in name}
    results = [kept(o, name, lambda name=name, make=make: train(task, name, make, o)) for name, make in wanted.items()]
    if results:
        plot(task, results, o.directory / f"{task.name}.png")
        (o.directory / "table.txt").write_text(table(task, results) + "\n")
        print(table(task, results))


def table(task, results):
    columns = list(results[0]["found"])
    lines = [f"{task.measured:36s}" + "".join(f"{name:>12s}" for name in columns) + f"{'steps':>8s}{'seconds':>9s}"]
    for r in results:
        row = "".join(f"{r['found'][name]:12.4f}" for name in columns)
        lines.append(f"{r['model']:36s}{row}{r['steps']:8d}{r['seconds']:9.0f}")
    for name, found in task.baselines.items():
        lines.append(f"{name:36s}" + "".join(f"{found[what]:12.4f}" for what in columns))
    return "\n".join(lines)


def plot(task, results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for r in results:
        if r["curve"]:
            left.plot(*np.array(r["curve"])[:, [0, 2]].T)
        right.plot(list(r["found"]), list(r["found"].values()), "o-", label=r["model"])
    for name, found in task.baselines.items():
        right.plot(list(found), list(found.values()), "x--", color="grey", label=name)
    left.set(xlabel="training step", ylabel=task.measured, title="while it is trained")
    right.set(title="when it has been trained")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
