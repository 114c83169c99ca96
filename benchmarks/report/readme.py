"""README.md's section on speed: a handful of speed-ups from the committed results."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.cases.tasks import FIELD
from benchmarks.harness.ratios import Ratio, geometric_mean
from benchmarks.report import tables
from benchmarks.report.run import Run, by_peer

BEGIN, END = "<!-- written by python -m benchmarks.report -->", "<!-- end of what it has written -->"

# Chosen by what a user would run instead, not by the result: whole networks in the field's style, the data
# step that CASSI code uses, and each library and the plain layer in a training step of a LoRA convolution.
HEADLINES = (
    ("network, compressive sensing", FIELD),
    ("network, CASSI", FIELD),
    ("training step, compressive sensing", FIELD),
    ("training step, CASSI", FIELD),
    ("CASSI HQS step", "rolls"),
    ("LoRA convolution, forward + backward", "loralib"),
    ("LoRA convolution, forward + backward", "peft"),
    ("LoRA convolution, forward + backward", "plain frozen"),
)


def headlines(run: Run) -> list[tuple[str, str, str, Ratio]]:
    """(group, ours, peer, geometric mean over the cases) of the rows that this run has."""
    found = {(group, peer): (ours, ratios) for group, ours, peer, ratios in by_peer(run)}
    return [
        (group, found[group, peer][0], peer, geometric_mean(found[group, peer][1]))
        for group, peer in HEADLINES
        if (group, peer) in found
    ]


def section(runs: Mapping[str, Run], folder: str = "docs") -> list[str]:
    """The lines between the marks: a column of the table for each run."""
    columns = [{row[:3]: tables.interval(row[3]) for row in headlines(run)} for run in runs.values()]
    rows = list(dict.fromkeys(row for column in columns for row in column))
    cells = [[*row, *(column.get(row, "") for column in columns)] for row in rows]
    plots = [
        f"![Speed-ups on {run.name}]({folder}/benchmarks/{name}-headlines.png)" for name, run in runs.items()
    ]
    measured = "; ".join(
        f"{run.name}, torch {run.machine['torch']}, commit `{run.commit}`, {run.date}"
        for run in runs.values()
    )
    return [
        tables.LEGEND,
        "",
        *plots,
        "",
        *tables.markdown(
            ["what", "LoRun's", "instead", *(run.name for run in runs.values())], cells, words=3
        ),
        f"Geometric means over the cases of each row. Measured on {measured}. [Every group, every peer and "
        f"how they are timed]({folder}/benchmarks.md); `python -m benchmarks.report` writes this section.",
    ]


def with_section(readme: str, lines: list[str]) -> str:
    """README.md with the lines between its marks replaced.

    Raises:
        ValueError: if it has no marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md: expected the marks {BEGIN!r} and {END!r}, found none")
    return pattern.sub(lambda _: "\n".join([BEGIN, *lines, END]), readme)
