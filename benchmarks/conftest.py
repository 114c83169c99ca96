"""Side-by-side timing, and a table of ratios at the end of the run, one block per group of benchmarks."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

WARM_UP = 3

_rows: dict[str, list[tuple[str, float, str, float]]] = defaultdict(list)


def _interleaved(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    # Candidates take turns, so that whatever else the machine does hits them alike.
    for call in candidates.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        # A fixed or mirrored order would let one candidate follow itself, with warmer caches than the others.
        shuffle(order)
        for name, call in order:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@pytest.fixture
def interleaved():
    """interleaved(candidates, rounds): median seconds per call of each, over rounds of random order."""
    return _interleaved


@pytest.fixture
def table():
    """table(group, case, seconds, peer, peer_seconds) adds one line to the table."""

    def add(group: str, case: str, seconds: float, peer: str, peer_seconds: float) -> None:
        _rows[group].append((case, seconds, peer, peer_seconds))

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    for group, rows in _rows.items():
        peer = rows[0][2]
        terminalreporter.section(f"{group}: medians")
        terminalreporter.line(f"{'case':<28}{'lorun ms':>12}{peer + ' ms':>14}{'ratio':>9}")
        total = ("total", sum(row[1] for row in rows), peer, sum(row[3] for row in rows))
        for case, seconds, _, peer_seconds in [*rows, total]:
            terminalreporter.line(
                f"{case:<28}{seconds * 1e3:>12.3f}{peer_seconds * 1e3:>14.3f}{seconds / peer_seconds:>9.3f}"
            )
