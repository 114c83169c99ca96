"""README.md's section."""

import pytest

from benchmarks.report import readme
from benchmarks.report.run import Run
from benchmarks.table import TABLE


@pytest.fixture
def headline_run(machine, make_case) -> Run:
    """Every headline in two cases: twice as fast, and half as fast."""
    records = []
    for group, peer in readme.HEADLINES:
        for speed_up in (2.0, 0.5):
            record = make_case(group=group, speed_up=speed_up)
            record["candidates"][peer] = record["candidates"].pop("peer")
            record["ratios"][1]["peer"] = peer
            records.append(record)
    return Run(machine, "abc1234", "2026-11-28", records)


def test_headlines_are_of_the_table():
    groups = [entry.group for entry in TABLE]
    assert all(group in groups for group, _ in readme.HEADLINES)
    assert len(set(readme.HEADLINES)) == len(readme.HEADLINES) <= 8


def test_the_section_is_short_and_has_every_headline(headline_run):
    lines = readme.section({"a": headline_run})
    assert len(lines) <= 18
    assert sum(line.startswith("![") for line in lines) == 1
    for group, peer in readme.HEADLINES:
        assert f"| {group} | LoRun | {peer} | 1 (0.928-1.07) |" in lines
    assert "a processor, 2 threads, torch 2.13.0, commit `abc1234`, 2026-11-28" in lines[-1]
    assert "(docs/benchmarks.md)" in lines[-1]


def test_another_machine_is_another_column(headline_run, machine, run):
    one = Run(machine, "abc1234", "2026-11-28", headline_run.records[:2])
    other = Run(machine | {"cpu": "another"}, "abc1235", "2026-11-29", headline_run.records[2:4])
    lines = readme.section({"a": one, "b": other, "without": run})
    rows = [line for line in lines if line.startswith("| network")]
    cells = [[cell.strip() for cell in row.split("|")[4:-1]] for row in rows]
    assert cells == [["1 (0.928-1.07)", "", ""], ["", "1 (0.928-1.07)", ""]]


def test_readme_s_section_is_replaced_and_nothing_else():
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter"
    assert (
        readme.with_section(text, ["new", r"\1"]) == f"before\n{readme.BEGIN}\nnew\n\\1\n{readme.END}\nafter"
    )
    with pytest.raises(ValueError, match=r"README\.md: expected the marks"):
        readme.with_section("no marks", [])
