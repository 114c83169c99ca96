"""A row of the table: a group of the results, and the arguments of its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.case import Case

Arguments = dict[str, object]
"""As JSON has them, so that another process can build the same case."""


@dataclass(frozen=True)
class Entry:
    """A group of the results: build(device=..., **arguments) makes one of its cases."""

    group: str
    build: Callable[..., Case]
    quick: tuple[Arguments, ...] = ()
    full: tuple[Arguments, ...] = ()
    cuda: tuple[Arguments, ...] = ()
    tiny: Arguments = field(default_factory=dict)
    """A case that the tests build: small, and without torch.compile."""

    def arguments(self, device: str, full: bool) -> tuple[Arguments, ...]:
        if device == "cuda":
            return self.cuda
        return self.quick + (self.full if full else ())
