"""Snapshots of real cameras, whose scene continues beyond the mask's window."""

import numpy as np


def without_borders(y: np.ndarray, mask: np.ndarray, bands: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A snapshot and its mask without the columns of y that not every band of the window reaches.

    In the first and the last step * (C - 1) columns a real sensor also sees bands of what lies beside the
    window, through a part of the mask that no file holds. Taken as measurements of the window they become
    coloured columns at its borders. Here those columns of y are set to 0, and so is each band's mask wherever
    it would be shifted into them: the window's border is restored from the bands that remain.

    Args:
        y: (H, W + step * (C - 1)).
        mask: (H, W) or (C, H, W).
        bands, step: C, and the columns from one band to the next.

    Returns:
        y and a mask (C, H, W).

    Raises:
        ValueError: a window that is not wider than the dispersion: no column sees every band.
    """
    height, width = mask.shape[-2:]
    spread = step * (bands - 1)
    if width <= spread:
        raise ValueError(
            f"mask: expected more than the {spread} columns that {bands} bands are spread over, got {width}; "
            "no column of this snapshot sees every band"
        )
    whole = np.zeros(width + spread, dtype=mask.dtype)
    whole[spread:width] = 1
    reached = np.stack([whole[step * band : step * band + width] for band in range(bands)])
    return y * whole.astype(y.dtype), mask * reached[:, None]
