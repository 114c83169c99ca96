"""What got slower from one results file to another, by ratios to the same peers.

    python -m benchmarks.compare OLD NEW

The peers of a case, whose code is the same in both runs, tell what the machine did: any change of one of ours
beyond their median is its own. Cases that got slower beyond noise are printed, and so are those of ours that
are gone; the exit status is then 1. Noise is the uncertainty that the rounds of both runs leave, and how much
the peers changed relative to each other.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.case import REFERENCE
from benchmarks.harness.measure import AGAIN
from benchmarks.report.run import Run, load

# A smaller slowdown is not worth a line.
LEAST = 1.05
# Standard deviations. Timing noise has long tails: at three, one change in three hundred is flagged wrongly.
BEYOND = 4.0
# In a shorter call, where code and data happen to lie in memory changes more than that.
SHORTEST_S = 100e-6
# The width of the middle 95 % of a normal distribution, in standard deviations.
WIDTH_OF_95 = 2 * 1.96


@dataclass(frozen=True)
class Change:
    """How many times as long one of ours takes in the new run, relative to the peers of its case."""

    group: str
    title: str
    ours: str
    log_factor: float
    noise: float
    peers: int

    @property
    def factor(self) -> float:
        return math.exp(self.log_factor)

    @property
    def slower(self) -> bool:
        """Whether it got slower beyond noise."""
        return self.log_factor > max(math.log(LEAST), BEYOND * self.noise)

    def line(self) -> str:
        return (
            f"{self.group}, {self.title}: {self.ours} takes {self.factor:.2f} times as long against "
            f"{self.peers} peer{'s' if self.peers != 1 else ''} (noise {self.noise:.1%})"
        )


Times = dict[str, tuple[float, float]]
"""By candidate: the logarithm of its time over that of the first of ours, and the deviation of that."""


@dataclass(frozen=True)
class Pair:
    """One case in both runs."""

    old: dict
    new: dict

    @property
    def changes(self) -> Times:
        """Of the candidates that both runs have."""
        before, after = _times(self.old), _times(self.new)
        return {
            name: (after[name][0] - before[name][0], math.hypot(after[name][1], before[name][1]))
            for name in before
            if name in after
        }

    @property
    def ours(self) -> list[str]:
        """Ours that take long enough, without the definition, which nobody uses for its speed."""
        names = [name for name in self.changes if self._is(name, "ours") and name != REFERENCE]
        return [name for name in names if self.old["candidates"][name]["median_s"] >= SHORTEST_S]

    @property
    def peers(self) -> list[str]:
        """Those that tell what the machine did."""
        return [n for n in self.changes if not self._is(n, "ours") and not self._is(n, "own_code")]

    def _is(self, name: str, key: str) -> bool:
        return self.old["candidates"][name][key]

    @property
    def spread(self) -> float | None:
        """Of the peers' changes; None if there is only one peer."""
        changes = [self.changes[peer][0] for peer in self.peers]
        return float(np.std(changes, ddof=1)) if len(changes) > 1 else None


def _times(case: dict) -> Times:
    ratios = {record["peer"]: record for record in case["ratios"] if record["peer"] != AGAIN}
    times = {next(name for name, one in case["candidates"].items() if one["ours"]): (0.0, 0.0)}
    # Ours come first, so that the one that a peer is compared with is already there.
    for name, record in ratios.items():
        start, deviation = times[record["ours"]]
        low, high = record["interval"]
        own = math.log(high / low) / WIDTH_OF_95
        times[name] = (start + math.log(record["speed_up"]), math.hypot(deviation, own))
    return times


def compare(old: Run, new: Run) -> list[Change]:
    """The changes of ours in the cases that both runs have, the largest slowdown first."""
    pairs = [pair for pair in _pairs(old, new) if pair.peers]
    spreads = [pair.spread for pair in pairs if pair.spread is not None]
    usual = float(np.median(spreads)) if spreads else 0.0
    found = [_change(pair, name, usual) for pair in pairs for name in pair.ours]
    return sorted(found, key=lambda change: -change.log_factor)


def _change(pair: Pair, name: str, usual: float) -> Change:
    changes, peers = pair.changes, pair.peers
    change, deviation = changes[name]
    # The median over peers: a single one that itself changed does not count.
    middle, sampled = (float(np.median([changes[peer][part] for peer in peers])) for part in (0, 1))
    # A case has few peers: the usual spread counts as much as two more of them.
    squares = 2 * usual**2 + (len(peers) - 1) * (pair.spread or 0.0) ** 2
    between = math.sqrt(squares / (len(peers) + 1) * (1 + 1 / len(peers)))
    return Change(
        pair.new["group"],
        pair.new["title"],
        name,
        change - middle,
        max(math.hypot(deviation, sampled), between),
        len(peers),
    )


def _pairs(old: Run, new: Run) -> list[Pair]:
    before = {(case["group"], case["title"]): case for case in old.cases}
    keys = [((case["group"], case["title"]), case) for case in new.cases]
    return [Pair(before[key], case) for key, case in keys if key in before]


def gone(old: Run, new: Run) -> list[str]:
    """Ours that only the old run has, in cases that both have."""
    return [
        f"{pair.new['group']}, {pair.new['title']}: {name} is gone. {pair.new['missing'].get(name, '')}"
        for pair in _pairs(old, new)
        for name, one in pair.old["candidates"].items()
        if one["ours"] and name not in pair.new["candidates"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        old, new = load(args.old), load(args.new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    found, lost = compare(old, new), gone(old, new)
    if not found:
        parser.error(f"{args.old} and {args.new} have no case in common")
    if old.name != new.name:
        print(f"Two machines: {old.name} and {new.name}. Ratios may differ for that alone.")
    slower = [change.line() for change in found if change.slower]
    print(f"{old.commit} -> {new.commit}: {len(found)} comparisons in common")
    print("\n".join(slower + lost) or "Nothing got slower beyond noise.")
    sys.exit(1 if slower or lost else 0)


if __name__ == "__main__":
    main()
