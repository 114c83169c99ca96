"""docs/benchmarks.md, and what `pytest benchmarks/` prints at its end."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.report import tables, winners
from benchmarks.report.run import Run

METHOD = """\
`make bench` measures the quick cases in under 8 minutes on two cores; `make bench FULL=--full` has more \
cases and more rounds and takes about half an hour. `benchmarks/run_gpu.sh OUT_DIR` is the one command for \
a GPU.

Peers come from PyPI (`pip install '.[bench]'`: loralib, peft, deepinv) or are written after the field's \
published code (`benchmarks/peers/`). Before a candidate is timed, its result is checked against LoRun's, \
unless it computes something else; the table then gives the reason in brackets: Shared-9 has other weights, \
a copy is only a floor. "plain frozen" is checked against LoRun's layer with an adapter that adds zero. \
Networks in the field's style start from LoRun's x0. loralib and peft are timed with their factors apart, \
as in training; "merged weight" is what loralib computes after `eval()` and peft after `merge()`.

Candidates take turns in random order, so that noise hits them alike. A short call is timed the second time \
in a row, with threads awake and data in the cache, and rounds that something else on the machine disturbed \
are repeated, within limits (`benchmarks/harness/watch.py`). On a GPU, events measure the time and inputs \
rotate past the cache. `python -m benchmarks.compare OLD NEW` shows what got slower between two results \
files, beyond noise."""


def terminal_lines(run: Run) -> list[str]:
    """What `pytest benchmarks/` ends with."""
    lines = [tables.LEGEND, tables.noise_line(run), ""]
    lines += tables.columns(*tables.summary(run), words=3)
    lines += tables.columns(*tables.memory(run), words=3)
    if run.limits:
        lines += [tables.limits_line(run.limits), "", *tables.columns(*tables.roofline(run), words=3)]
    lines += winners.lines(run)
    absent = tables.missing(run)
    lines += ["Missing candidates:" if absent else "No candidate is missing.", *absent]
    return lines + tables.out_of_time(run)


def page(runs: dict[str, Run], plots: dict[str, Iterable[str]], command: str) -> str:
    """The text of benchmarks.md, with the names of the plots beside it."""
    lines = ["# Benchmarks", "", tables.LEGEND, "", METHOD, ""]
    if not any(run.gpu for run in runs.values()):
        lines += ["None of the results below are from a GPU.", ""]
    for name, run in runs.items():
        lines += [f"## {run.name}", "", tables.machine_line(run), "", tables.noise_line(run), ""]
        lines += [f"![{plot}](benchmarks/{name}-{plot}.png)" for plot in plots[name]] + [""]
        lines += _summaries(run)
        absent = tables.missing(run)
        lines += ["### Missing", "", *(absent or ["No candidate is missing."]), ""]
        lines += [f"{line}\n" for line in tables.out_of_time(run)]
        lines += ["### Every case", ""]
        for group, cases in run.groups.items():
            for case in cases:
                launching = ", launching timed too" if case["launching_timed"] else ""
                lines += [f"**{group}: {case['title']}{launching}**", ""]
                lines += tables.markdown(*tables.case_table(case))
    return "\n".join([*lines, f"Written by `{command}`."]) + "\n"


def _summaries(run: Run) -> list[str]:
    lines = ["### Every group", "", *tables.markdown(*tables.summary(run), words=3)]
    if tables.memory(run)[1]:
        lines += ["### Memory of a training step", "", *tables.markdown(*tables.memory(run), words=3)]
    if run.limits:
        lines += ["### Against the limits of the machine", "", tables.limits_line(run.limits), ""]
        lines += tables.markdown(*tables.roofline(run), words=3)
    backends = winners.lines(run)
    if backends:
        lines += ["### Backends of the low-rank layers", "", *backends, ""]
    return lines
