"""Candidates take turns: the seconds of every call, in rounds of random order."""

from __future__ import annotations

import gc
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness.case import Call
from benchmarks.harness.watch import Watch

Clock = Callable[[Call, int], float]
Seconds = list[float]
"""A candidate's seconds, round by round."""


@dataclass(frozen=True)
class Mode:
    """How long a case is measured.

    Args:
        seconds: timed seconds, of all candidates together, after which no further round begins.
        least: rounds that are played however slow they are.
        most: rounds at most.
    """

    name: str
    seconds: float
    least: int
    most: int


QUICK = Mode("quick", seconds=3.0, least=5, most=100)
FULL = Mode("full", seconds=6.0, least=10, most=300)
# These are seconds of the GPU itself.
GPU = Mode("GPU", seconds=0.2, least=20, most=60)

# A fixed or mirrored order would let one candidate follow itself, with warmer caches than the others. The
# same random orders in every case would favour the same candidates in all of them.
_ORDERS = random.Random(0)


# In a longer call, the state that the previous candidate left behind no longer matters.
SHORT_S = 0.005
# A GPU makes about this many cycles per second. Launching that takes longer than this is not hidden.
CYCLES_PER_S, HIDDEN_S = 2e9, 0.002


def cpu_clock(call: Call, i: int) -> float:
    """Time a short call the second time: the first wakes its threads and warms its caches."""
    seconds = _seconds(call, i)
    return seconds if seconds > SHORT_S else _seconds(call, i)


def gpu_clock(cycles: int) -> Clock:
    """Time by events; the GPU is kept busy for `cycles` before each call, so that launching is not timed."""

    def clock(call: Call, i: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if cycles:
            torch.cuda._sleep(cycles)
        start.record()
        call(i)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return clock


def hiding_cycles(calls: Iterable[Call]) -> int:
    """Cycles that hide the launching of each of `calls`; 0 if one takes too long: then none is hidden."""
    longest = max(_launch_seconds(call) for call in calls)
    return int(1.5 * longest * CYCLES_PER_S) if longest < HIDDEN_S else 0


def take_turns(
    calls: dict[str, Call],
    mode: Mode,
    clock: Clock = cpu_clock,
    inputs: int = 1,
    watch: Watch | None = None,
) -> dict[str, Seconds]:
    """The seconds of every call; candidates take turns, so that other work on the machine hits them alike.

    Every candidate plays in every round. Rounds are played until `mode.seconds` are used up, but at least
    `mode.least` and at most `mode.most` of them. Each call uses the next of the `inputs` sets. `watch`
    repeats rounds that something else disturbed.
    """
    seconds: dict[str, Seconds] = {name: [] for name in calls}
    used, order = 0.0, list(calls)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(mode.most):
            if number >= mode.least and used >= mode.seconds:
                break
            _ORDERS.shuffle(order)
            play = partial(_round, calls, order, clock, number, inputs)
            taken = watch.undisturbed(play) if watch else play()
            used += sum(taken.values())
            for name, one in taken.items():
                seconds[name].append(one)
    finally:
        if enabled:
            gc.enable()
    return seconds


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the context once it has taken this long; None: no limit. Main thread only."""
    if seconds is None:
        yield
        return

    def stop(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _round(
    calls: dict[str, Call], order: list[str], clock: Clock, number: int, inputs: int
) -> dict[str, float]:
    first = number * len(order)
    return {name: clock(calls[name], (first + place) % inputs) for place, name in enumerate(order)}


def _seconds(call: Call, i: int) -> float:
    start = time.perf_counter()
    call(i)
    return time.perf_counter() - start


def _launch_seconds(call: Call) -> float:
    """The least of a few launches: the first ones may still record a graph."""
    seconds = []
    for _ in range(3):
        torch.cuda.synchronize()
        seconds.append(_seconds(call, 0))
    torch.cuda.synchronize()
    return min(seconds)
