"""Threads: the same bits for every number of them, from every Python thread, and after a fork."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import recollect as rc

COUNTS = [1, 2, 3, 7, 64]
SHAPES = [(1, 20_000, 16), (5, 3000, 33), (300, 700, 24), (1000, 50, 8), (2, 0, 4), (0, 5, 4), (1, 1, 1)]


def problem(rng, dtype, n, N, d, batch=()):
    q, x = rng.standard_normal((*batch, n, d)).astype(dtype), rng.standard_normal((N, d)).astype(dtype)
    return q, x, rng.standard_normal((N, 5)).astype(dtype), rng.random((n, N)) < 0.8


def everything(q, x, v, mask, beta=0.4):
    """Forward and backward results of every kind, as a flat list of arrays."""
    found = [rc.hopfield.energy(q, x, beta=beta), rc.hopfield.energy(q, x, beta=beta, mask=mask)]
    found += rc.hopfield.retrieve(q, x, beta=beta, steps=2, return_info=True)
    found += rc.hopfield.retrieve(q, x, beta=beta, values=v, mask=mask, return_info=True)
    u = np.random.default_rng(0)
    for function, more in (
        (rc.hopfield.retrieve, {"steps": 2}),
        (rc.hopfield.retrieve, {"values": v, "mask": mask}),
        (rc.hopfield.energy, {}),
    ):
        out, pullback = rc.vjp(function, q, x, beta=beta, **more)
        found += [out, *pullback(u.standard_normal(out.shape).astype(out.dtype))]
    return found


def test_the_number_can_be_set_and_read():
    for n in (1, 3, 64, 2):
        rc.set_num_threads(n)
        assert rc.get_num_threads() == n
        assert isinstance(rc.get_num_threads(), int)
    rc.set_num_threads(np.int64(3))
    assert rc.get_num_threads() == 3


@pytest.mark.parametrize("n, N, d", SHAPES)
def test_the_same_bits_for_every_number_of_threads(rng, dtype, same_bits, n, N, d):
    operands = problem(rng, dtype, n, N, d)
    rc.set_num_threads(1)
    one = everything(*operands)
    for count in COUNTS[1:]:
        rc.set_num_threads(count)
        for a, b in zip(everything(*operands), one, strict=True):
            same_bits(a, b)


def test_the_same_bits_over_heads_and_iterations(rng, dtype, same_bits):
    q, x, _, _ = problem(rng, dtype, 30, 60, 6, batch=(2, 4))
    beta = np.linspace(0.3, 2, 4).astype(dtype)
    found = []
    for count in COUNTS:
        rc.set_num_threads(count)
        out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=beta, steps=3)
        found.append(
            [*rc.hopfield.retrieve(q, x, beta=beta, steps=None, return_info=True), out, *pullback(np.ones_like(out))]
        )
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            same_bits(a, b)


def test_the_same_bits_again_and_again(rng, dtype, same_bits):
    """No race: many runs, one result."""
    operands = problem(rng, dtype, 40, 900, 16)
    rc.set_num_threads(7)
    one = everything(*operands)
    for _ in range(10):
        for a, b in zip(everything(*operands), one, strict=True):
            same_bits(a, b)


def in_threads(count, work):
    """Runs work(k) in `count` Python threads that start together; raises what they raised."""
    start, failures = threading.Barrier(count), []

    def body(k):
        try:
            start.wait(60)
            work(k)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=body, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads), "a call hangs"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("workers", [1, 4])
def test_calls_from_several_python_threads(rng, same_bits, workers):
    problems = [problem(rng, np.float32, 30 + k, 400 + 10 * k, 16) for k in range(6)]
    rc.set_num_threads(workers)
    expected = [everything(*p) for p in problems]

    def work(k):
        for _ in range(5):
            for a, b in zip(everything(*problems[k]), expected[k], strict=True):
                same_bits(a, b)

    in_threads(6, work)


def test_the_number_changes_while_others_compute(rng, same_bits):
    operands = problem(rng, np.float32, 50, 500, 16)
    expected = everything(*operands)

    def work(k):
        for i in range(6):
            if k == 0:
                rc.set_num_threads(COUNTS[i % len(COUNTS)])
            for a, b in zip(everything(*operands), expected, strict=True):
                same_bits(a, b)

    in_threads(4, work)


def test_errors_in_several_python_threads(rng):
    """The sentence belongs to the thread that made the mistake."""

    def work(k):
        for _ in range(50):
            with pytest.raises(ValueError, match=rf"\({5 + k}, {9 + k}\)"):
                rc.hopfield.retrieve(np.ones((3, 8)), np.ones((5 + k, 9 + k)), beta=1.0)

    in_threads(6, work)


def test_other_python_threads_run_meanwhile():
    """The kernel releases the GIL: this thread counts on while a long call runs in another."""
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((2, 3000, 64), dtype=np.float32)
    rc.set_num_threads(1)
    done, longest = threading.Event(), [0.0, 0.0]

    def work():
        begin = time.perf_counter()
        rc.hopfield.retrieve(q, x, beta=0.1, steps=8)
        longest[1] = time.perf_counter() - begin
        done.set()

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        other = threading.Thread(target=work)
        other.start()
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(1e-4)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now
        other.join()
    finally:
        sys.setswitchinterval(switch)
    if longest[1] < 0.05:
        pytest.skip(f"the call took only {longest[1]:.3f} s")
    assert longest[0] < longest[1] / 2, f"this thread stood still for {longest[0]:.3f} of {longest[1]:.3f} s"


# ------------------------------------------------------------------------------------------------------- fork

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(work, seconds=60):
    """Runs work() in a forked child; its exit status, or a failure if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks with threads: that is the test
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the child hung for {seconds} s")


