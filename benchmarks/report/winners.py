"""How the backends compare on the networks' layers on a GPU, and the rows for `LORA_DEFAULTS` that follow.

`LORA_DEFAULTS` is in lorun_kernels/backends.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import geometric_mean

from benchmarks.cases.layers import layer_table, named_layer
from benchmarks.cases.lora_layer import BARE, FORWARD, LORALIB, PLAIN, TRAINING
from benchmarks.harness.case import OURS
from benchmarks.report.run import Run

BACKENDS = ("cuda", "triton", "aten")
Row = tuple[int, int, int, float, str]
"""Kernel size, input and output channels, the most input pixels, and the backend."""


def lines(run: Run) -> list[str]:
    """Both results, for the terminal and for Markdown alike; none for a run without the layers."""
    if not run.groups.keys() & {FORWARD, TRAINING, BARE}:
        return []
    rows = [f'    ({", ".join(map(_python, row[:4]))}, "{row[4]}"),' for row in default_rows(run)]
    return [
        "Low-rank layers, a peer's time over that of the default and of each backend (geometric means):",
        "",
        *[f"- {line}" for line in mean_lines(run)],
        "",
        "The fastest backend of each forward pass, as rows of `LORA_DEFAULTS`:",
        "",
        *rows,
    ]


def _python(value: float) -> str:
    return 'float("inf")' if value == math.inf else str(value)


def mean_lines(run: Run) -> list[str]:
    """Geometric means over the layers: one line for each group, batch and peer."""
    members = defaultdict(list)
    for group in (FORWARD, TRAINING, BARE):
        for case in run.groups.get(group, ()):
            members[group, case["arguments"]["batch"]].append(case)
    found = []
    for (group, batch), cases in members.items():
        for peer in (PLAIN, LORALIB):
            ratios = {name: _ratios(cases, name, peer) for name in (OURS, *(_on(one) for one in BACKENDS))}
            cells = [f"{name}: {geometric_mean(values):.3f}" for name, values in ratios.items() if values]
            if cells:
                found.append(f"{group}, batch {batch}, {peer} over {'; '.join(cells)}")
    return found


def _on(backend: str) -> str:
    return f"{OURS}, {backend}"


def _ratios(cases: list[dict], ours: str, peer: str) -> list[float]:
    """peer / ours in every case that has both."""
    both = [case["candidates"] for case in cases if {ours, peer} <= case["candidates"].keys()]
    return [one[peer]["median_s"] / one[ours]["median_s"] for one in both]


def default_rows(run: Run) -> list[Row]:
    """The fastest backend of each shape's forward passes in the networks.

    Layers that differ only in activation and residual share a row; each counts as often as it occurs.
    """
    counts = {layer.name: count for layer, count in layer_table().items()}
    totals: dict[tuple, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    shapes = defaultdict(list)
    for case in run.groups.get(FORWARD, ()):
        layer, batch = named_layer(case["arguments"]["layer"]), case["arguments"]["batch"]
        shape = layer.kernel[0], layer.in_channels, layer.out_channels
        shapes[shape, batch * layer.height * layer.width].append(case)
    for (shape, pixels), cases in shapes.items():
        for backend in BACKENDS:
            found = [case["candidates"].get(_on(backend)) for case in cases]
            if None not in found:
                weights = [counts[case["arguments"]["layer"]] for case in cases]
                times = (one["median_s"] for one in found)
                totals[shape][pixels][backend] = sum(map(math.prod, zip(times, weights, strict=True)))
    rows = []
    for shape, by_pixels in totals.items():
        best = [(pixels, min(times, key=times.get)) for pixels, times in sorted(by_pixels.items())]
        rows += _thresholds(shape, best)
    return rows


def _thresholds(shape: tuple[int, int, int], best: list[tuple[int, str]]) -> list[Row]:
    """Consecutive sizes with the same winner are one row; the last one also holds for anything larger."""
    rows = []
    for i, (pixels, name) in enumerate(best):
        last = i + 1 == len(best)
        if last or best[i + 1][1] != name:
            rows.append((*shape, math.inf if last else pixels, name))
    return rows
