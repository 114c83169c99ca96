"""What a GPU needs besides a clock: inputs past its cache, what its allocator was asked for, kernel names."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Inputs rotate through more memory than an L2 cache holds.
ROTATED_BYTES = 512 * 2**20


def variants(bytes_of_one: int) -> int:
    """How many sets of inputs of this size to rotate."""
    return max(2, ROTATED_BYTES // bytes_of_one)


def requested_bytes() -> int:
    """What is allocated now, as it was requested: without the allocator's rounding."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def peak_bytes(function: Callable[..., object], *args) -> int:
    """The most that a call had allocated at any moment, beyond what was allocated before."""
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
