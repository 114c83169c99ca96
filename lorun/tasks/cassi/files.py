"""Reading the files of a snapshot camera for the bands of a model: its mask, and cubes."""

from pathlib import Path

import numpy as np

from lorun.data import CASSI_WAVELENGTHS, Cube, interpolate_bands, read_cube, read_mask
from lorun.data.array_meaning import given_wavelengths
from lorun.errors import ArgumentError
from lorun.tasks.cassi.options import SpectralFiles


def load_mask(files: SpectralFiles, bands: int, step: int) -> np.ndarray:
    """The mask that the options name, (H, W) or (bands, H, W)."""
    try:
        return read_mask(
            mask_path(files), key=files.mask_key, layout=files.mask_layout, bands=bands, step=step
        )
    except ArgumentError as error:
        # A mask's key and layout are options of their own, beside those of the cube.
        own = {"key": "mask_key", "layout": "mask_layout"}
        raise ArgumentError(own.get(error.argument, error.argument), str(error)) from error


def mask_path(files: SpectralFiles) -> Path:
    """Where the mask lies; raises if the options do not say it."""
    if files.mask is None:
        raise ArgumentError("mask", "mask: restoring snapshots takes the camera's mask; give its file")
    return files.mask


def load_cube(path: Path, files: SpectralFiles, bands: int) -> Cube:
    """A cube of that many bands; one of other known bands is interpolated onto the literature's 28."""
    ends = len(files.wavelengths) == 2
    given = None if ends else files.wavelengths or None
    cube = read_cube(path, key=files.key, layout=files.layout, range=files.range, wavelengths=given)
    if ends:
        cube = Cube(cube.values, evenly_spaced(path, files.wavelengths, len(cube.values)))
    if bands == len(CASSI_WAVELENGTHS) and cube.wavelengths is not None:
        return _onto_the_literatures(path, cube.values, cube.wavelengths)
    if len(cube.values) != bands:
        raise _other_bands(path, cube, bands)
    return cube


def _other_bands(path: Path, cube: Cube, bands: int) -> ValueError:
    has = f"{path}: has {len(cube.values)} bands"
    if cube.wavelengths is None and bands == len(CASSI_WAVELENGTHS):
        return ArgumentError(
            "wavelengths",
            f"{has} and states no wavelengths, the model restores {bands}; give wavelengths, in nm, so that "
            "it can be interpolated",
        )
    unknown = " and states no wavelengths" if cube.wavelengths is None else ""
    return ValueError(f"{has}{unknown}, the model restores {bands}; use another cube or model")


def known_wavelengths(path: Path, files: SpectralFiles, bands: int) -> np.ndarray | None:
    """Wavelengths of that many bands in nm: as the options state, or the literature's 28, or None."""
    if not files.wavelengths:
        return np.array(CASSI_WAVELENGTHS) if bands == len(CASSI_WAVELENGTHS) else None
    if len(files.wavelengths) == 2:
        return evenly_spaced(path, files.wavelengths, bands)
    if len(files.wavelengths) != bands:
        raise ArgumentError(
            "wavelengths",
            f"{path}: wavelengths: expected one for each of {bands} bands, or the first and the last, got "
            f"{len(files.wavelengths)}",
        )
    return given_wavelengths(path, files.wavelengths)


def evenly_spaced(path: Path, ends: tuple[float, ...], bands: int) -> np.ndarray:
    """Wavelengths of `bands` bands from the first to the last of them."""
    first, last = given_wavelengths(path, ends)
    if bands < 2:
        raise ArgumentError("wavelengths", f"{path}: wavelengths: expected one for its only band, got two")
    return np.linspace(first, last, bands)


def _onto_the_literatures(path: Path, values: np.ndarray, wavelengths: np.ndarray) -> Cube:
    onto = np.array(CASSI_WAVELENGTHS)
    try:
        return Cube(interpolate_bands(values, wavelengths, onto), onto)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
