"""Spectral cubes: reading them from the field's files, and saving them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorun.data.array_files import read_arrays
from lorun.data.array_meaning import (
    Layout,
    choose,
    cube_layout,
    given_wavelengths,
    stored_wavelengths,
    unit_range,
)
from lorun.data.band_images import read_band_images
from lorun.errors import ArgumentError
from lorun.files import check_target, write_in_one_step

CUBE_KEYS = ("img", "img_expand", "cube", "truth", "pred")
# In files of these kinds the cubes of CUBE_KEYS are (H, W, C).
FIELD_SUFFIXES = (".mat", ".npz")
MAT5_BYTES = 2**32


@dataclass(frozen=True)
class Cube:
    """A scene: `values` (C, H, W) float32 in [0, 1] and `wavelengths` (C,) in nm, ascending, or None."""

    values: np.ndarray
    wavelengths: np.ndarray | None


def read_cube(
    path: str | Path,
    *,
    key: str | None = None,
    layout: Layout | None = None,
    range: float | None = None,
    wavelengths: Sequence[float] | np.ndarray | None = None,
) -> Cube:
    """Read a spectral cube from a .mat, .h5, .npz or .npy file, or a folder with a grey PNG for each band.

    Args:
        path: the file; or the folder, whose PNG are 8 or 16 bits deep and put in order by the last number in
            their names (`balloons_ms_01.png`).
        key: the name of the array. Without it the file must hold one three-dimensional array, or one by a
            name in `CUBE_KEYS`.
        layout: "hwc" or "chw", the order of the axes in the file (in MATLAB, for a .mat). Without it, the
            order must follow from one of two rules, the first that applies:

            1. There are wavelengths, and their number is the length of the first or of the last axis and not
               of both: that is the band axis.
            2. The array is called by a name in `CUBE_KEYS`, in a .mat or .npz file, where cubes are
               (H, W, C), and its last axis is shorter than both others, as that of such a cube is: "hwc". So
               a (28, 256, 256) `img` is refused, not read as 256 bands.
        range: the value that means 1, by which all are divided: 65535, or 4095 for 12 bits. Integers and PNG
            need it. Floats without it must lie in [0, 1], and up to 1 + 1e-6 count as 1.
        wavelengths: of all bands, in nm; by default those under the file's key `wavelengths`, unless that is
            empty.

    Raises:
        ValueError: an array, layout, scale or wavelength that is ambiguous or does not fit, NaN, Inf,
            negative values, or a damaged file. The message names the file and what to pass.
        OSError: no such file.
    """
    path = Path(path)
    nm = None if wavelengths is None else given_wavelengths(path, wavelengths)
    if path.is_dir():
        if key is not None or layout is not None:
            raise ValueError(f"{path}: a folder of PNG has no key and no layout; leave both out")
        name, values = str(path), read_band_images(path)
    else:
        arrays = read_arrays(path)
        key = choose(path, arrays, key, CUBE_KEYS, (3,), "cube, (H, W, C) or (C, H, W)")
        nm = stored_wavelengths(path, arrays) if nm is None else nm
        name, values = f"{path}: `{key}`", arrays[key]
        field = key in CUBE_KEYS and path.suffix.lower() in FIELD_SUFFIXES
        if cube_layout(name, values.shape, layout, nm, field) == "hwc":
            values = np.moveaxis(values, 2, 0)
    if nm is not None and len(nm) != len(values):
        raise ArgumentError(
            "wavelengths",
            f"{path}: wavelengths: expected one for each of the {len(values)} bands, got {len(nm)}",
        )
    return Cube(unit_range(name, values, range), nm)


def save_cube(path: str | Path, pred: np.ndarray, truth: np.ndarray | None = None) -> None:
    """Write restored cubes as the field's `Test_result.mat`, or as an .npz with the same keys.

    Args:
        path: ends in .mat (MATLAB 5, compressed) or .npz; written in one step.
        pred: (C, H, W), or (N, C, H, W) for many scenes, finite; stored as (H, W, C) or (N, H, W, C) float32
            under `pred`.
        truth: what `pred` should be, of the same shape, under `truth`.

    Raises:
        ValueError: another suffix, a shape that does not fit, NaN or Inf, or above 4 GiB in a .mat.
        OSError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    check_target(path, ".mat", ".npz")
    arrays = {"pred": _bands_last("pred", pred)}
    if truth is not None:
        arrays["truth"] = _bands_last("truth", truth)
        if arrays["truth"].shape != arrays["pred"].shape:
            raise ValueError(f"truth: expected the shape of pred, {np.shape(pred)}, got {np.shape(truth)}")
    if path.suffix.lower() == ".mat":
        if arrays["pred"].nbytes >= MAT5_BYTES:
            raise ValueError(f"{path}: an array in a .mat ends at 4 GiB; write an .npz, or fewer scenes")
        write_in_one_step(path, lambda part: _save_mat(part, arrays))
    else:
        write_in_one_step(path, lambda part: _save_npz(part, arrays))


def _save_mat(part: Path, arrays: dict[str, np.ndarray]) -> None:
    import scipy.io  # as long to import as numpy, and needed here only

    scipy.io.savemat(part, arrays, appendmat=False, do_compression=True)


def _save_npz(part: Path, arrays: dict[str, np.ndarray]) -> None:
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _bands_last(name: str, cubes: np.ndarray) -> np.ndarray:
    cubes = np.asarray(cubes)
    if cubes.ndim not in (3, 4) or cubes.dtype.kind != "f" or not cubes.size:
        raise ValueError(f"{name}: must be floats (C, H, W) or (N, C, H, W), got {cubes.dtype} {cubes.shape}")
    values = np.moveaxis(cubes, -3, -1).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: holds NaN or Inf; fix those values first")
    return values
