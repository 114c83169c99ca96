"""What no kernel of this machine exceeds: the bandwidth of a copy and the rate of a matrix product."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.harness.case import Work
from benchmarks.harness.timing import Clock, Mode, gpu_clock, take_turns

# Bytes moved, half of them read: from what fits into a core's cache to more than any cache holds.
SIZES = {"cpu": [2**power for power in range(14, 30, 2)], "cuda": [2**power for power in range(14, 32, 2)]}
SIDE = {"cpu": 1536, "cuda": 8192}
MODE = Mode("limits", seconds=0.3, least=5, most=50)
# One smallest kernel is too short for an event: this many in a row are timed, behind this many busy cycles.
IN_A_ROW, ROW_CYCLES = 200, 20_000_000


@dataclass(frozen=True)
class Limits:
    """The limits of a machine, measured in one run.

    Args:
        copy: bytes per second of a copy into memory that exists, by the bytes it moves.
        flops_per_s: operations per second of a square matrix product.
        dtype: the type of that product.
        kernel_s: seconds of the smallest kernel; 0 if it was not measured.
    """

    copy: dict[int, float]
    flops_per_s: float
    dtype: str = "float32"
    kernel_s: float = 0.0

    @classmethod
    def of(cls, record: dict) -> Limits:
        """From the record of `measure_limits`."""
        copy = {int(size): rate for size, rate in record["copy_bytes_per_s"].items()}
        return cls(copy, record["flops_per_s"], record["dtype"], record.get("kernel_s", 0.0))

    def without_caches(self) -> Limits:
        """The same with the bandwidth of the largest copy for every size."""
        largest = max(self.copy)
        return replace(self, copy={largest: self.copy[largest]})

    def bandwidth(self, size: int) -> float:
        """Of a copy that moves `size` bytes: caches make small ones faster."""
        sizes = sorted(self.copy)
        return float(np.interp(math.log(size), np.log(sizes), [self.copy[one] for one in sizes]))

    def seconds(self, work: Work) -> float:
        """The least time that one kernel takes for `work`."""
        return self._binding(work)[0]

    def binds(self, work: Work) -> str:
        """What that time is bound by: "memory", "arithmetic" or "launch"."""
        return self._binding(work)[1]

    def _binding(self, work: Work) -> tuple[float, str]:
        times = {
            "memory": work.bytes / self.bandwidth(work.bytes),
            "arithmetic": work.flops / self.flops_per_s,
            "launch": self.kernel_s,
        }
        name = max(times, key=times.get)
        return times[name], name


def measure_limits(device: str, clock: Clock, dtype: torch.dtype) -> dict:
    """A record that `Limits.of` reads. `dtype` is the type of the product."""
    calls = {}
    for size in SIZES[device]:
        source = torch.rand(size // 8, device=device)
        target = torch.zeros_like(source)
        calls[size] = lambda _, source=source, target=target: target.copy_(source)
    side = SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls["product"] = lambda _: left @ right
    for call in calls.values():
        call(0)
    # Each alone, and its fastest call: a limit is what the machine is able to do.
    least = {name: min(take_turns({name: call}, MODE, clock)[name]) for name, call in calls.items()}
    record = {
        "kind": "limits",
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "copy_bytes_per_s": {str(size): size / least[size] for size in SIZES[device]},
        "flops_per_s": 2 * side**3 / least["product"],
    }
    return record | ({"kernel_s": kernel_seconds(device, gpu_clock(ROW_CYCLES))} if device == "cuda" else {})


def kernel_seconds(device: str, clock: Clock) -> float:
    """Of the smallest kernel, when many are launched in a row."""
    one = torch.zeros(1, device=device)

    def row(_: int) -> None:
        for _ in range(IN_A_ROW):
            one.add_(1)

    row(0)
    return min(take_turns({"row": row}, MODE, clock)["row"]) / IN_A_ROW
