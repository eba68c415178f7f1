"""Timing of pairs: a peer and ours in turn, with the limit measured in between.

Only one thing runs at a time, and everything before it has come to rest: thread pools spin for a while
after their work (OpenBLAS for tens of milliseconds) and would take the cores from whoever comes next.
"""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field

_LONG_ENOUGH = 0.005  # seconds in one timed region: cheap calls are repeated inside it
_MIN_ROUNDS = 3


def settle(slot: float = 0.002, patience: float = 0.2) -> None:
    """Waits until this process has stopped using the CPU."""
    give_up = time.perf_counter() + patience
    while time.perf_counter() < give_up:
        wall, busy = time.perf_counter(), time.process_time()
        time.sleep(slot)
        if time.process_time() - busy < 0.2 * (time.perf_counter() - wall):
            return


def _warm(call: Callable) -> int:
    """Warms up and returns how many calls make a timed region."""
    timeit.timeit(call, number=1)
    seconds = timeit.timeit(call, number=1)
    if seconds > _LONG_ENOUGH:
        return 1
    # A second look: one cheap call alone is mostly the clock and cold caches.
    seconds = timeit.timeit(call, number=10) / 10
    return max(1, math.ceil(_LONG_ENOUGH / seconds))


@dataclass
class Pairs:
    """Raw seconds per call. ours[name][i] was taken right beside peer[name][i]."""

    peer: dict[str, list[float]] = field(default_factory=dict)
    ours: dict[str, list[float]] = field(default_factory=dict)
    limit: list[float] = field(default_factory=list)


def interleave(
    ours: Callable | None,
    peers: dict[str, Callable | None],
    sample_limit: Callable[[], float] | None,
    repeat: int,
    budget: float,
) -> Pairs:
    """Rounds of (limit, peer, ours) for every peer until `repeat` rounds or `budget` seconds, at least three.

    A peer of None has nothing to run and leaves ours alone in its pair.
    """
    result = Pairs({name: [] for name in peers}, {name: [] for name in peers})
    numbers = {name: _warm(call) for name, call in peers.items() if call is not None}
    our_number = _warm(ours) if ours is not None else 0

    def timed(call: Callable, number: int) -> float:
        settle()
        return timeit.timeit(call, number=number) / number  # timeit keeps the garbage collector out

    start = time.perf_counter()
    for done in range(repeat):
        if done >= _MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, call in peers.items():
            if sample_limit is not None:
                settle()
                result.limit.append(sample_limit())
            pair = [(call, numbers.get(name), result.peer[name]), (ours, our_number, result.ours[name])]
            for function, number, times in pair if done % 2 == 0 else reversed(pair):
                if function is not None:
                    times.append(timed(function, number))
    if sample_limit is not None:
        settle()
        result.limit.append(sample_limit())
    return result
