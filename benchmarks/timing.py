"""Candidates in turn: seconds of every call, in rounds of random order."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.case import Call
from benchmarks.watch import Watch

Clock = Callable[[Call, int], float]
Seconds = list[float]
"""A candidate's seconds, round by round."""


@dataclass(frozen=True)
class Mode:
    """How long to look at a case."""

    name: str
    seconds: float
    """Timed, of all candidates together; no round begins after them."""
    least: int
    """Rounds, however slow they are."""
    most: int


QUICK = Mode("quick", seconds=3.0, least=5, most=100)
FULL = Mode("full", seconds=6.0, least=10, most=300)
# Of the GPU's own seconds.
GPU = Mode("GPU", seconds=0.2, least=20, most=60)

# A fixed or mirrored order would let one candidate follow itself, with warmer caches than the others, and the
# same random orders in every case would favour the same candidates in all.
_ORDERS = random.Random(0)


# Of a longer call, what came before it is no part worth mentioning.
SHORT_S = 0.005
# A GPU makes about so many cycles a second. Where a call takes longer to launch, nobody would hide it.
CYCLES_PER_S, HIDDEN_S = 2e9, 0.002


def cpu_clock(call: Call, i: int) -> float:
    """Of a short call the second: threads awake and data where the first left it, whoever came before."""
    seconds = _seconds(call, i)
    return seconds if seconds > SHORT_S else _seconds(call, i)


def gpu_clock(cycles: int) -> Clock:
    """Times by events; the GPU is kept busy for so many cycles before, so that launching is not timed."""

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
    """Cycles that hide the launching of each of `calls`; 0 where that of one is too long: then of none."""
    longest = max(_launch_seconds(call) for call in calls)
    return int(1.5 * longest * CYCLES_PER_S) if longest < HIDDEN_S else 0


def take_turns(
    calls: dict[str, Call],
    mode: Mode,
    clock: Clock = cpu_clock,
    inputs: int = 1,
    watch: Watch | None = None,
) -> dict[str, Seconds]:
    """Seconds of every call; candidates take turns, so that whatever else the machine does hits them alike.

    Every candidate plays in every round: until `mode.seconds` are used, but from `mode.least` to `mode.most`
    rounds. Each call uses the next set of `inputs`. `watch` repeats rounds that something else disturbed.
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
    torch.cuda.synchronize()
    seconds = _seconds(call, 0)
    torch.cuda.synchronize()
    return seconds
