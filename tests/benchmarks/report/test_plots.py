"""The plots of a run."""

from benchmarks.report.plots import figures
from benchmarks.report.readme import HEADLINES
from benchmarks.report.run import Run


def test_a_plot_is_drawn_if_the_run_has_data_for_it(run, machine):
    assert list(figures(run)) == ["speed-ups", "time-over-size", "memory-over-stages"]
    only = Run(machine, "abc1234", "2026-11-28", run.records[:2])
    assert list(figures(only)) == ["speed-ups"]


def test_headlines_are_a_plot_of_their_own(machine, make_case):
    group, _ = HEADLINES[-1]
    record = make_case(group=group)
    record["candidates"]["plain frozen"] = record["candidates"].pop("peer")
    record["ratios"][1]["peer"] = "plain frozen"
    axes = figures(Run(machine, "abc1234", "2026-11-28", [record]))["headlines"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{group}: plain frozen"]


def test_axes_and_the_roofline_of_the_plots(run):
    axes = figures(run)["time-over-size"].axes[0]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines["LoRun"] == [(64, 1.0), (256, 1.0)] and lines["peer"] == [(64, 2.0), (256, 2.0)]
    assert lines["limit of this machine"] == [(64, 0.5), (256, 0.5)]
    *memory, time = figures(run)["memory-over-stages"].axes
    assert [list(panel.lines[1].get_ydata()) for panel in memory] == [[1, 4]] * 3
    assert list(time.lines[1].get_ydata()) == [2, 2]
