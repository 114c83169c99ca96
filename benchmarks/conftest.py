"""A table of ratios at the end of the run, one block per group of benchmarks."""

from __future__ import annotations

from collections import defaultdict

import pytest

_rows: dict[str, list[tuple[str, float, str, float]]] = defaultdict(list)


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
