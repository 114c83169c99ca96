"""The table and the picture of the study of compression, from what the other modules here have measured.

    python -m benchmarks.studies.compression_report runs/compression --out docs/adapters

Writes compression.json (the measurements), compression.png, and prints the tables of docs/adapters.md.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

TITLES = {
    "common": "(a) stages grown from one common start",
    "independent": "(b) stages initialised independently",
    "published": "published ISTA-Net+, 25 %",
}
WHOLE = {"common": "Block-9", "independent": "Block-9", "published": "published"}

Rows = Mapping[str, Mapping[str, float]]


def read(folder: Path) -> dict[str, Any]:
    """The measurements of all three networks."""
    results = json.loads((folder / "results.json").read_text())
    published = folder / "published.json"
    if published.exists():
        results["published"] = json.loads(published.read_text())
    return results


def rows_of(results: Mapping[str, Any], name: str) -> Rows:
    """The rows of one network; what is not a row is left out."""
    return {label: row for label, row in results[name].items() if isinstance(row, dict)}


def table(rows: Rows, whole: str) -> str:
    """One network's rows, as Markdown."""
    full = rows[whole]
    lines = [
        "| network | denoiser parameters | of the whole | PSNR before (dB) | after tuning (dB) |",
        "|---|---:|---:|---:|---:|",
    ]
    for label, row in rows.items():
        share = row["parameters"] / full["parameters"]
        after = f"{row['psnr_after_tuning']:.2f}" if "psnr_after_tuning" in row else ""
        lines.append(f"| {label} | {row['parameters']:,.0f} | {share:.1%} | {row['psnr']:.2f} | {after} |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """PSNR over parameters, before and after tuning, one axis for each network."""
    names = [name for name in TITLES if name in results]
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.8), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = rows_of(results, name)
        full = rows[WHOLE[name]]
        axis.axhline(full["psnr"], color="0.5", linestyle="--", label="before compression")
        shown = {label: row for label, row in rows.items() if label != WHOLE[name]}
        for key, label in (("psnr", "compressed"), ("psnr_after_tuning", "and tuned")):
            _draw_methods(axis, shown, key, label, full["parameters"])
        axis.set(xlabel="parameters, % of separate stages", title=TITLES[name])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("Set11, PSNR (dB)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_methods(axis: Any, rows: Rows, key: str, label: str, whole: float) -> None:
    allocated = sorted(
        (row["parameters"] / whole, row[key]) for name, row in rows.items() if name.endswith("allocated")
    )
    others = [
        (row["parameters"] / whole, row[key]) for name, row in rows.items() if not name.endswith("allocated")
    ]
    line = axis.plot(
        [100 * x for x, _ in allocated], [y for _, y in allocated], "o-", label=f"{label}, allocated"
    )
    axis.plot(
        [100 * x for x, _ in others],
        [y for _, y in others],
        "x",
        color=line[0].get_color(),
        label=f"{label}, others",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/adapters"))
    arguments = parser.parse_args()
    results = read(arguments.folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "compression.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, arguments.out / "compression.png")
    for name in TITLES:
        if name in results:
            print(f"{TITLES[name]}\n\n{table(rows_of(results, name), WHOLE[name])}\n")


if __name__ == "__main__":
    main()
