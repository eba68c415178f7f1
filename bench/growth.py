"""How time and memory of one training step of a recurrent network grow with T: python -m bench.growth --help

Ours first has to be right (as in bench.run, at the shortest T). Then each figure comes from a process of its own: time is the least of
some steps, memory the largest resident size during the first of them less the size just before it, warm-up on a short sequence included
in that. "tape" are the bytes that our forward pass leaves for the backward pass. The exponent p of ~ T^p is that between the two longest T.
Linux only, since memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from . import environment
from .peers import PEERS, pin_threads
from .registry import OPS, Case
from .run import check_ours

_SPARSE = {"k_top": 5, "k_att": 1, "k_trunc": 5}
# Name -> op, its options, the peer; None: ours
MODELS = {
    "sparse, k_att 1": ("backtracking", _SPARSE, None),
    "sparse, k_att 10": ("backtracking", _SPARSE | {"k_att": 10}, None),
    "sparse, torch autograd, k_att 1": ("backtracking", _SPARSE, "torch-autograd"),
    "sparse, torch autograd, k_att 10": ("backtracking", _SPARSE | {"k_att": 10}, "torch-autograd"),
    "LSTM, full": ("lstm", {}, None),
    "torch.nn.LSTM, full": ("lstm", {}, "torch-lstm"),
}


def case_of(name, o, T):
    op, options, peer = MODELS[name]
    shape = {"B": o.batch, "T": T, "D": o.inputs, "H": o.hidden}
    return Case(op, shape | options, (peer,) if peer else (), None)


def step_of(name, o, T):
    """The training step as a call."""
    case, peer = case_of(name, o, T), MODELS[name][2]
    x = OPS[case.op].inputs(case)
    return PEERS[case.op, peer].prepare(case, x) if peer else OPS[case.op].ours(environment.library(), case, x)


def resident(what):
    """Bytes of VmRSS (now) or VmHWM (the most since it was reset)."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))


def tape_bytes(name, o, T):
    import recollect as rc

    op, options, peer = MODELS[name]
    if peer:
        return None
    kinds = {"backtracking": rc.backtracking.SparseBacktrackingLSTM, "lstm": rc.backtracking.LSTM}
    network = kinds[op](o.inputs, o.hidden, **options)
    return network.forward(OPS[op].inputs(case_of(name, o, T)).x)[1].nbytes


def measure(name, o, T):
    """-> {"seconds", "bytes", "tape"}, to be called once in a process."""
    pin_threads(o.threads)
    environment.library().set_num_threads(o.threads)
    step_of(name, o, 16)()
    step = step_of(name, o, T)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before, times = resident("VmRSS"), []
    while not times or sum(times) < o.seconds:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
        if len(times) == 1:
            most = resident("VmHWM") - before
    return {"seconds": min(times), "bytes": most, "tape": tape_bytes(name, o, T)}


def apart(name, o, T):
    """measure() in a new process; None where it fails, say for want of memory or of torch."""
    arguments = [f"--{key}={getattr(o, key)}" for key in ("batch", "inputs", "hidden", "threads", "seconds")]
    command = [sys.executable, "-m", "bench.growth", "--one", name, "--lengths", str(T), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def wrong(o):
    """Sentences on those of ours whose results are not right."""
    found = []
    for name in (name for name, (_, _, peer) in MODELS.items() if peer is None):
        case = case_of(name, o, min(o.lengths))
        x = OPS[case.op].inputs(case)
        truth = OPS[case.op].truth(case, x)
        _, status, error = check_ours(case, environment.library(), x, truth, case.error_bound(truth.largest_score))
        print(f"{name}: {status}" + (f", relative error {error:.1e}" if error is not None else ""), flush=True)
        found += [] if status == "right" else [f"{name}: {status}"]
    return found


def exponent(lengths, figures):
    """p of ~ T^p between the last two."""
    if len(figures) < 2 or None in figures[-2:] or min(figures[-2:]) <= 0:
        return ""
    return f"{math.log(figures[-1] / figures[-2]) / math.log(lengths[-1] / lengths[-2]):.2f}"


def tables(o, rows):
    for what, unit, size in (("seconds", "ms", 1e-3), ("bytes", "MB", 1e6), ("tape", "MB", 1e6)):
        title = {"seconds": "time", "bytes": "memory", "tape": "tape"}[what]
        yield f"{f'{title} [{unit}]':36s}" + "".join(f"{f'T={T}':>10s}" for T in o.lengths) + f"{'exponent':>10s}"
        for name, row in rows.items():
            figures = [None if one is None else one[what] for one in row]
            if any(figures):
                cells = "".join(f"{'-' if f is None else format(f / size, '.1f'):>10s}" for f in figures)
                yield f"{name:36s}{cells}{exponent(o.lengths, figures):>10s}"
        yield ""


def options(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.partition(":")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 200, 400, 800, 1600], help="T")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--inputs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=environment.usable_cores(), help="for ours and for every peer")
    parser.add_argument("--seconds", type=float, default=2.0, help="of steps for each figure, one step at least")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--one", choices=list(MODELS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    from tqdm import tqdm

    o = options(arguments)
    if o.one:
        print(json.dumps(measure(o.one, o, o.lengths[0])))
        return 0
    broken = wrong(o)
    rows = {name: [] for name in MODELS if o.only in name}
    for name, T in tqdm([(name, T) for name in rows for T in o.lengths], desc="growth"):
        rows[name].append(apart(name, o, T))
    print(
        f"\none training step, B = {o.batch}, D = {o.inputs}, H = {o.hidden}, k_top = k_trunc = 5, {o.threads} threads\n"
    )
    print("\n".join(tables(o, rows)))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
