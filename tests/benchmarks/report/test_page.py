"""The report: its figures, and that what is committed in README.md and docs/ is what it writes."""

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import conftest, report, report_tables
from benchmarks.harness.measure import AGAIN
from benchmarks.report.plots import figures
from benchmarks.results import Run, load, write_short

MACHINE = {
    "cpu": "a processor",
    "cpu_mhz": 2000.0,
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.11",
}
MACHINE |= {"compiler": "gcc 12", "cxx_flags": "-O3", "load": 0.25, "gpu": None}
LIMITS = {"kind": "limits", "copy_bytes_per_s": {"1000": 1e9, "1000000": 1e9}, "flops_per_s": 1e9}
LIMITS |= {"dtype": "bfloat16"}


def candidate(ours=False, median=0.001, **options) -> dict:
    return {
        "ours": ours,
        "unlike": None,
        "rounds": 9,
        "median_s": median,
        "quartiles_s": [median / 2, median * 2],
        "images_per_s": 1 / median,
        "parameter_bytes": None,
        "kept_bytes": None,
        "peak_bytes": None,
        **options,
    }


def case(title="1", group="an op", axis=None, speed_up=2.0, memory=None, missing=None) -> dict:
    sizes = {key: memory for key in ("parameter_bytes", "kept_bytes", "peak_bytes")}
    half = {key: memory and memory // 2 for key in sizes}
    return {
        "kind": "case",
        "group": group,
        "title": title,
        "mode": "full",
        "launching_timed": False,
        "axis": axis,
        "work": {"bytes": 500_000, "flops": 100_000},
        "missing": missing or {},
        "candidates": {"LoRun": candidate(True, **half), "peer": candidate(median=0.001 * speed_up, **sizes)},
        "ratios": [
            {"ours": "LoRun", "peer": AGAIN, "speed_up": 1.01, "interval": [0.99, 1.03], "rounds": 9},
            {
                "ours": "LoRun",
                "peer": "peer",
                "speed_up": speed_up,
                "interval": [speed_up * 0.9, speed_up * 1.1],
                "rounds": 9,
            },
        ],
    }


@pytest.fixture
def run() -> Run:
    cases = [case("1", speed_up=2.0), case("2", speed_up=0.5, missing={"deepinv": "ImportError: no deepinv"})]
    cases += [case(str(k), "stages", ("stages", k), memory=2**20 * k) for k in (4, 1)]
    cases += [case(str(size), "sizes", ("pixels", size)) for size in (64, 256)]
    return Run(MACHINE, "abc1234", "2026-11-28", [*cases, LIMITS])


def test_a_row_for_each_peer_also_where_lorun_is_slower(run):
    head, rows = report_tables.summary(run)
    assert head[4:] == ["LoRun is faster by", "least-most", "slower in"]
    # Twice as fast and half as fast.
    assert rows[0] == ["an op", "LoRun", "peer", "2", "1 (0.928-1.07)", "0.5-2", "1"]


def test_missing_candidates_are_named_with_their_reason(run):
    assert report_tables.missing(run) == ["- deepinv: ImportError: no deepinv (an op)"]
    assert any(
        "deepinv: missing, ImportError: no deepinv" in line
        for line in report.page({"a": run}, {"a": ()}, "c").splitlines()
    )
    assert "- deepinv: ImportError: no deepinv (an op)" in report.terminal_lines(run)


def test_noise_and_machine_stand_above_the_figures(run):
    assert report_tables.noise_line(run).startswith("Noise: LoRun against itself is 1.010 (1.002-1.018)")
    line = report_tables.machine_line(run)
    assert "load 0.25 at the end" in line
    run.machine = MACHINE | {"load": None}
    assert "load unknown at the end" in report_tables.machine_line(run)
    for part in (
        "a processor",
        "2 threads",
        "2000 MHz",
        "torch 2.13.0",
        "gcc 12",
        "commit `abc1234`",
        "full mode",
    ):
        assert part in line


def test_disturbed_rounds_are_counted_where_there_are_some(run):
    assert "disturbed" not in report_tables.noise_line(run)
    run.cases[0].update(repeated=3, disturbed=None)
    run.cases[1].update(repeated=1, disturbed=2)
    said = "4 rounds were repeated because something else disturbed them; 2 disturbed ones stayed."
    assert report_tables.noise_line(run).endswith(said)


def test_a_part_of_the_limit_on_each_backend(run):
    names = ("LoRun, triton", "LoRun, reference backend", "LoRun, in place")
    run.cases[0]["candidates"].update({name: candidate(True, 0.002) for name in names})
    _, rows = report_tables.roofline(run)
    # 0.5 MB at 1 GB/s are half a millisecond; LoRun takes one.
    assert rows[0] == ["an op", "1", "LoRun", "0.5", "0.1", "memory", "0.5", "1", "50%"]
    assert rows[1] == ["an op", "1", "LoRun, triton", "0.5", "0.1", "memory", "0.5", "2", "25%"]
    assert len(rows) == len(run.cases) + 1
    assert "a bfloat16 matrix product makes 1 GFLOP/s" in report_tables.limits_line(run.limits)


def test_no_text_ends_a_cell():
    assert report_tables.markdown(["a"], [["x | y"]])[2] == r"| x \| y |"


def test_memory_in_mebibytes(run):
    _, rows = report_tables.memory(run)
    assert rows[0] == ["stages", "4", "LoRun", "2", "2", "2"]
    assert rows[1] == ["stages", "4", "peer", "4", "4", "4"]


def test_plots_of_what_there_is(run, tmp_path):
    report.write({"a": run}, tmp_path, "a command")
    names = [f"a-{plot}.png" for plot in ("memory-over-stages", "speed-ups", "time-over-size")]
    assert sorted(file.name for file in (tmp_path / "benchmarks").iterdir()) == names
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(f"(benchmarks/{name})" in page for name in names)
    only = Run(MACHINE, "abc1234", "2026-11-28", run.records[:2])
    assert list(figures(only)) == ["speed-ups"]


def test_axes_and_the_roofline_of_the_plots(run):
    axes = figures(run)["time-over-size"].axes[0]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines["LoRun"] == [(64, 1.0), (256, 1.0)] and lines["peer"] == [(64, 2.0), (256, 2.0)]
    assert lines["limit of this machine"] == [(64, 0.5), (256, 0.5)]
    *memory, time = figures(run)["memory-over-stages"].axes
    assert [list(panel.lines[1].get_ydata()) for panel in memory] == [[1, 4]] * 3
    assert list(time.lines[1].get_ydata()) == [2, 2]


def test_readme_s_section_is_replaced_and_nothing_else():
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    assert (
        report.with_section(readme, ["new", r"\1"])
        == f"before\n{report.BEGIN}\nnew\n\\1\n{report.END}\nafter"
    )
    with pytest.raises(ValueError, match=r"README\.md: expected the marks"):
        report.with_section("no marks", [])


def results_file(path, **content):
    whole = {"machine_info": MACHINE, "commit_info": {"id": "abc1234"}, "datetime": "2026-11-28"}
    path.write_text(json.dumps(whole | {"benchmarks": [{"extra_info": case()}], **content}))
    return path


def test_what_was_out_of_time_is_named(tmp_path, monkeypatch):
    skipped, interrupted, done = (
        SimpleNamespace(name=name, nodeid=name, fixturenames=["benchmark"]) for name in "abc"
    )
    monkeypatch.setattr(conftest, "_SECONDS", 0.0)
    monkeypatch.setattr(conftest, "_out_of_time", [])
    monkeypatch.setattr(conftest, "_unfinished", {})
    conftest.pytest_collection_finish(SimpleNamespace(items=[skipped, interrupted, done]))
    with pytest.raises(pytest.skip.Exception, match="out of time"):
        conftest.pytest_runtest_setup(skipped)
    for one in (skipped, done):
        conftest.pytest_runtest_logfinish(one.nodeid)
    written = {}
    conftest.pytest_benchmark_update_json(None, [], written)

    whole, short = results_file(tmp_path / "whole.json", **written), tmp_path / "short.json"
    write_short(json.loads(whole.read_text()), short)
    for run in (load(whole), load(short)):
        assert run.out_of_time == ["a", "b"]
        assert "Not run, out of time: a, b." in report.terminal_lines(run)
        assert "Not run, out of time: a, b." in report.page({"a": run}, {"a": ()}, "c").splitlines()
    complete = load(results_file(tmp_path / "complete.json"))
    assert complete.out_of_time == []
    assert "out of time" not in report.page({"a": complete}, {"a": ()}, "c")


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_nothing_is_written_without_results_or_over_another_file_s_plots(tmp_path, monkeypatch, capsys):
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
    readme = report.README.read_text()
    assert report.with_section(readme, report.readme_section(runs)) == readme
    drawn = {name: figures(run) for name, run in runs.items()}
    docs = report.ROOT / "docs"
    assert (docs / "benchmarks.md").read_text() == report.page(runs, drawn, "python -m benchmarks.report")
    for name, plots in drawn.items():
        assert all((docs / "benchmarks" / f"{name}-{plot}.png").exists() for plot in plots)
