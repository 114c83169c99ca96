"""Side-by-side timing, and a table of ratios at the end of the run, one block per group of benchmarks."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

WARM_UP = 3

_rows: dict[str, list[tuple[str, str, list[float], list[float]]]] = defaultdict(list)


def _interleaved(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
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
    return seconds


@pytest.fixture
def interleaved():
    """interleaved(candidates, rounds): seconds of every call of each candidate, in rounds of random order."""
    return _interleaved


@pytest.fixture
def table():
    """table(group, case, peer, seconds, peer_seconds) adds one line to the table."""

    def add(group: str, case: str, peer: str, seconds: list[float], peer_seconds: list[float]) -> None:
        _rows[group].append((case, peer, seconds, peer_seconds))

    return add


def ratio_quartiles(seconds: list[float], peer_seconds: list[float]) -> list[float]:
    """First quartile, median and third quartile of the ratio, round by round."""
    return statistics.quantiles((a / b for a, b in zip(seconds, peer_seconds, strict=True)), n=4)


def pytest_terminal_summary(terminalreporter) -> None:
    for group, rows in _rows.items():
        peer = rows[0][1]
        rounds = len(rows[0][2])
        terminalreporter.section(f"{group}: medians of {rounds} rounds, ratio with its quartiles")
        terminalreporter.line(f"{'case':<20}{'lorun ms':>10}{peer + ' ms':>12}{'ratio':>8}{'quartiles':>16}")
        sums = [[sum(times) for times in zip(*(row[part] for row in rows), strict=True)] for part in (2, 3)]
        for case, _, seconds, peer_seconds in [*rows, ("total", peer, *sums)]:
            low, ratio, high = ratio_quartiles(seconds, peer_seconds)
            terminalreporter.line(
                f"{case:<20}{statistics.median(seconds) * 1e3:>10.3f}"
                f"{statistics.median(peer_seconds) * 1e3:>12.3f}{ratio:>8.3f}{low:>9.3f}-{high:.3f}"
            )
