"""Memory beyond inputs and outputs is O(chunk): a million tokens, and the peak of a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fastweight_checks as fw

ROOM = 32  # MiB beyond inputs and outputs

# As in test_memory_use: the peak is reset right before the call where the kernel allows it.
SCRIPT = """
import sys
import numpy as np
import recollect as rc

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024

T, K, op, job = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

def make(T):
    rng = np.random.default_rng(0)
    def rows():
        a = np.empty((T, K), np.float32)
        for i in range(0, T, 4096):
            a[i : i + 4096] = rng.standard_normal((min(4096, T - i), K)) / K**0.5
        return a
    arrays = [rows() for _ in range(5 if op == "fast_weight" else 3)]
    if op == "fast_weight":
        arrays[3] *= 0.1
    return [*arrays, *([np.full(T, 0.5, np.float32)] if op == "delta_rule" else [])]

def work(arrays):
    more = {"decay": decay[: len(arrays[0])]} if "decay" in job else {}
    if "backward" in job:
        out, pullback = rc.vjp(getattr(rc.fastweight, op), *arrays, **more)
        pullback(out)
    else:
        getattr(rc.fastweight, op)(*arrays, **more)

small, arrays, decay = make(200), make(T), np.full(T, 0.9, np.float32)
work(small)  # threads start, buffers of a fixed size are there
try:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
except OSError:
    pass
before = max(status("VmRSS"), status("VmHWM") if status("VmHWM") < status("VmRSS") + 1 else 0)
work(arrays)
row = T * K * 4 / 2**20
outputs = row + (sum(a.nbytes for a in arrays) / 2**20 if "backward" in job else 0)
print(status("VmHWM") - before - outputs, row)
"""


def extra(T, K, op, job):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(T), str(K), op, job],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [float(x) for x in done.stdout.split()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("op", fw.OPS)
@pytest.mark.parametrize("job", ["forward", "forward, decay"])
def test_forward_memory_does_not_grow_with_time(op, job):
    over, _ = extra(1_000_000, 16, op, job)
    assert over < ROOM, f"{over:.1f} MiB beyond inputs and outputs"


@needs_proc
@pytest.mark.parametrize("op", fw.OPS)
def test_backward_memory_is_that_of_a_few_operands(op):
    """No state is kept for every token: that would be K operands."""
    over, row = extra(300_000, 32, op, "backward")
    assert over < 4 * row + ROOM, f"{over:.1f} MiB beyond inputs and outputs, {over / row:.1f} operands"
