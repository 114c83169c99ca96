"""Pictures of restored photographs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lorun.files import write_in_one_step
from lorun.tasks.detail import find_detail

DETAIL = 96
ERROR_PEAK = 0.1
PANEL = 3.5  # inches


def save_comparison(
    path: str | Path,
    start: np.ndarray,
    restored: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    titles: tuple[str, str] = ("start", "truth"),
) -> None:
    """Write a PNG: start, restored images, truth and error map if there is one; whole, and a detail.

    Args:
        start: (H, W) in [0, 1]; where the first method started from.
        restored: (H, W) in [0, 1], by what to write above them. The error map is |first - truth|, white at
            0.1.
        truth: (H, W) in [0, 1].
        titles: what to write above the start and the truth.
    """
    best = next(iter(restored.values()))
    panels = {titles[0]: start, **restored}
    gain = np.abs(start - best)
    if truth is not None:
        error = np.abs(best - truth)
        panels |= {titles[1]: truth, f"error, 0 to {ERROR_PEAK}": error}
        gain = np.abs(start - truth) - error
    top, left, side = find_detail(gain, best if truth is None else truth, DETAIL)
    ratio = best.shape[0] / best.shape[1]
    figure = Figure(figsize=(PANEL * len(panels), 7.4 * ratio), layout="constrained")
    axes = figure.subplots(2, len(panels), height_ratios=(ratio, 1))
    for column, (title, image) in enumerate(panels.items()):
        is_error = truth is not None and column == len(panels) - 1
        cmap, peak = ("magma", ERROR_PEAK) if is_error else ("gray", 1)
        axes[0, column].imshow(image, vmin=0, vmax=peak, cmap=cmap)
        axes[0, column].set_title(title, fontsize=11)
        axes[0, column].add_patch(Rectangle((left, top), side, side, fill=False, color="C1"))
        axes[1, column].imshow(image[top : top + side, left : left + side], vmin=0, vmax=peak, cmap=cmap)
    for axis in axes.flat:
        axis.set_axis_off()
    write_in_one_step(path, lambda part: figure.savefig(part, format="png", dpi=80))
