"""The regression check: a planted slowdown is flagged, a re-run is not."""

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from benchmarks.compare import compare, gone, main
from benchmarks.harness.case import OURS, REFERENCE
from benchmarks.harness.ratios import speed_up
from benchmarks.report.run import Run
from benchmarks.results import write_short

FACTORED, BLOCK = "LoRun, factored", "Block-9"
TRUTH = {OURS: 1.0, FACTORED: 1.1, REFERENCE: 3.0, BLOCK: 1.0, "peer": 2.0, "other": 1.2, "floor": 0.4}
AGAINST = {name: FACTORED if name == "other" else OURS for name in TRUTH if name != OURS}
CASES, ROUNDS = 30, 31
MACHINE = {"cpu": "a processor", "threads": 2}


@cache
def record(seed: int, number: int, slowed: tuple[tuple[str, float], ...] = ()) -> str:
    """One simulated case: rounds with noise, and candidates that are slower by the factors in `slowed`."""
    draw = np.random.default_rng([seed, number])
    # The speed of the machine in each round.
    common = draw.lognormal(0, 0.2, ROUNDS)
    seconds = {}
    for name, true in TRUTH.items():
        # What belongs to a process (alignment, memory layout), and what belongs to a round.
        own = draw.lognormal(0, 0.015)
        seconds[name] = true * dict(slowed).get(name, 1.0) * own * common * draw.lognormal(0, 0.05, ROUNDS)
    ratios = [
        {"ours": ours, "peer": peer, **speed_up(seconds[ours], seconds[peer]).record}
        for peer, ours in AGAINST.items()
    ]
    candidates = {
        name: {"ours": name.startswith(OURS), "own_code": name == BLOCK, "median_s": true}
        for name, true in TRUTH.items()
    }
    return json.dumps(
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


def run_of(seed: int, slowed: dict[str, float] | None = None) -> Run:
    """A simulated run; `slowed` candidates are slower in its first case."""
    first = record(seed, 0, tuple((slowed or {}).items()))
    records = [first, *(record(seed, number) for number in range(1, CASES))]
    return Run(MACHINE, "abc1234", "2026-11-28", [json.loads(one) for one in records])


def flagged(old: Run, new: Run) -> list[tuple[str, str]]:
    return [(change.title, change.ours) for change in compare(old, new) if change.slower]


@pytest.mark.parametrize("seed", range(5))
def test_a_rerun_is_not_flagged(seed):
    assert flagged(run_of(2 * seed), run_of(2 * seed + 1)) == []


@pytest.mark.parametrize("seed", range(5))
def test_what_got_slower_is_flagged_and_only_that(seed):
    assert flagged(run_of(2 * seed), run_of(2 * seed + 1, {OURS: 1.2})) == [("0", OURS)]


def test_all_cases_slower_are_nearly_all_flagged():
    old, new = run_of(0), run_of(1)
    for case in new.cases:
        for record in case["ratios"]:
            if record["ours"] == OURS:  # FACTORED and all peers get faster by comparison
                record["speed_up"] /= 1.2
                record["interval"] = [bound / 1.2 for bound in record["interval"]]
    found = flagged(old, new)
    assert len(found) > 0.9 * len(old.cases) and {ours for _, ours in found} == {OURS}


def test_every_one_of_ours_but_the_definition_is_compared():
    assert flagged(run_of(0), run_of(1, {FACTORED: 1.5})) == [("0", FACTORED)]
    assert flagged(run_of(0), run_of(1, {REFERENCE: 1.5})) == []


def test_peers_that_run_our_code_excuse_nothing():
    assert flagged(run_of(0), run_of(1, {OURS: 1.5, BLOCK: 1.5})) == [("0", OURS)]


def test_a_noisy_case_needs_more():
    noisy = {"peer": 0.6, "other": 1.6}
    assert flagged(run_of(0), run_of(1, noisy | {OURS: 1.2})) == []


def test_a_peer_that_changed_is_not_our_slowdown():
    assert flagged(run_of(0), run_of(1, {"peer": 0.5})) == []


def test_calls_too_short_to_say_are_left_out():
    old, new = run_of(0), run_of(1, {OURS: 2.0})
    old.cases[0]["candidates"][OURS]["median_s"] = 20e-6
    assert flagged(old, new) == []


def test_faster_is_not_slower():
    assert flagged(run_of(0), run_of(1, {OURS: 0.7})) == []


def test_what_is_gone_is_said():
    old, new = run_of(0), run_of(1)
    del new.cases[2]["candidates"][FACTORED]
    new.cases[2]["missing"][FACTORED] = "RuntimeError: no"
    assert gone(old, new) == [f"op 2, 2: {FACTORED} is gone. RuntimeError: no"]
    assert gone(new, old) == []


def written(run: Run, path):
    content = {
        "machine_info": run.machine,
        "commit_info": {"id": "abc1234567", "dirty": False, "branch": "main"},
        "datetime": "2026-11-28T00:00:00",
        "benchmarks": [{"extra_info": record, "stats": {}} for record in run.records],
    }
    write_short(content, path)
    return path


def test_the_command_says_what_got_slower_and_fails(tmp_path):
    old, slow = (
        written(run_of(0), tmp_path / "old.json"),
        written(run_of(1, {OURS: 1.2}), tmp_path / "slow.json"),
    )
    command = [sys.executable, "-m", "benchmarks.compare", old, slow]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "op 0, 0: LoRun takes 1.1" in bad.stdout.splitlines()[-1]
    assert "against 3 peers" in bad.stdout.splitlines()[-1]


def ended(monkeypatch, *files) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, files)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command_says_that_nothing_got_slower(tmp_path, monkeypatch, capsys):
    old, same = written(run_of(0), tmp_path / "old.json"), written(run_of(1), tmp_path / "same.json")
    assert ended(monkeypatch, old, same) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing got slower beyond noise."


def test_a_file_that_is_no_results_file_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert ended(monkeypatch, tmp_path / "other.json", tmp_path / "none.json") == 2
    assert "other.json: expected a results file" in capsys.readouterr().err


def test_files_without_a_common_case_are_refused(tmp_path, monkeypatch, capsys):
    old, new = written(run_of(0), tmp_path / "old.json"), run_of(1)
    for case in new.cases:
        case["group"] = "another"
    assert ended(monkeypatch, old, written(new, tmp_path / "new.json")) == 2
    assert "have no case in common" in capsys.readouterr().err
