"""What the experiments share: an optimiser, options with a small and a paper's default, results that are kept, and training that goes
on where it was interrupted."""

import contextlib
import json
import os
import signal
import threading
import time

import numpy as np

_CHECKPOINT = ".checkpoint.npz"
_SAVE_SECONDS = 120  # from one checkpoint to the next


class Adam:
    def __init__(self, parameters, rate):
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.moments = {name: (np.zeros_like(a), np.zeros_like(a)) for name, a in parameters.items()}

    def step(self, gradients, clip=1.0):
        norm = np.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        self.steps += 1
        for name, a in self.parameters.items():
            g, (m, v) = gradients[name] * min(1.0, clip / (norm + 1e-12)), self.moments[name]
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            a -= self.rate * (m / (1 - 0.9**self.steps)) / (np.sqrt(v / (1 - 0.999**self.steps)) + 1e-8)


def settings(parser, arguments, rows):
    """Parses the arguments; a row is an option's (name, kind, small default, default with --paper, meaning)."""
    for name, kind, default, paper, what in rows:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{what} (default {default}; --paper {paper})"
        )
    o = parser.parse_args(arguments)
    for name, _, default, paper, _ in rows:
        if getattr(o, name) is None:
            setattr(o, name, paper if o.paper else default)
    return o


def kept(o, name, train):
    """The result of train(), a dict, which is kept in o.directory under its name: what is there, from the same options, is not made again."""
    path, used = _place(o, name, ".json"), _used(o)
    there = json.loads(path.read_text()) if path.exists() else {}
    if there.get("options") != used:
        there = {"options": used, **train()}
        with _replaced(path) as new:
            new.write_text(json.dumps(there))
        _place(o, name, _CHECKPOINT).unlink(missing_ok=True)
    return there


def _place(o, name, ending):
    o.directory.mkdir(parents=True, exist_ok=True)
    return o.directory / (name.replace(",", "").replace(" ", "-") + ending)


def _used(o):
    return {k: v for k, v in vars(o).items() if k not in ("directory", "only")}


@contextlib.contextmanager
def _replaced(path):
    """A name to write to, which takes the place of `path` at the end: there is the old file or all of the new one."""
    new = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


class Checkpoint:
    """Where a training stands: one file beside the results, of use only to the same model with the same options."""

    def __init__(self, o, name, model, adam, rng):
        self.path, self.options = _place(o, name, _CHECKPOINT), _used(o)
        self.rng, self.adam, self.arrays = rng, adam, {f"parameter {k}": a for k, a in model.parameters.items()}
        self.arrays |= {f"moment {k} {i}": a for k, both in adam.moments.items() for i, a in enumerate(both)}

    def save(self, progress):
        notes = {"options": self.options, "rng": self.rng.bit_generator.state, "progress": progress}
        with _replaced(self.path) as new:
            np.savez(new, notes=json.dumps(notes), **self.arrays)

    def load(self):
        """The progress that was saved; model, optimiser and generator are set back to it. None if there is none."""
        if not self.path.exists():
            return None
        with np.load(self.path) as saved:
            notes = json.loads(str(saved["notes"]))
            if notes["options"] != self.options:
                return None
            for name, a in self.arrays.items():
                a[...] = saved[name]
        self.rng.bit_generator.state, self.adam.steps = notes["rng"], notes["progress"]["steps"]
        return notes["progress"]


@contextlib.contextmanager
def _between_steps():
    """While inside, the first SIGINT or SIGTERM is only noted, in the list that is handed out: no step is left half done."""
    seen, old = [], {}

    def note(number, frame):
        seen.append(number)
        for which, handler in old.items():
            signal.signal(which, handler)

    if threading.current_thread() is threading.main_thread():
        old |= {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


def fit(o, name, model, rng, draw, measure, ended=lambda curve: False):
    """Trains `model` (parameters; loss_and_gradients(*batch) -> loss, gradients) on batches from draw(rng). -> steps, seconds, curve

    Every `o.every` steps measure(model), a list of numbers, is added to the curve: [steps, mean loss since the last time, *numbers].
    Training ends after `o.steps` steps, after `o.seconds` seconds, or when ended(curve). Every few minutes, and when it is interrupted, it
    is kept where it stands; what comes after that has the same bits as without the interruption.
    """
    from tqdm import tqdm

    adam = Adam(model.parameters, o.rate)
    checkpoint = Checkpoint(o, name, model, adam, rng)
    now = checkpoint.load() or {"steps": 0, "seconds": 0.0, "losses": [], "curve": []}
    saved = time.perf_counter()
    begun = saved - now["seconds"]
    bar = tqdm(total=o.steps, initial=now["steps"], desc=name, mininterval=2)

    def look():
        now["curve"].append([now["steps"], float(np.mean(now["losses"])), *measure(model)])
        now["losses"] = []
        bar.set_postfix_str(" ".join(f"{number:.4g}" for number in now["curve"][-1][1:]), refresh=False)

    with _between_steps() as interrupted, bar:
        while now["steps"] < o.steps and now["seconds"] < o.seconds and not ended(now["curve"]):
            loss, gradients = model.loss_and_gradients(*draw(rng))
            adam.step(gradients)
            now["steps"] += 1
            now["losses"].append(loss)
            if now["steps"] % o.every == 0:
                look()
            bar.update()
            now["seconds"] = time.perf_counter() - begun
            if interrupted or time.perf_counter() - saved > _SAVE_SECONDS:
                checkpoint.save(now)
                saved = time.perf_counter()
            if interrupted:
                raise KeyboardInterrupt(f"{name}: kept at step {now['steps']}; the same command goes on there")
        if now["losses"]:
            look()
    checkpoint.save(now)  # what is yet to be judged need not be trained again
    return {what: now[what] for what in ("steps", "seconds", "curve")}
