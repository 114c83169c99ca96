"""Whether something else uses the processor, as neighbours on a shared machine do for seconds at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

# A probe this much slower than at its best was disturbed: a neighbour on the same core costs it up to half.
DISTURBED = 1.25
PAUSE_S = 0.02


class Probe:
    """A little work, always the same: arithmetic on every thread, and calls of small operations on one."""

    def __init__(self):
        # The least that torch gives to one thread.
        self._values = torch.rand(2**15 * torch.get_num_threads())
        self._out = torch.empty_like(self._values)
        self._few = torch.rand(8)
        self._fastest = {self._arithmetic: math.inf, self._calls: math.inf}
        for _ in range(100):
            self.disturbed()

    def disturbed(self) -> bool:
        return any([self._slow(work) for work in self._fastest])

    def _slow(self, work: Callable[[], None]) -> bool:
        # The first calls wake the threads and bring the values back into the caches.
        now = min(_seconds(work) for _ in range(3))
        self._fastest[work] = min(self._fastest[work], now)
        return now > DISTURBED * self._fastest[work]

    def _arithmetic(self) -> None:
        torch.exp(self._values, out=self._out)

    def _calls(self) -> None:
        for _ in range(8):
            self._few.sum()


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Watch:
    """Repeats what was disturbed, for `patience` seconds in all; after that it accepts every result.

    Attributes:
        repeated: how many results were dropped.
        disturbed: how many were kept although they were disturbed.
    """

    def __init__(self, disturbed: Callable[[], bool], patience: float):
        self._disturbed = disturbed
        self._patience = patience
        self.repeated = self.disturbed = 0

    def undisturbed(self, play: Callable[[], Result]) -> Result:
        """What play() returns; it is called again as long as it is disturbed and patience lasts."""
        while True:
            self._wait()
            start = time.perf_counter()
            result = play()
            if not self._disturbed():
                return result
            self._patience -= time.perf_counter() - start
            if self._patience <= 0:
                self.disturbed += 1
                return result
            self.repeated += 1

    def _wait(self) -> None:
        while self._patience > 0 and self._disturbed():
            time.sleep(PAUSE_S)
            self._patience -= PAUSE_S
