"""What no kernel of this machine exceeds: the bandwidth of a copy and the rate of a matrix product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.case import Work
from benchmarks.timing import Clock, Mode, take_turns

# Bytes moved, half of them read: from what a core's cache holds to more than any cache.
SIZES = [2**power for power in range(14, 30, 2)]
SIDE = {"cpu": 1536, "cuda": 8192}
MODE = Mode("limits", seconds=0.3, least=5, most=50)


@dataclass(frozen=True)
class Limits:
    """Measured in one run.

    Args:
        copy: bytes a second of a copy into memory that exists, by the bytes it moves.
        flops_per_s: of a square matrix product.
        dtype: of that product.
    """

    copy: dict[int, float]
    flops_per_s: float
    dtype: str = "float32"

    @classmethod
    def of(cls, record: dict) -> Limits:
        """From the record of `measure_limits`."""
        copy = {int(size): rate for size, rate in record["copy_bytes_per_s"].items()}
        return cls(copy, record["flops_per_s"], record["dtype"])

    def bandwidth(self, size: int) -> float:
        """Of a copy that moves so many bytes: caches make small ones faster."""
        sizes = sorted(self.copy)
        return float(np.interp(math.log(size), np.log(sizes), [self.copy[one] for one in sizes]))

    def seconds(self, work: Work) -> float:
        """The least time for `work`."""
        return max(work.bytes / self.bandwidth(work.bytes), work.flops / self.flops_per_s)

    def binds(self, work: Work) -> str:
        """Which of the two limits: "memory" or "arithmetic"."""
        memory = work.bytes / self.bandwidth(work.bytes)
        return "memory" if memory >= work.flops / self.flops_per_s else "arithmetic"


def measure_limits(device: str, clock: Clock, dtype: torch.dtype) -> dict:
    """A record that `Limits.of` reads. `dtype` is that of the product."""
    calls = {}
    for size in SIZES:
        source = torch.rand(size // 8, device=device)
        target = torch.zeros_like(source)
        calls[size] = lambda _, source=source, target=target: target.copy_(source)
    side = SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls["product"] = lambda _: left @ right
    for call in calls.values():
        call(0)
    # Each alone and its fastest call: a limit is what the machine can do.
    least = {name: min(take_turns({name: call}, MODE, clock)[name]) for name, call in calls.items()}
    return {
        "kind": "limits",
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "copy_bytes_per_s": {str(size): size / least[size] for size in SIZES},
        "flops_per_s": 2 * side**3 / least["product"],
    }
