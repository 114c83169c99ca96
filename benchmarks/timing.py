"""Candidates in turn: seconds of every call, in rounds of random order."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.case import Call

Clock = Callable[[Call, int], float]
Seconds = list[float | None]
"""A candidate's seconds, round by round; None where it sat a round out."""


@dataclass(frozen=True)
class Mode:
    """How long to look at a case."""

    name: str
    seconds: float
    """For all candidates together; those that have used their share sit out."""
    least: int
    """Rounds that every candidate has, however slow it is."""
    most: int


QUICK = Mode("quick", seconds=3.0, least=5, most=100)
FULL = Mode("full", seconds=8.0, least=20, most=300)
# Of the GPU's own seconds.
GPU = Mode("GPU", seconds=0.2, least=20, most=60)


def cpu_clock(call: Call, i: int) -> float:
    start = time.perf_counter()
    call(i)
    return time.perf_counter() - start


def gpu_clock(cycles: int) -> Clock:
    """Times by events; the GPU is kept busy for so many cycles before, so that launching is not timed."""

    def clock(call: Call, i: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        start.record()
        call(i)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return clock


def take_turns(
    calls: dict[str, Call], mode: Mode, clock: Clock = cpu_clock, inputs: int = 1
) -> dict[str, Seconds]:
    """Seconds of every call; candidates take turns, so that whatever else the machine does hits them alike.

    Round i uses set i of `inputs`. Each candidate plays until it has `mode.least` rounds and has used its
    share of `mode.seconds`, and no more than `mode.most` rounds: slow ones have fewer.
    """
    seconds: dict[str, Seconds] = {name: [] for name in calls}
    used = dict.fromkeys(calls, 0.0)
    share = mode.seconds / len(calls)
    order = list(calls)
    # A fixed or mirrored order would let one candidate follow itself, with warmer caches than the others.
    shuffle = random.Random(0).shuffle
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(mode.most):
            playing = {name for name in calls if number < mode.least or used[name] < share}
            if not playing:
                break
            shuffle(order)
            for name in order:
                time_taken = clock(calls[name], number % inputs) if name in playing else None
                used[name] += time_taken or 0.0
                seconds[name].append(time_taken)
    finally:
        if enabled:
            gc.enable()
    return seconds
