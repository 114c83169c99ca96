"""The picture of a training run."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lorun.files import write_in_one_step


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
