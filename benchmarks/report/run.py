"""One run of the benchmarks, read from a results file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import AGAIN
from benchmarks.harness.ratios import Ratio


@dataclass
class Run:
    """One run of the benchmarks on one machine.

    Args:
        machine: what `benchmarks.harness.machine.describe` said.
        commit: the short hash, and whether there were changes.
        records: of its cases, and of the machine's limits.
        out_of_time: names of the benchmarks that it had no time for.
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
    def gpu(self) -> str | None:
        """The name of the GPU, if the cases ran on one."""
        on_gpu = any(case.get("device") == "cuda" for case in self.cases)
        return self.machine["gpu"]["name"] if on_gpu else None

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
    """Read a results file, as pytest-benchmark wrote it or in its short form.

    Raises:
        ValueError: if it is not a results file; the message names it.
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


def peer_ratios(case: dict) -> Iterator[tuple[str, str, Ratio]]:
    """(ours, peer, ratio) of a case, without what is LoRun's own."""
    for record in case["ratios"]:
        peer = record["peer"]
        if peer != AGAIN and not case["candidates"][peer]["ours"]:
            yield record["ours"], peer, Ratio.of(record)


def by_peer(run: Run) -> Iterator[tuple[str, str, str, list[Ratio]]]:
    """(group, ours, peer, ratios over the cases) of every peer."""
    for group, cases in run.groups.items():
        found: dict[tuple[str, str], list[Ratio]] = {}
        for case in cases:
            for ours, peer, one in peer_ratios(case):
                found.setdefault((ours, peer), []).append(one)
        for (ours, peer), ratios in found.items():
            yield group, ours, peer, ratios


def noise(cases: list[dict]) -> list[tuple[str, Ratio]]:
    """Ours against itself in every case."""
    return [
        (f"{case['group']}, {case['title']}", Ratio.of(record))
        for case in cases
        for record in case["ratios"]
        if record["peer"] == AGAIN
    ]
