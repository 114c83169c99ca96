"""Results files as Markdown and plots.

    python -m benchmarks.report                             benchmarks/results/ into docs/ and README.md
    python -m benchmarks.report RESULTS ... --out FOLDER    other results files, into another folder

writes FOLDER/benchmarks.md, its plots in FOLDER/benchmarks/, and FOLDER/lora_conv_roofline.md: the last into
docs/ always, elsewhere if a run was on a GPU. README.md's section on speed is written from the committed
results only; tests/benchmarks/ checks that it is up to date.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cases.layers import layer_table
from benchmarks.report import readme, roofline, roofline_plot
from benchmarks.report.page import page
from benchmarks.report.plots import figures
from benchmarks.report.run import Run, load

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
COMMITTED = ROOT / "benchmarks" / "results"
COMMAND = "python -m benchmarks.report"


def committed() -> list[Path]:
    return sorted(COMMITTED.glob("*.json"))


def by_name(paths: list[Path]) -> dict[str, Path]:
    """Results files by the name that their plots begin with.

    Raises:
        ValueError: if there is no file, or if two have the same name.
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
    """The pages and the plots."""
    drawn = {name: figures(run) for name, run in runs.items()}
    (out / "benchmarks").mkdir(parents=True, exist_ok=True)
    for name, plots in drawn.items():
        for plot, figure in plots.items():
            _save(figure, out / "benchmarks" / f"{name}-{plot}.png")
    (out / "benchmarks.md").write_text(page(runs, drawn, command))
    on_gpu = [run for run in runs.values() if run.gpu]
    if on_gpu or out == DOCS:
        write_roofline(on_gpu[0] if on_gpu else None, out, command)


def write_roofline(run: Run | None, out: Path, command: str) -> None:
    """The page of the low-rank layers and its plot; without a run they say that nothing was measured."""
    written = roofline.Page(layer_table(), run, command)
    (out / f"{roofline.NAME}.md").write_text("\n".join(written.lines()) + "\n")
    _save(roofline_plot.draw(written), out / f"{roofline.NAME}.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="*", help="results files; by default the committed ones")
    parser.add_argument("--out", type=Path, help="a folder; required with results files of your own")
    args = parser.parse_args()
    if args.results and not args.out:
        parser.error(
            "--out: expected a folder for the report of your own results; docs/ is for the committed ones"
        )
    try:
        files = by_name(args.results or committed())
        runs = {name: load(path) for name, path in files.items()}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.results:
        write(runs, args.out, f"{COMMAND} {' '.join(map(str, args.results))} --out {args.out}")
    else:
        write(runs, DOCS, COMMAND)
        README.write_text(readme.with_section(README.read_text(), readme.section(runs)))
    print(f"wrote {(args.out or DOCS) / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
