"""Memory beyond inputs and outputs is O(block): a million patterns, and the peak of a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = 32  # MiB beyond inputs and outputs

# The peak is reset right before the call where the kernel allows it (clear_refs); otherwise the inputs are made in
# blocks, so that the peak until then is what is in use.
SCRIPT = """
import sys
import numpy as np
import recollect as rc

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024

n, N, d, job, dtype = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
rng = np.random.default_rng(0)
small = rng.standard_normal((100, d)).astype(dtype)
q = rng.standard_normal((n, d)).astype(dtype)

def work(x, out=None):
    # results are dropped at once: d_patterns is an output and counted below
    if job == "retrieve":
        rc.hopfield.retrieve(q, x, beta=0.1)
    elif job == "steps and info":
        rc.hopfield.retrieve(q, x, beta=0.1, steps=3, return_info=True)
    elif job == "mask":
        rc.hopfield.retrieve(q, x, beta=0.1, mask=keep[: len(x)])
    elif job == "energy":
        rc.hopfield.energy(q, x, beta=0.1)
    elif job == "backward":
        out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=0.1)
        pullback(out)
    elif job == "energy backward":
        out, pullback = rc.vjp(rc.hopfield.energy, q, x, beta=0.1)
        pullback(out)

x = np.empty((N, d), dtype)
for i in range(0, N, 4096):
    x[i : i + 4096] = rng.standard_normal((min(4096, N - i), d))
keep = np.ones(N, bool)
work(small)  # threads start, buffers of a fixed size are there
try:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
except OSError:
    pass
before = max(status("VmRSS"), status("VmHWM") if status("VmHWM") < status("VmRSS") + 1 else 0)
work(x)
outputs = x.nbytes / 2**20 if "backward" in job else 0
print(status("VmHWM") - before - outputs)
"""

JOBS = [
    (1, "retrieve", "float32"), (256, "retrieve", "float32"), (256, "retrieve", "float64"), (1, "energy", "float32"),
    (16, "steps and info", "float32"), (16, "mask", "float32"), (256, "backward", "float32"), (1, "energy backward", "float32"),
]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("n", "job", "dtype"), JOBS)
def test_peak_memory(n, job, dtype):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n), "1000000" if dtype == "float32" else "500000", "64", job, dtype],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    extra = float(done.stdout)
    assert extra < ROOM, f"{extra:.1f} MiB beyond inputs and outputs"
