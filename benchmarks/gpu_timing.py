"""Times on a GPU by events, candidates in turn, and what its allocator was asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.timing import Mode, gpu_clock, take_turns

# Inputs rotate through more memory than an L2 has.
ROTATED_BYTES = 512 * 2**20
# How long the GPU is kept busy before a call, so that launching is not what is timed.
FORWARD_CYCLES = 500_000
BACKWARD_CYCLES = 3_000_000


def variants(bytes_of_one: int) -> int:
    """How many sets of inputs of this size to rotate."""
    return max(2, ROTATED_BYTES // bytes_of_one)


def milliseconds(
    calls: dict[str, Callable[[int], object]], variants: int, rounds: int = 30, cycles: int = FORWARD_CYCLES
) -> dict[str, list[float]]:
    """Every call of every candidate in rounds of random order; call(i) uses input i of `variants`."""
    for call in calls.values():
        for i in range(3):
            call(i % variants)
    seconds = take_turns(
        calls, Mode("rounds", seconds=0.0, least=rounds, most=rounds), gpu_clock(cycles), variants
    )
    return {name: [1e3 * second for second in values] for name, values in seconds.items()}


def requested_bytes() -> int:
    """What is allocated now, as it was asked for: without the allocator's rounding."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def peak_bytes(function: Callable[..., object], *args) -> int:
    """The most that a call had allocated at a time, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = requested_bytes()
    function(*args)
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before


def kernel_names(function: Callable[..., object], *args) -> list[str]:
    """The kernels that a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function(*args)
        torch.cuda.synchronize()
    return [event.name for event in profile.events()]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the context once it has taken so long; main thread only."""

    def stop(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
