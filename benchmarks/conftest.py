"""Side-by-side timing, and a table of ratios at the end of the run, one block per group of benchmarks."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch

from benchmarks.lora_results import summary_lines

WARM_UP = 3

# Seconds after which no further benchmark starts, so that a run with a limit still writes its results.
_SECONDS = float(os.environ.get("LORUN_BENCHMARK_SECONDS", "inf"))
_started = time.monotonic()
_gpu_rows: list[dict] = []
_lora_records: list[dict] = []
_summed: set[str] = set()
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
    """table(group, case, peer, seconds, peer_seconds) adds one line to the table.

    With summed=True, for cases that are the parts of one whole, the table ends with their total.
    """

    def add(group: str, case: str, peer: str, seconds: list, peer_seconds: list, summed=False) -> None:
        _rows[group].append((case, peer, seconds, peer_seconds))
        if summed:
            _summed.add(group)

    return add


@pytest.fixture
def gpu_table():
    """gpu_table(op=..., shape=..., ...) adds one line to the table of GPU figures."""
    return lambda **row: _gpu_rows.append(row)


@pytest.fixture
def lora_records() -> list[dict]:
    """What benchmarks/test_lora_conv_gpu.py has measured in this run; the summary is made from it."""
    return _lora_records


def pytest_runtest_setup(item) -> None:
    if time.monotonic() - _started > _SECONDS:
        pytest.skip(f"out of time: LORUN_BENCHMARK_SECONDS is {_SECONDS:.0f}")


def ratio_quartiles(seconds: list[float], peer_seconds: list[float]) -> list[float]:
    """First quartile, median and third quartile of the ratio, round by round."""
    return statistics.quantiles((a / b for a, b in zip(seconds, peer_seconds, strict=True)), n=4)


def pytest_terminal_summary(terminalreporter) -> None:
    for group, rows in _rows.items():
        _write_ratios(terminalreporter, group, rows)
    if _gpu_rows:
        _write_gpu_rows(terminalreporter)
    if _lora_records:
        terminalreporter.section("low-rank convolutions on a GPU")
        for line in summary_lines(_lora_records):
            terminalreporter.line(line)


def _write_ratios(reporter, group: str, rows: list) -> None:
    one_peer = len({peer for _, peer, _, _ in rows}) == 1
    width = max(len(case) for case, *_ in rows) + 2
    reporter.section(f"{group}: medians of {len(rows[0][2])} rounds, ratio with its quartiles")
    peer_title = f"{rows[0][1]} ms" if one_peer else "peer ms"
    reporter.line(f"{'case':<{width}}{'lorun ms':>10}{peer_title:>14}{'ratio':>9}{'quartiles':>18}")
    if group in _summed:
        sums = [[sum(times) for times in zip(*(row[part] for row in rows), strict=True)] for part in (2, 3)]
        rows = [*rows, ("total", rows[0][1], *sums)]
    for case, _, seconds, peer_seconds in rows:
        low, ratio, high = ratio_quartiles(seconds, peer_seconds)
        reporter.line(
            f"{case:<{width}}{statistics.median(seconds) * 1e3:>10.3f}"
            f"{statistics.median(peer_seconds) * 1e3:>14.3f}{ratio:>9.4f}{low:>10.4f}-{high:.4f}"
        )


def _write_gpu_rows(reporter) -> None:
    reporter.section(
        f"{torch.cuda.get_device_name()}: medians, bandwidth as a part of a copy's in the same run"
    )
    for row in _gpu_rows:
        rolls = f"{row['over_rolls']:8.1f}x rolls" if row["over_rolls"] else ""
        reporter.line(
            f"{row['op']:<14}{'x'.join(map(str, row['shape'])):<16}{row['dtype']:<10}{row['layout']:<6}"
            f"{row['backend']:<8}{row['ms']:>9.4f} ms {row['tb_per_s']:>7.3f} TB/s"
            f"{row['of_copy']:>8.1%} of copy{rolls}"
        )
