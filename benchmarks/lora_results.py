"""What a run of benchmarks/test_lora_conv_gpu.py measured: reading it, summing it up, naming the winners.

    python -m benchmarks.lora_results RESULTS.json

prints every layer's medians, the geometric means and the rows for `LORA_DEFAULTS` in
lorun_kernels/backends.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

BACKENDS = ("cuda", "triton", "aten")
CANDIDATES = {
    "default": "LoRun's default",
    "cuda": "LoRun, CUDA",
    "triton": "LoRun, Triton",
    "aten": "cuDNN on the merged weight",
    "plain": "cuDNN, no adapter",
    "loralib": "loralib's form",
}


def load(path: Path) -> list[dict]:
    """The records of a file that pytest-benchmark wrote."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    return [entry["extra_info"] for entry in benchmarks if "kind" in entry["extra_info"]]


def of_kind(records: Iterable[dict], kind: str, **fields) -> list[dict]:
    """The records of one kind whose fields have these values."""
    return [
        record
        for record in records
        if record["kind"] == kind and all(record[name] == value for name, value in fields.items())
    ]


def median(record: dict, candidate: str) -> float | None:
    """Milliseconds, or None where the candidate is missing."""
    times = record["milliseconds"].get(candidate)
    return None if times is None else statistics.median(times)


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    if not logs:
        raise ValueError("geometric_mean: expected at least one value, got none")
    return math.exp(statistics.fmean(logs))


def ratios(records: list[dict], candidate: str, peer: str) -> list[float]:
    """candidate / peer in every record that has both."""
    pairs = [(median(record, candidate), median(record, peer)) for record in records]
    return [ours / theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def mean_lines(records: list[dict]) -> list[str]:
    """Geometric means over the layers, one line for each kind, scope, batch, candidate and peer."""
    groups = defaultdict(list)
    for record in records:
        if record["kind"] in ("forward", "forward+backward"):
            groups[record["kind"], record["scope"], record["batch"]].append(record)
    lines = []
    for (kind, scope, batch), members in groups.items():
        for peer in ("plain", "loralib"):
            found = {name: ratios(members, name, peer) for name in ("default", *BACKENDS)}
            cells = [f"{name} {geometric_mean(r):.3f}" for name, r in found.items() if r]
            if cells:
                lines.append(f"{kind}, {scope}, batch {batch}, to {peer}: {', '.join(cells)}")
    return lines


def layer_lines(records: list[dict]) -> list[str]:
    """Medians in microseconds of every candidate, and below them why some are missing."""
    lines, reasons = [], []
    for record in records:
        if "milliseconds" not in record:
            continue
        cells = [f"{name} {median(record, name) * 1e3:.1f}" for name in record["milliseconds"]]
        for name, reason in record["missing"].items():
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"{name} missing [{reasons.index(reason) + 1}]")
        lines.append(f"{record['title']}: {', '.join(cells)}")
    return lines + [f"[{number}] {reason}" for number, reason in enumerate(reasons, 1)]


def default_rows(records: list[dict]) -> list[tuple[int, int, int, float, str]]:
    """Rows for `LORA_DEFAULTS`: the fastest backend of each shape's forward passes in the network.

    Layers that differ in activation and residual only share a row; each counts as often as it occurs.
    """
    totals: dict[tuple, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    shapes = defaultdict(list)
    for record in of_kind(records, "forward", scope="network"):
        shapes[tuple(record["shape"]), record["pixels"]].append(record)
    for (shape, pixels), members in shapes.items():
        for name in BACKENDS:
            times = [median(record, name) for record in members]
            if None not in times:
                weighted = (time * record["count"] for time, record in zip(times, members, strict=True))
                totals[shape][pixels][name] = sum(weighted)
    rows = []
    for shape, by_pixels in totals.items():
        best = [(pixels, min(times, key=times.get)) for pixels, times in sorted(by_pixels.items())]
        rows += _thresholds(shape, best)
    return rows


def _thresholds(shape: tuple, best: list[tuple[int, str]]) -> list[tuple]:
    """Sizes in a row with one winner are one row; the last holds for whatever is larger too."""
    rows = []
    for i, (pixels, name) in enumerate(best):
        last = i + 1 == len(best)
        if last or best[i + 1][1] != name:
            rows.append((*shape, math.inf if last else pixels, name))
    return rows


def default_lines(records: list[dict]) -> list[str]:
    """`default_rows` as they stand in lorun_kernels/backends.py."""
    lines = []
    for *shape, most, name in default_rows(records):
        limit = 'float("inf")' if most == math.inf else str(most)
        lines.append(f'    ({", ".join(map(str, shape))}, {limit}, "{name}"),')
    return lines


def summary_lines(records: list[dict]) -> list[str]:
    lines = ["medians in microseconds:", *layer_lines(records), "", "geometric means over the layers:"]
    lines += [*mean_lines(records), "", "the fastest backend of each forward pass, for LORA_DEFAULTS:"]
    return [*lines, *default_lines(records)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="lora.json of benchmarks/run_gpu.sh")
    print("\n".join(summary_lines(load(parser.parse_args().results))))


if __name__ == "__main__":
    main()
