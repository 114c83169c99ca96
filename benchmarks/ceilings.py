"""The limits of a GPU, and the times that they predict for kernels."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.lora_passes import Pass
from benchmarks.lora_results import of_kind


@dataclass(frozen=True)
class Ceilings:
    """What no kernel exceeds."""

    bytes_per_s: float
    flops_per_s: float
    kernel_s: float = 0.0
    """The time of the smallest kernel; 0 where nobody has measured it."""
    gpu: str | None = None
    """Where they were measured; None: they are assumed."""

    @classmethod
    def of(cls, records: list[dict]) -> Ceilings:
        """Those measured in a run, or the assumed ones."""
        found = of_kind(records, "ceilings")
        if not found:
            return ASSUMED
        record = found[0]
        return cls(
            record["copy_tb_per_s"] * 1e12,
            record["matmul_tflop_per_s"] * 1e12,
            record["kernel_us"] * 1e-6,
            record["gpu"],
        )

    @property
    def balance(self) -> float:
        """Operations a byte from which on arithmetic binds."""
        return self.flops_per_s / self.bytes_per_s

    def microseconds(self, passes: list[Pass]) -> float:
        """The least time for kernels one after another."""
        return sum(self._of_one(one)[0] for one in passes) * 1e6

    def limit(self, one: Pass) -> str:
        """What binds a kernel: memory, arithmetic or launch."""
        return self._of_one(one)[1]

    def _of_one(self, one: Pass) -> tuple[float, str]:
        return max(
            (one.bytes / self.bytes_per_s, "memory"),
            (one.flops / self.flops_per_s, "arithmetic"),
            (self.kernel_s, "launch"),
        )


# Section 5, point 12 of the design notes.
ASSUMED = Ceilings(bytes_per_s=4.3e12, flops_per_s=790e12)
