"""The command, and that what is committed in README.md and docs/ is what it writes."""

import sys

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report import readme, roofline
from benchmarks.report.page import page
from benchmarks.report.plots import figures
from benchmarks.report.run import load


def test_pages_and_plots_are_written_beside_each_other(run, tmp_path):
    report.write({"a": run}, tmp_path, "a command")
    names = [f"a-{plot}.png" for plot in ("memory-over-stages", "speed-ups", "time-over-size")]
    assert sorted(file.name for file in (tmp_path / "benchmarks").iterdir()) == names
    text = (tmp_path / "benchmarks.md").read_text()
    assert all(f"(benchmarks/{name})" in text for name in names)
    # No GPU, no page about its limits.
    assert not (tmp_path / f"{roofline.NAME}.md").exists()


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_nothing_is_written_without_results_or_over_another_file_s_plots(
    tmp_path, monkeypatch, capsys, results_file
):
    monkeypatch.setattr(report, "COMMITTED", tmp_path / "none")
    assert "found none" in refused(monkeypatch, capsys)
    (tmp_path / "other").mkdir()
    files = [results_file(folder / "same.json") for folder in (tmp_path, tmp_path / "other")]
    assert "different names" in refused(monkeypatch, capsys, *files, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_are_committed_with_machine_and_commit():
    files = report.by_name(report.committed())
    assert files
    for path in files.values():
        run = load(path)
        assert run.cases and run.limits
        assert "with changes" not in run.commit and run.commit != "unknown"


def test_readme_and_docs_are_what_the_report_writes():
    runs = {name: load(path) for name, path in report.by_name(report.committed()).items()}
    text = report.README.read_text()
    assert readme.with_section(text, readme.section(runs)) == text
    drawn = {name: figures(run) for name, run in runs.items()}
    assert (report.DOCS / "benchmarks.md").read_text() == page(runs, drawn, report.COMMAND)
    for name, plots in drawn.items():
        assert all((report.DOCS / "benchmarks" / f"{name}-{plot}.png").exists() for plot in plots)


def test_the_page_about_the_limits_of_a_gpu_is_what_the_report_writes(tmp_path):
    runs = [load(path) for path in report.committed()]
    on_gpu = next((run for run in runs if run.gpu), None)
    report.write_roofline(on_gpu, tmp_path, report.COMMAND)
    name = f"{roofline.NAME}.md"
    assert (tmp_path / name).read_text() == (report.DOCS / name).read_text()
    for folder in (tmp_path, report.DOCS):
        assert 10_000 < (folder / f"{roofline.NAME}.png").stat().st_size < 100_000
