"""The short form of a results file."""

import json
import sys

import pytest

from benchmarks import results
from benchmarks.report.run import load

MACHINE = {"cpu": "a processor", "threads": 2}
RECORD = {"kind": "case", "group": "an op", "candidates": {"LoRun": {"median_s": 1.0, "seconds": [1.0, 1.0]}}}


def whole(**content) -> dict:
    return {
        "machine_info": MACHINE,
        "commit_info": {"id": "abc1234567", "dirty": False, "branch": "main"},
        "datetime": "2026-11-28T00:00:00",
        "benchmarks": [{"extra_info": RECORD, "stats": {}}] * 2,
        **content,
    }


def test_the_short_form_has_no_seconds_and_one_line_for_each_benchmark(tmp_path):
    short = tmp_path / "folder" / "short.json"
    results.write_short(whole(out_of_time=["a", "b"]), short)
    assert json.loads(short.read_text()) == results.shorten(whole(out_of_time=["a", "b"]))
    assert "seconds" not in short.read_text() and "stats" not in short.read_text()
    assert sum("extra_info" in line for line in short.read_text().splitlines()) == 2


def test_both_forms_are_read_alike(tmp_path):
    for content in (whole(), whole(out_of_time=["a", "b"])):
        long, short = tmp_path / "long.json", tmp_path / "short.json"
        long.write_text(json.dumps(content))
        results.write_short(content, short)
        one, other = load(long), load(short)
        assert one.out_of_time == other.out_of_time == content.get("out_of_time", [])
        assert (one.machine, one.commit, one.date) == (other.machine, other.commit, other.date)


def test_the_command_writes_the_short_form_and_refuses_other_files(tmp_path, monkeypatch, capsys):
    long, short = tmp_path / "long.json", tmp_path / "short.json"
    long.write_text(json.dumps(whole()))
    monkeypatch.setattr(sys, "argv", ["results", str(long), str(short)])
    results.main()
    assert json.loads(short.read_text()) == results.shorten(whole())
    long.write_text("[]")
    with pytest.raises(SystemExit) as ended:
        results.main()
    assert ended.value.code == 2 and "expected a results file" in capsys.readouterr().err
