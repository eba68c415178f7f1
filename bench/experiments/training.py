"""What the experiments share: an optimiser, options with a small and a paper's default, and results that are kept."""

import json

import numpy as np


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
    o.directory.mkdir(parents=True, exist_ok=True)
    used = {k: v for k, v in vars(o).items() if k not in ("directory", "only")}
    path = o.directory / f"{name.replace(',', '').replace(' ', '-')}.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    if there.get("options") != used:
        there = {"options": used, **train()}
        path.write_text(json.dumps(there))
    return there
