"""Pictures of results."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage.util import view_as_windows

from lorun.files import write_in_one_step

DETAIL = 96
ERROR_PEAK = 0.1


def save_comparison(
    path: str | Path, start: np.ndarray, restored: np.ndarray, truth: np.ndarray, titles: tuple[str, str, str]
) -> None:
    """Write a PNG: start, restored, truth and error map, whole and as a detail.

    Args:
        start, restored, truth: (H, W) in [0, 1].
        titles: what to write above the first three; the error map is |restored - truth|, white at 0.1.
    """
    error = np.abs(restored - truth)
    top, left, side = _detail(np.abs(start - truth) - error, truth)
    figure = Figure(figsize=(14, 7.4 * truth.shape[0] / truth.shape[1]), layout="constrained")
    axes = figure.subplots(2, 4, height_ratios=(truth.shape[0] / truth.shape[1], 1))
    panels = [*zip((start, restored, truth), titles, strict=True), (error, f"error, 0 to {ERROR_PEAK}")]
    for column, (image, title) in enumerate(panels):
        look = {"cmap": "magma", "vmax": ERROR_PEAK} if column == 3 else {"cmap": "gray", "vmax": 1}
        axes[0, column].imshow(image, vmin=0, **look)
        axes[0, column].set_title(title, fontsize=11)
        axes[0, column].add_patch(Rectangle((left, top), side, side, fill=False, color="C1"))
        axes[1, column].imshow(image[top : top + side, left : left + side], vmin=0, **look)
    for axis in axes.flat:
        axis.set_axis_off()
    write_in_one_step(path, lambda part: figure.savefig(part, format="png", dpi=80))


def save_curves(logs: dict[str, Path], path: str | Path) -> None:
    """Write a PNG of training curves, one phase after another: loss, smoothed, and held-out PSNR.

    Args:
        logs: label and .jsonl log of every phase, in the order they ran.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, psnr_axis = figure.subplots(1, 2)
    first = 0
    for label, log in logs.items():
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        steps = np.array([first + entry["step"] for entry in entries])
        loss = np.array([entry["loss"] for entry in entries])
        window = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        loss_axis.plot(steps[window - 1 :], smooth, label=label)
        watched = [(first + entry["step"], entry["psnr"]) for entry in entries if "psnr" in entry]
        psnr_axis.plot(*zip(*watched, strict=True), marker=".", label=label)
        first = int(steps[-1])
    for axis, title in ((loss_axis, "training loss"), (psnr_axis, "PSNR of held-out crops (dB)")):
        axis.set(xlabel="step", title=title)
        axis.legend()
    if all(line.get_ydata().min() > 0 for line in loss_axis.lines):  # minus a PSNR is not
        loss_axis.set_yscale("log")
    write_in_one_step(path, lambda part: figure.savefig(part, format="png", dpi=80))


def _detail(gain: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Upper-left corner and side of a window with structure to see in which the error fell much."""
    side = min(DETAIL, *gain.shape)
    step = max(1, side // 4)
    gained = view_as_windows(gain, side, step).mean((2, 3))
    structure = view_as_windows(truth, side, step).std((2, 3))
    row, column = np.unravel_index((gained * structure).argmax(), gained.shape)
    return int(row) * step, int(column) * step, side
