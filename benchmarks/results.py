"""Results files: what `pytest benchmarks --benchmark-json=FILE` writes, and the short form that is committed.

    python -m benchmarks.results FILE SHORT

leaves out the seconds of every round and what pytest-benchmark adds; medians and intervals stay.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.limits import Limits
from benchmarks.measure import AGAIN
from benchmarks.ratios import Ratio

COMMITTED = Path(__file__).parent / "results"


@dataclass
class Run:
    """One run of the benchmarks on one machine.

    Args:
        out_of_time: names of the benchmarks that its time was too short for.
    """

    machine: dict
    commit: str
    date: str
    records: list[dict] = field(repr=False)
    out_of_time: list[str] = field(default_factory=list)

    @property
    def cases(self) -> list[dict]:
        return [record for record in self.records if record.get("kind") == "case"]

    @cached_property
    def groups(self) -> dict[str, list[dict]]:
        """The cases of every group, in the order of the table."""
        groups: dict[str, list[dict]] = {}
        for case in self.cases:
            groups.setdefault(case["group"], []).append(case)
        return groups

    @cached_property
    def limits(self) -> Limits | None:
        found = [record for record in self.records if record.get("kind") == "limits"]
        return Limits.of(found[0]) if found else None

    @property
    def name(self) -> str:
        """The machine, in words."""
        gpu = self.machine.get("gpu")
        threads = f"{self.machine['threads']} thread{'s' if self.machine['threads'] != 1 else ''}"
        return gpu["name"] if gpu else f"{self.machine['cpu']}, {threads}"

    @property
    def mode(self) -> str:
        return self.cases[0]["mode"] if self.cases else "no"


def load(path: Path) -> Run:
    """Read a results file of either form.

    Raises:
        ValueError: naming the file, where it is not one.
    """
    try:
        content = json.loads(path.read_text())
        commit = content["commit_info"]
        changed = " with changes" if commit.get("dirty") else ""
        return Run(
            machine=content["machine_info"],
            commit=f"{(commit.get('id') or 'unknown')[:7]}{changed}",
            date=content["datetime"][:10],
            records=[one["extra_info"] for one in content["benchmarks"]],
            out_of_time=content.get("out_of_time", []),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected a results file of pytest benchmarks --benchmark-json=FILE; {error!r}"
        ) from error


def ratio(record: dict) -> Ratio:
    return Ratio(record["speed_up"], *record["interval"], record["rounds"])


def peer_ratios(case: dict) -> Iterator[tuple[str, str, Ratio]]:
    """(ours, peer, ratio) of a case, without what is LoRun's own."""
    for record in case["ratios"]:
        peer = record["peer"]
        if peer != AGAIN and not case["candidates"][peer]["ours"]:
            yield record["ours"], peer, ratio(record)


def noise(cases: list[dict]) -> list[tuple[str, Ratio]]:
    """Ours against itself in every case."""
    return [
        (f"{case['group']}, {case['title']}", ratio(record))
        for case in cases
        for record in case["ratios"]
        if record["peer"] == AGAIN
    ]


def geometric_mean(ratios: list[Ratio]) -> Ratio:
    """Of independent ratios; its interval is theirs combined, on a logarithmic scale."""
    logs = np.log([(one.low, one.median, one.high) for one in ratios])
    low, middle, high = logs.T
    below, above = (float(np.linalg.norm(side)) / len(ratios) for side in (middle - low, high - middle))
    mean = float(middle.mean())
    rounds = min(one.rounds for one in ratios)
    return Ratio(math.exp(mean), math.exp(mean - below), math.exp(mean + above), rounds)


def shorten(content: dict) -> dict:
    """The short form of a results file."""
    commit = content["commit_info"]
    return {
        "machine_info": content["machine_info"],
        "commit_info": {"id": commit.get("id"), "dirty": commit.get("dirty")},
        "datetime": content["datetime"],
        "out_of_time": content.get("out_of_time", []),
        "benchmarks": [{"extra_info": _without_seconds(one["extra_info"])} for one in content["benchmarks"]],
    }


def _without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return value


def write_short(content: dict, path: Path) -> None:
    """One benchmark a line, so that a diff shows which have changed."""
    *head, (_, benchmarks) = shorten(content).items()
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head]
    rows = ",\n".join(json.dumps(one) for one in benchmarks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + "\n".join(lines) + f'\n"benchmarks": [\n{rows}\n]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest benchmarks --benchmark-json has written")
    parser.add_argument("short", type=Path, help="the file to write, such as benchmarks/results/MACHINE.json")
    args = parser.parse_args()
    try:
        load(args.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_short(json.loads(args.results.read_text()), args.short)


if __name__ == "__main__":
    main()
