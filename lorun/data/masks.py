"""Coded-aperture masks: reading them from the field's files."""

from pathlib import Path

import numpy as np

from lorun.data.array_files import read_arrays
from lorun.data.array_meaning import Layout, choose, finite, mask_layout

MASK_KEYS = ("mask", "mask_3d", "mask_3d_shift")
# A calibration's noise may pass 1; a mask on the scale 0 to 255 does so by far.
MOST_TRANSMISSION = 2.0


def read_mask(
    path: str | Path, *, key: str | None = None, layout: Layout | None = None, bands: int = 28, step: int = 2
) -> np.ndarray:
    """Read a coded-aperture mask: (H, W) or (C, H, W) float32, finite, >= 0, in unshifted coordinates.

    Args:
        path: a .mat, .h5, .npz or .npy file.
        key: the name of the array. Without it the file must hold one array of two or three dimensions, or one
            by a name in `MASK_KEYS`; `mask` and `mask_3d_shift` are different calibrations, so a file with
            both needs it.
        layout: "hwc" or "chw" for a mask with bands. Without it, the band axis is the first or the last,
            whichever has the length `bands`; if both have it, the layout must be given.
        bands: the number of bands C that a mask of three dimensions must have.
        step: columns from one band to the next in `mask_3d_shift`, whose band c lies `step * c` columns to
            the right; it comes back without the shift, W = W' - step * (C - 1).

    Raises:
        ValueError: an array or layout that is ambiguous or does not fit, NaN, Inf, negative values, nothing
            but zeros, integers above 1 or floats above 2 (whose scale is unknown), or a damaged file.
        OSError: no such file.
    """
    path = Path(path)
    arrays = read_arrays(path)
    key = choose(path, arrays, key, MASK_KEYS, (2, 3), "mask, (H, W), (H, W, C) or (C, H, W)")
    mask, name = arrays[key], f"{path}: `{key}`"
    if mask.ndim == 3 and mask_layout(name, mask.shape, layout, bands) == "hwc":
        mask = np.moveaxis(mask, 2, 0)
    values = finite(name, mask)
    if mask.dtype.kind in "iu" and values.max() > 1:
        raise ValueError(
            f"{name}: expected transmissions as floats, or integers 0 and 1, got {mask.dtype} up to "
            f"{values.max():g}; divide them by what means fully open and save floats"
        )
    if values.max() > MOST_TRANSMISSION:
        raise ValueError(
            f"{name}: expected transmissions, about 1 where fully open, got values up to {values.max():g}; "
            "divide them by what means fully open"
        )
    if not values.any():
        raise ValueError(f"{name}: lets no light through, all values are 0; use another mask")
    return _unshift(name, values, step) if key == "mask_3d_shift" else values


def _unshift(name: str, mask: np.ndarray, step: int) -> np.ndarray:
    width = mask.shape[-1] - step * (len(mask) - 1)
    if mask.ndim != 3 or step < 0 or width < 1:
        raise ValueError(
            f"{name}: expected (C, H, W + step * (C - 1)) or the same as (H, W, C) with step = {step}, got "
            f"{mask.shape}; pass the step that the camera has"
        )
    return np.stack([band[:, step * c : step * c + width] for c, band in enumerate(mask)])
