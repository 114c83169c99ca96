"""Reading results files, and what is asked of a run."""

import pytest

from benchmarks.report.run import Run, load


def test_a_file_that_is_no_results_file_is_named(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"other\.json: expected a results file"):
        load(tmp_path / "other.json")


def test_a_commit_with_changes_says_so(tmp_path, results_file):
    commit = {"id": "abc1234567", "dirty": True}
    run = load(results_file(tmp_path / "a.json", commit_info=commit))
    assert (run.commit, run.date, run.mode) == ("abc1234 with changes", "2026-11-28", "full")
    assert (run.name, run.gpu) == ("a processor, 2 threads", None)


def test_a_run_is_on_a_gpu_if_its_cases_are(run, machine):
    with_gpu = Run(machine | {"gpu": {"name": "a GPU"}}, "abc1234", "2026-11-28", run.records)
    assert with_gpu.gpu is None
    with_gpu.cases[0]["device"] = "cuda"
    assert with_gpu.gpu == "a GPU"
