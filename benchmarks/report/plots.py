"""Plots of a run: speed-ups with intervals, time over size with the machine's limits, memory over stages."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.case import Work
from benchmarks.harness.ratios import Ratio, geometric_mean
from benchmarks.report.readme import headlines
from benchmarks.report.run import Run, by_peer

MEBI = 2**20


def figures(run: Run) -> dict[str, Figure]:
    """Every plot that this run has data for, by name."""
    plots = {
        "headlines": draw_headlines,
        "speed-ups": draw_speed_ups,
        "time-over-size": draw_scaling,
        "memory-over-stages": draw_memory,
    }
    drawn = {name: draw(run) for name, draw in plots.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _axes_of(group: list[dict]) -> str | None:
    return group[0]["axis"][0] if group[0]["axis"] else None


def draw_headlines(run: Run) -> Figure | None:
    """The rows of README.md."""
    rows = [(group, peer, mean) for group, _, peer, mean in headlines(run)]
    figure = _speed_ups(run, rows, size=9)
    if figure is not None:
        axes = figure.axes[0]
        axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axes.minorticks_off()
    return figure


def draw_speed_ups(run: Run) -> Figure | None:
    """Every peer of every group that is not drawn over an axis: the geometric mean over its cases."""
    rows = [
        (group, peer, geometric_mean(ratios))
        for group, _, peer, ratios in by_peer(run)
        if _axes_of(run.groups[group]) is None
    ]
    return _speed_ups(run, rows, size=7)


def _speed_ups(run: Run, rows: list[tuple[str, str, Ratio]], size: int) -> Figure | None:
    """(group, peer, speed-up) in rows, with 95 % intervals."""
    if not rows:
        return None
    figure = Figure(figsize=(9, 1 + 0.2 * size / 7 * len(rows)), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(group for group, *_ in rows))
    for place, (group, _, mean) in enumerate(rows):
        bars = [[mean.median - mean.low], [mean.high - mean.median]]
        colour = f"C{groups.index(group) % 10}"
        axes.errorbar(mean.median, place, xerr=bars, fmt="o", color=colour, markersize=4, capsize=2)
    axes.set_yticks(range(len(rows)), [f"{group}: {peer}" for group, peer, _ in rows], fontsize=size)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("LoRun is faster by (left of the line: slower)")
    axes.set_title(f"{run.name}, commit {run.commit}", fontsize=9)
    axes.margins(y=0.5 / len(rows))
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.25)
    return figure


def _scaling(run: Run, memory: bool) -> dict[str, list[dict]]:
    """Groups that are drawn over an axis, with cases in its order; those over stages show memory."""
    return {
        group: sorted(cases, key=lambda case: case["axis"][1])
        for group, cases in run.groups.items()
        if _axes_of(cases) is not None and (_axes_of(cases) == "stages") == memory and len(cases) > 1
    }


def draw_scaling(run: Run) -> Figure | None:
    """Milliseconds over size or batch on logarithmic axes, with the least that the machine's limits allow."""
    groups = _scaling(run, memory=False)
    if not groups:
        return None
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(10, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for axes, (group, cases) in zip(panels, groups.items(), strict=False):
        _lines(axes, cases, lambda one: one["median_s"] * 1e3)
        limited = [case for case in cases if case["work"]]
        if run.limits and limited:
            least = [run.limits.seconds(Work(**case["work"])) * 1e3 for case in limited]
            places = [case["axis"][1] for case in limited]
            axes.plot(places, least, color="black", linestyle="--", label="limit of this machine")
        _label(axes, group, cases, "milliseconds")
    for axes in list(panels)[len(groups) :]:
        axes.set_axis_off()
    figure.suptitle(f"{run.name}, commit {run.commit}", fontsize=9)
    return figure


def draw_memory(run: Run) -> Figure | None:
    """A training step over stages: weights, what is kept for backward, the peak, and the time."""
    panels = [
        (group, cases, key, scale, title)
        for group, cases in _scaling(run, memory=True).items()
        for key, scale, title in (
            ("parameter_bytes", MEBI, "weights, MiB"),
            ("kept_bytes", MEBI, "kept for backward, MiB"),
            ("peak_bytes", MEBI, "peak, MiB"),
            ("median_s", 1e-3, "milliseconds"),
        )
        if all(one[key] is not None for case in cases for one in case["candidates"].values())
    ]
    if not panels:
        return None
    figure = Figure(figsize=(4 * len(panels), 3.8), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (group, cases, key, scale, title) in zip(row, panels, strict=True):
        _lines(axes, cases, lambda one, key=key, scale=scale: one[key] / scale)
        _label(axes, group, cases, title)
    figure.suptitle(f"{run.name}, commit {run.commit}", fontsize=9)
    return figure


def _lines(axes: Axes, cases: list[dict], value) -> None:
    names = dict.fromkeys(name for case in cases for name in case["candidates"])
    for name in names:
        having = [case for case in cases if name in case["candidates"]]
        places = [case["axis"][1] for case in having]
        ours = having[0]["candidates"][name]["ours"]
        values = [value(case["candidates"][name]) for case in having]
        axes.plot(places, values, marker="o", markersize=4, linewidth=2 if ours else 1, label=name)


def _label(axes: Axes, group: str, cases: list[dict], y: str) -> None:
    places = [case["axis"][1] for case in cases]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_title(group, fontsize=9)
    axes.set_xlabel(cases[0]["axis"][0])
    axes.set_ylabel(y)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=7)
