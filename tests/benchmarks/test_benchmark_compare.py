"""The regression check: a planted slowdown is flagged, a re-run is not."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.case import OURS
from benchmarks.compare import compare
from benchmarks.measure import AGAIN
from benchmarks.ratios import speed_up
from benchmarks.results import Run, load, shorten, write_short

TRUTH = {OURS: 1.0, "peer": 2.0, "other": 1.2, "floor": 0.4}
MACHINE = {"cpu": "a processor", "threads": 2}


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr("benchmarks.ratios.DRAWS", 400)


def run_of(seed: int, slowed: dict[str, float] | None = None, cases: int = 30, rounds: int = 31) -> Run:
    """Simulated: rounds with noise, a speed of the machine for each run, and `slowed` in the first case."""
    draw = np.random.default_rng(seed)
    records = []
    for number in range(cases):
        names = [*TRUTH, AGAIN]
        factors = {name: (slowed or {}).get(name, 1.0) if number == 0 else 1.0 for name in names}
        truth = TRUTH | {AGAIN: TRUTH[OURS] * factors[OURS]}
        # What a process has for itself (alignment, memory layout), and what a round has.
        between, common = draw.lognormal(0, 0.02, len(names)), draw.lognormal(0, 0.2, rounds)
        seconds = {
            name: list(
                truth[name]
                * (factors[name] if name != AGAIN else 1)
                * own
                * common
                * draw.lognormal(0, 0.05, rounds)
            )
            for name, own in zip(names, between, strict=True)
        }
        ratios = [
            {"ours": OURS, "peer": peer, **speed_up(seconds[OURS], seconds[peer]).record}
            for peer in names[1:]
        ]
        candidates = {name: {"ours": name == OURS, "unlike": None} for name in TRUTH}
        records.append(
            {
                "kind": "case",
                "group": f"op {number % 3}",
                "title": str(number),
                "mode": "full",
                "candidates": candidates,
                "ratios": ratios,
                "missing": {},
            }
        )
    return Run(MACHINE, "abc1234", "2026-11-28", records)


def flagged(old: Run, new: Run) -> list[str]:
    found, spread = compare(old, new)
    return [change.title for change in found if change.slower(spread)]


@pytest.mark.parametrize("seed", range(5))
def test_a_rerun_is_not_flagged(seed):
    assert flagged(run_of(2 * seed), run_of(2 * seed + 1)) == []


@pytest.mark.parametrize("seed", range(5))
def test_twenty_percent_are_flagged_and_only_they(seed):
    assert flagged(run_of(2 * seed), run_of(2 * seed + 1, {OURS: 1.2})) == ["0"]


def test_all_cases_slower_are_all_flagged():
    old = run_of(0)
    new = run_of(1)
    for case in new.cases:
        for record in case["ratios"]:
            record["speed_up"] /= 1.25
            record["interval"] = [bound / 1.25 for bound in record["interval"]]
    assert len(flagged(old, new)) == len(old.cases)


def test_a_peer_that_changed_is_not_our_slowdown():
    assert flagged(run_of(0), run_of(1, {"peer": 0.5})) == []


def test_faster_is_not_slower():
    assert flagged(run_of(0), run_of(1, {OURS: 0.7})) == []


def written(run: Run, path):
    content = {
        "machine_info": run.machine,
        "commit_info": {"id": "abc1234567", "dirty": False, "branch": "main"},
        "datetime": "2026-11-28T00:00:00",
        "benchmarks": [{"extra_info": record, "stats": {}} for record in run.records],
    }
    write_short(content, path)
    assert json.loads(path.read_text()) == shorten(content)
    return path


def test_the_command_says_what_got_slower_and_fails(tmp_path):
    old = written(run_of(0), tmp_path / "old.json")
    same = written(run_of(1), tmp_path / "same.json")
    slow = written(run_of(1, {OURS: 1.2}), tmp_path / "slow.json")
    command = [sys.executable, "-m", "benchmarks.compare", old]
    good = subprocess.run([*command, same], capture_output=True, text=True)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "Nothing got slower beyond noise.")
    bad = subprocess.run([*command, slow], capture_output=True, text=True)
    assert bad.returncode == 1
    assert "op 0, 0: LoRun takes 1.18 times as long against 3 peers" in bad.stdout.splitlines()[-1]


def test_a_file_that_is_no_results_file_is_named(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"other\.json: expected a results file"):
        load(tmp_path / "other.json")
    command = [sys.executable, "-m", "benchmarks.compare", tmp_path / "other.json", tmp_path / "none.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "other.json: expected a results file" in done.stderr


def test_files_without_a_common_case_are_refused(tmp_path):
    old, new = written(run_of(0), tmp_path / "old.json"), run_of(1)
    for case in new.cases:
        case["group"] = "another"
    command = [sys.executable, "-m", "benchmarks.compare", old, written(new, tmp_path / "new.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "have no case in common" in done.stderr
