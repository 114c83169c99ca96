"""Every entry of the table, on a tiny case: it builds, its candidates agree, its record can be reported."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.harness.measure import measure
from benchmarks.harness.timing import Mode
from benchmarks.report.page import page
from benchmarks.report.run import Run
from benchmarks.table import TABLE, entry

ROOT = Path(__file__).parents[2]
ONCE = Mode("test", seconds=0.0, least=1, most=1)
MACHINE = {"cpu": "a processor", "cpu_mhz": None, "cores": 2, "threads": 2, "torch": "2", "python": "3"}
MACHINE |= {"compiler": "a compiler", "cxx_flags": "-O3", "load": 0.0}


@pytest.mark.parametrize("one", TABLE, ids=lambda one: one.group)
def test_a_tiny_case_of_every_entry(one):
    case = one.build(device="cpu", **one.tiny)
    record = measure(case, ONCE)
    assert len(record["candidates"]) + len(record["missing"]) > 1
    assert next(iter(record["candidates"].values()))["ours"]
    assert record["ratios"]
    record = json.loads(json.dumps({"kind": "case", "group": one.group, "arguments": one.tiny, **record}))
    lines = page(
        {"run": Run(MACHINE, "abc1234", "2026-11-28", [record])}, {"run": ()}, "a command"
    ).splitlines()
    assert any(line.startswith(f"**{one.group}: {case.title}**") for line in lines)


def test_groups_and_cases_are_unique():
    groups = [one.group for one in TABLE]
    assert len(set(groups)) == len(groups)
    assert all(entry(group).group == group for group in groups)
    for one in TABLE:
        for cases in ((*one.quick, *one.full), one.cuda):
            arguments = [json.dumps(each, sort_keys=True) for each in cases]
            assert len(set(arguments)) == len(arguments), one.group


def test_the_full_mode_has_all_of_the_quick_mode():
    for one in TABLE:
        assert one.quick or one.cuda, one.group
        assert one.quick or not one.full, one.group
        assert one.arguments("cpu", full=True)[: len(one.quick)] == one.arguments("cpu", full=False)


def test_make_bench_installs_the_peers_of_the_bench_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", requirement).group() for requirement in extras["bench"]}
    peers = re.search(r"^PEERS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert set(peers.split()) == names - {"pytest", "pytest-benchmark"}
