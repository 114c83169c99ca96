"""A row of the table: a group of the results, and the arguments of its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.harness.case import Case

Arguments = dict[str, object]
"""JSON values only, so that another process can build the same case."""


@dataclass(frozen=True)
class Entry:
    """A group of the results: build(device=..., **arguments) makes one of its cases.

    Args:
        quick: the cases on CPU; an entry without any is for GPUs only.
        full: more cases, which only the full mode has.
        cuda: the cases on a GPU.
        tiny: a case that the tests build on CPU: small, and without torch.compile.
    """

    group: str
    build: Callable[..., Case]
    quick: tuple[Arguments, ...] = ()
    full: tuple[Arguments, ...] = ()
    cuda: tuple[Arguments, ...] = ()
    tiny: Arguments = field(default_factory=dict)

    def arguments(self, device: str, full: bool) -> tuple[Arguments, ...]:
        """The arguments of the cases that run on "cpu" or "cuda"."""
        if device == "cuda":
            return self.cuda
        return self.quick + (self.full if full else ())