def equal(found, expected):
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(found, expected, strict=True))


@needs_fork
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_forked_child_computes(rng, workers):
    operands = problem(rng, np.float32, 200, 600, 16)
    rc.set_num_threads(workers)
    expected = everything(*operands)  # the pool of the parent has threads now, which the child has not
    assert in_child(lambda: rc.get_num_threads() == workers and equal(everything(*operands), expected)) == 0
    assert equal(everything(*operands), expected), "the parent goes on"

    def other_number():
        rc.set_num_threads(3)
        return equal(everything(*operands), expected)

    assert in_child(other_number) == 0


@needs_fork
def test_a_grandchild_computes(rng):
    operands = problem(rng, np.float32, 200, 600, 16)
    rc.set_num_threads(4)
    expected = everything(*operands)

    def child():
        return equal(everything(*operands), expected) and in_child(lambda: equal(everything(*operands), expected)) == 0

    assert in_child(child) == 0


@needs_fork
def test_fork_while_another_thread_computes(rng):
    operands = problem(rng, np.float32, 300, 900, 16)
    rc.set_num_threads(4)
    expected = everything(*operands)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            rc.hopfield.retrieve(operands[0], operands[1], beta=0.4)

    busy = threading.Thread(target=work, daemon=True)
    busy.start()
    try:
        for _ in range(5):
            assert in_child(lambda: equal(everything(*operands), expected)) == 0
    finally:
        stop.set()
        busy.join(60)
    assert not busy.is_alive(), "the parent hangs"


def run(code, **environment):
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_environment_sets_the_number():
    code = "import recollect as rc; print(rc.get_num_threads())"
    for n in (1, 3):
        assert run(code, RECOLLECT_NUM_THREADS=str(n)).stdout.strip() == str(n)


def test_the_interpreter_ends_cleanly_with_threads_alive():
    """At exit nothing waits for a sleeping pool and nothing is printed."""
    code = (
        "import numpy as np, recollect as rc\n"
        "rc.set_num_threads(7)\n"
        "q = np.ones((500, 16), np.float32)\n"
        "rc.hopfield.retrieve(q, q, beta=0.1)\n"
    )
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
