"""Results files as Markdown and plots.

    python -m benchmarks.report                             benchmarks/results/ into docs/ and README.md
    python -m benchmarks.report RESULTS ... --out FOLDER    other results files, into another folder

writes FOLDER/benchmarks.md and the plots in FOLDER/benchmarks/. README.md's section on speed is the summary
of the committed results; tests/benchmarks/ checks that it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import report_tables as tables
from benchmarks.report_plots import figures
from benchmarks.results import COMMITTED, Run, load

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- written by python -m benchmarks.report -->", "<!-- end of what it has written -->"


def terminal_lines(run: Run) -> list[str]:
    """What `pytest benchmarks/` ends with."""
    lines = [tables.LEGEND, tables.noise_line(run), ""]
    lines += tables.columns(*tables.summary(run), words=3)
    lines += tables.columns(*tables.memory(run), words=3)
    if run.limits:
        lines += [tables.limits_line(run.limits), "", *tables.columns(*tables.roofline(run), words=3)]
    absent = tables.missing(run)
    lines += ["Missing candidates:" if absent else "No candidate is missing.", *absent]
    return lines + tables.out_of_time(run)


def page(runs: dict[str, Run], plots: dict[str, Iterable[str]], command: str) -> str:
    """benchmarks.md, with the names of the plots that stand beside it."""
    lines = ["# Benchmarks", "", tables.LEGEND, ""]
    for name, run in runs.items():
        lines += [f"## {run.name}", "", tables.machine_line(run), "", tables.noise_line(run), ""]
        lines += [f"![{plot}](benchmarks/{name}-{plot}.png)" for plot in plots[name]] + [""]
        lines += ["### Every group", "", *tables.markdown(*tables.summary(run), words=3)]
        if tables.memory(run)[1]:
            lines += ["### Memory of a training step", "", *tables.markdown(*tables.memory(run), words=3)]
        if run.limits:
            lines += ["### Against the limits of the machine", "", tables.limits_line(run.limits), ""]
            lines += tables.markdown(*tables.roofline(run), words=3)
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


def readme_section(runs: dict[str, Run], folder: str = "docs") -> list[str]:
    """Between the marks of README.md."""
    lines = [tables.LEGEND, ""]
    for run in runs.values():
        # Scaling is in the plots.
        plain = [group for group, cases in run.groups.items() if not cases[0]["axis"]]
        lines += [tables.machine_line(run), tables.noise_line(run), ""]
        lines += tables.markdown(*tables.summary(run, plain), words=3)
        lines += tables.markdown(*tables.memory(run, plain), words=3)
    lines += [
        f"Every case, memory, missing candidates and the roofline: [`{folder}/benchmarks.md`]"
        f"({folder}/benchmarks.md). Each figure of this section is written by `python -m benchmarks.report` "
        "from the results in `benchmarks/results/`."
    ]
    return lines


def with_section(readme: str, section: list[str]) -> str:
    """README.md with the lines between its marks replaced.

    Raises:
        ValueError: where it has no marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md: expected the marks {BEGIN!r} and {END!r}, found none")
    return pattern.sub(lambda _: "\n".join([BEGIN, *section, END]), readme)


def committed() -> list[Path]:
    return sorted(COMMITTED.glob("*.json"))


def by_name(paths: list[Path]) -> dict[str, Path]:
    """Results files by what their plots are named after.

    Raises:
        ValueError: where there is no file, or where two have one name.
    """
    if not paths:
        raise ValueError(f"expected results files in {COMMITTED}, found none: see CONTRIBUTING.md")
    named = {path.stem: path for path in paths}
    if len(named) < len(paths):
        raise ValueError(
            f"expected results files of different names, got {', '.join(map(str, paths))}: rename one"
        )
    return named


def write(runs: dict[str, Run], out: Path, command: str) -> None:
    """The page and the plots."""
    drawn = {name: figures(run) for name, run in runs.items()}
    (out / "benchmarks").mkdir(parents=True, exist_ok=True)
    for name, plots in drawn.items():
        for plot, figure in plots.items():
            figure.savefig(out / "benchmarks" / f"{name}-{plot}.png", dpi=100, metadata={"Software": None})
    (out / "benchmarks.md").write_text(page(runs, drawn, command))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", type=Path, nargs="*", help="results files; without one, the committed ones"
    )
    parser.add_argument("--out", type=Path, help="a folder; needed with results files of your own")
    args = parser.parse_args()
    if args.results and not args.out:
        parser.error(
            "--out: expected a folder for the report of your own results; docs/ has the committed ones"
        )
    command = "python -m benchmarks.report"
    try:
        files = by_name(args.results or committed())
        runs = {name: load(path) for name, path in files.items()}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.results:
        command += f" {' '.join(map(str, args.results))} --out {args.out}"
        write(runs, args.out, command)
    else:
        write(runs, ROOT / "docs", command)
        README.write_text(with_section(README.read_text(), readme_section(runs)))
    print(f"wrote {(args.out or ROOT / 'docs') / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
