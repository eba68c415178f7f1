"""The limits of this machine, measured beside the cases: multiply-add peak and read bandwidth.

The C++ part is compiled on first use with the system compiler for the CPU at hand and kept in the
user's cache folder. Without a compiler there are no limits, and the bench says so instead of failing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import timeit
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("ceilings.cpp")
UNITS = {"fma": "GFLOP/s", "bandwidth": "GB/s"}
NAMES = {"fma": "FMA peak", "bandwidth": "read bandwidth"}

_FMA_SECONDS = 0.01  # long enough to drown a thread's start, short enough to repeat around every case
_BUFFER_BYTES = 1 << 30  # far beyond any last-level cache


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_flags() -> str:
    """What decides the code that -march=native makes; part of the cache key."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "recollect-bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError:  # no home that can be written: compile anew, for this run only
        return Path(tempfile.mkdtemp(prefix="recollect-bench-"))


def _compile() -> Path:
    """The compiled library. Raises RuntimeError with a sentence where there is no way to make it."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"no C++ compiler called {compiler[0]!r} was found")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    key = "\0".join([SOURCE.read_text(), version, cpu_model(), _cpu_flags()])
    target = _cache_folder() / f"ceilings-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    complaint = ""
    for native in (["-march=native"], ["-mcpu=native"], []):  # x86 and gcc; clang on arm64; neither known
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            flags = ["-O3", *native, "-std=c++17", "-shared", "-fPIC", "-pthread"]
            result = subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(made)], capture_output=True, text=True)
            if result.returncode == 0:
                os.replace(made, target)  # atomic: a second run at the same time sees all of it or nothing
                return target
            complaint = complaint or result.stderr.strip()
    raise RuntimeError(f"{SOURCE.name} did not compile: {complaint.splitlines()[0] if complaint else 'no message'}")


def _available_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


class Ceilings:
    """sample(kind, dtype) measures one limit once, now: a busy neighbour shows as a low sample."""

    def __init__(self, threads: int):
        self.threads = threads
        self._library = ctypes.CDLL(str(_compile()))
        for dtype in ("f32", "f64"):
            function = getattr(self._library, f"bench_fma_{dtype}")
            function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_double
        read = self._library.bench_read
        read.argtypes, read.restype = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64], ctypes.c_double
        self._iterations: dict[str, int] = {}
        self._buffer: np.ndarray | None = None

    def sample(self, kind: str, dtype: str = "float32", threads: int | None = None) -> float:
        threads = threads or self.threads
        if kind == "fma":
            return self._fma("f64" if dtype == "float64" else "f32", threads)
        if kind == "bandwidth":
            return self._read(threads)
        raise ValueError(f"a limit is one of {sorted(UNITS)}, not {kind!r}")

    def _fma(self, dtype: str, threads: int) -> float:
        function = getattr(self._library, f"bench_fma_{dtype}")
        if dtype not in self._iterations:
            trial = 100_000
            seconds = min(timeit.repeat(lambda: function(1, trial), repeat=5, number=1))
            self._iterations[dtype] = max(trial, int(trial * _FMA_SECONDS / seconds))
        return function(threads, self._iterations[dtype])

    def _read(self, threads: int) -> float:
        if self._buffer is None:
            # NumPy's own allocation, so that the pages are of the kind that the cases read from.
            size = min(_BUFFER_BYTES, _available_bytes() // 4)
            self._buffer = np.ones(size // 4, dtype=np.float32)
        return self._library.bench_read(threads, self._buffer.ctypes.data, self._buffer.size)

    def overview(self) -> dict[str, dict[int, float]]:
        """Best of a few samples of both limits on one thread and on all, for the head of a report."""
        counts = sorted({1, self.threads})
        return {kind: {t: max(self.sample(kind, threads=t) for _ in range(5)) for t in counts} for kind in UNITS}
