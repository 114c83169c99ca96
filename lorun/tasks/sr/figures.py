"""Pictures of enlarged photographs and of blur kernels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lorun.files import write_in_one_step
from lorun.tasks.detail import find_detail

DETAIL = 64
PANEL = 3.5  # inches


def save_enlargements(
    path: str | Path,
    small: np.ndarray,
    restored: Mapping[str, np.ndarray],
    kernel: np.ndarray,
    scale: int,
    truth: np.ndarray | None = None,
) -> None:
    """Write a PNG: the input in its pixels with the kernel in a corner, restored images, the truth; and a
    detail.

    Args:
        small: the input, (C, h, w) in [0, 1].
        restored: (C, h * scale, w * scale) in [0, 1], by what to write above them; the last one decides which
            detail is shown.
        kernel: (kh, kw).
        scale: how much larger the restored images are.
        truth: like the restored images.
    """
    panels = {f"input, enlarged x{scale}": small.repeat(scale, 1).repeat(scale, 2), **restored}
    if truth is not None:
        panels |= {"truth": truth}
    images = list(restored.values())
    first, best = images[0], images[-1]
    top, left, side = find_detail(
        np.abs(best - first).mean(0), (best if truth is None else truth).mean(0), DETAIL
    )
    ratio = best.shape[1] / best.shape[2]
    figure = Figure(figsize=(PANEL * len(panels), PANEL * (1 + ratio) + 0.4), layout="constrained")
    axes = figure.subplots(2, len(panels), height_ratios=(ratio, 1))
    for column, (title, image) in enumerate(panels.items()):
        _show(axes[0, column], image)
        axes[0, column].set_title(title, fontsize=11)
        axes[0, column].add_patch(Rectangle((left, top), side, side, fill=False, color="C1"))
        _show(axes[1, column], image[:, top : top + side, left : left + side])
    _add_kernel(axes[0, 0], kernel)
    for axis in axes.flat:
        axis.set_axis_off()
    write_in_one_step(path, lambda part: figure.savefig(part, format="png", dpi=80))


def save_kernels(path: str | Path, kernels: Mapping[str, np.ndarray]) -> None:
    """Write a PNG of kernels, (kh, kw) each, by what to write above them; white is most."""
    columns = min(6, len(kernels))
    rows = -(-len(kernels) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, kernel) in zip(axes.flat, kernels.items(), strict=False):
        axis.imshow(kernel, cmap="gray", vmin=0, vmax=kernel.max())
        axis.set_title(name, fontsize=9)
    write_in_one_step(path, lambda part: figure.savefig(part, format="png", dpi=80))


def _show(axis: Axes, image: np.ndarray) -> None:
    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    axis.imshow(np.clip(shown, 0, 1), vmin=0, vmax=1, cmap="gray")


def _add_kernel(axis: Axes, kernel: np.ndarray) -> None:
    """The kernel in the lower left corner, a quarter as wide as the image."""
    inset = axis.inset_axes((0, 0, 0.25, 0.25), anchor="SW")
    inset.imshow(kernel, cmap="gray", vmin=0, vmax=kernel.max())
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set_color("C1")
