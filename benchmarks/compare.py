"""What got slower from one results file to another, by ratios to the same peers.

    python -m benchmarks.compare OLD NEW

A peer's time beside ours in both runs takes out what the machine did. Cases that got slower beyond noise are
printed, and the exit status is then 1. Noise is what the rounds of the two runs leave open, and how much the
peers, which are the same in both runs, differ from each other between them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.ratios import Ratio
from benchmarks.results import Run, load, peer_ratios

# Slower by less is not worth a line.
LEAST = 1.05
# Standard deviations: of hundreds of cases, chance alone passes none.
BEYOND = 3.0
# Of a normal distribution.
WIDTH_OF_95, MAD_TO_DEVIATION = 2 * 1.96, 1.4826


@dataclass(frozen=True)
class Change:
    """How many times as long one of ours takes in the new run, against its peers."""

    group: str
    title: str
    ours: str
    log_factor: float
    deviation: float
    peers: int

    @property
    def factor(self) -> float:
        return math.exp(self.log_factor)

    def slower(self, spread: float) -> bool:
        """Whether it got slower beyond its own noise and the spread between the runs."""
        noise = max(self.deviation, spread * math.sqrt(1 + 1 / self.peers))
        return self.log_factor > max(math.log(LEAST), BEYOND * noise)

    def line(self) -> str:
        return (
            f"{self.group}, {self.title}: {self.ours} takes {self.factor:.2f} times as long against "
            f"{self.peers} peer{'s' if self.peers != 1 else ''} (noise {self.deviation:.1%})"
        )


def compare(old: Run, new: Run) -> tuple[list[Change], float]:
    """The change of each of ours in each case that both runs have, most slowed first, and the spread.

    The spread is that of peers among themselves, whose code is the same in both runs: what they seem to have
    changed is noise between the runs.
    """
    before, found, between_peers = _ratios(old), [], []
    for (group, title, ours), after in _ratios(new).items():
        pairs = [
            (one, after[peer]) for peer, one in before.get((group, title, ours), {}).items() if peer in after
        ]
        if not pairs:
            continue
        logs = [math.log(then.median / now.median) for then, now in pairs]
        noise = [math.hypot(_deviation(then), _deviation(now)) for then, now in pairs]
        # The median over peers: one that itself changed does not count.
        middle = float(np.median(logs))
        found.append(Change(group, title, ours, middle, float(np.median(noise)), len(pairs)))
        between_peers += [abs(a - b) for a, b in itertools.pairwise(logs)]
    # Of one candidate: a difference has the noise of two.
    spread = MAD_TO_DEVIATION * float(np.median(between_peers)) / math.sqrt(2) if between_peers else 0.0
    return sorted(found, key=lambda change: -change.log_factor), spread


def _ratios(run: Run) -> dict[tuple[str, str, str], dict[str, Ratio]]:
    """(group, title, ours) -> peer -> ratio."""
    found: dict[tuple[str, str, str], dict[str, Ratio]] = {}
    for case in run.cases:
        for ours, peer, one in peer_ratios(case):
            found.setdefault((case["group"], case["title"], ours), {})[peer] = one
    return found


def _deviation(one: Ratio) -> float:
    return math.log(one.high / one.low) / WIDTH_OF_95


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
    found, spread = compare(old, new)
    if not found:
        parser.error(f"{args.old} and {args.new} have no case in common")
    if old.name != new.name:
        print(f"Two machines: {old.name} and {new.name}. Ratios may differ for that alone.")
    slower = [change for change in found if change.slower(spread)]
    print(
        f"{old.commit} -> {new.commit}: {len(found)} comparisons in common, spread of the peers {spread:.1%}"
    )
    print("\n".join(change.line() for change in slower) or "Nothing got slower beyond noise.")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
