"""Snapshots of a coded-aperture camera: reading them from the field's files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorun.data.array_files import read_arrays
from lorun.data.array_meaning import choose, scaled

# The field stores what a real camera measured under this key, on the scale of its sensor.
REAL_KEY = "meas_real"
SNAPSHOT_KEYS = (REAL_KEY, "meas", "y")


@dataclass(frozen=True)
class Snapshot:
    """A measurement: `values` (H, W') float32, at least 0, and whether its key says a real camera took it."""

    values: np.ndarray
    real: bool


def read_snapshot(path: str | Path, *, key: str | None = None, range: float | None = None) -> np.ndarray:
    """Read a measurement of a snapshot camera: (H, W') float32, finite, >= 0.

    Args:
        path: a .mat, .h5, .npz or .npy file.
        key: the name of the array. Without it the file must hold one two-dimensional array, or one by a name
            in `SNAPSHOT_KEYS`.
        range: the value that means 1, by which all are divided. Integers need it, floats do not: a
            measurement sums up many bands, so it has no maximum of its own.

    Raises:
        ValueError: an array or scale that is ambiguous or does not fit, NaN, Inf, negative values, or a
            damaged file.
        OSError: no such file.
    """
    return open_snapshot(path, key=key, range=range).values


def open_snapshot(path: str | Path, *, key: str | None = None, range: float | None = None) -> Snapshot:
    """As `read_snapshot`, with whether a real camera took it."""
    path = Path(path)
    arrays = read_arrays(path)
    key = choose(path, arrays, key, SNAPSHOT_KEYS, (2,), "snapshot, (H, W)")
    return Snapshot(scaled(f"{path}: `{key}`", arrays[key], range), key == REAL_KEY)
