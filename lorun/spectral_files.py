"""The files of a snapshot spectral camera: its mask, and a cube or a snapshot, for the bands of a model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import arg

from lorun.data import CASSI_WAVELENGTHS, Cube, interpolate_bands, read_cube, read_mask, read_snapshot
from lorun.data.array_meaning import given_wavelengths
from lorun.data.cubes import holds_real_snapshot
from lorun.spectral_restorer import from_real

OptionalPath = Annotated[Path | None, arg(metavar="PATH")]
OptionalText = Annotated[str | None, arg(metavar="NAME")]
OptionalTile = Annotated[int | None, arg(metavar="PIXELS")]
OptionalLayout = Annotated[Literal["hwc", "chw"] | None, arg(metavar="{hwc,chw}")]
Scale = Literal["auto", "sum", "real"]


@dataclass(frozen=True)
class SpectralFiles:
    """How spectral files are to be read, where they do not say it themselves."""

    mask: OptionalPath = None
    """File of the coded-aperture mask: .mat, .npz, .npy or .h5."""
    mask_key: OptionalText = None
    """Name of the mask in its file."""
    mask_layout: OptionalLayout = None
    """Order of the axes of a mask with bands."""
    key: OptionalText = None
    """Name of the cube or snapshot in its file."""
    layout: OptionalLayout = None
    """Order of a cube's axes in its file."""
    range: Annotated[float | None, arg(metavar="FLOAT")] = None
    """The value that means 1 in the file; integers need it."""
    wavelengths: tuple[float, ...] = ()
    """Wavelengths of a cube's bands in nm, or the first and the last of evenly spaced ones."""


def load_mask(files: SpectralFiles, bands: int, step: int) -> np.ndarray:
    """The mask that the options name, (H, W) or (bands, H, W)."""
    options = {"key": files.mask_key, "layout": files.mask_layout}
    return read_mask(mask_path(files), **options, bands=bands, step=step)


def mask_path(files: SpectralFiles) -> Path:
    """Where the mask lies; raises where the options do not say it."""
    if files.mask is None:
        raise ValueError("mask: restoring snapshots takes the camera's mask; give its file with --mask")
    return files.mask


def load_cube(path: Path, files: SpectralFiles, bands: int) -> Cube:
    """A cube of so many bands; onto the literature's 28, one of other known bands is interpolated."""
    options = {"key": files.key, "layout": files.layout, "range": files.range}
    if len(files.wavelengths) == 2:
        cube = read_cube(path, **options)
        cube = Cube(cube.values, evenly_spaced(path, files.wavelengths, len(cube.values)))
    else:
        cube = read_cube(path, **options, wavelengths=files.wavelengths or None)
    if bands == len(CASSI_WAVELENGTHS) and cube.wavelengths is not None:
        return _onto_the_literatures(path, cube)
    if len(cube.values) != bands:
        unknown = " and states no wavelengths" if cube.wavelengths is None else ""
        advice = "; give --wavelengths, in nm, so that it can be interpolated"
        raise ValueError(
            f"{path}: has {len(cube.values)} bands{unknown}, the model restores {bands}"
            + (advice if unknown and bands == len(CASSI_WAVELENGTHS) else "; use another cube or model")
        )
    return cube


def load_snapshot(path: Path, files: SpectralFiles, bands: int, real: bool) -> np.ndarray:
    """A snapshot on the scale of `CASSI.A`: a plain sum as it is, a real camera's by `from_real`."""
    y = read_snapshot(path, key=files.key, range=files.range)
    if not real:
        return y
    try:
        return from_real(y, bands)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_real(path: Path, files: SpectralFiles, scale: Scale) -> bool:
    """Whether a snapshot counts as a real camera's; "auto" says so of the key `meas_real`."""
    return scale == "real" or (scale == "auto" and holds_real_snapshot(path, files.key))


def known_wavelengths(path: Path, files: SpectralFiles, bands: int) -> np.ndarray | None:
    """Wavelengths of so many bands in nm: those that the options state, or the literature's 28, or None."""
    if not files.wavelengths:
        return np.array(CASSI_WAVELENGTHS) if bands == len(CASSI_WAVELENGTHS) else None
    if len(files.wavelengths) == 2:
        return evenly_spaced(path, files.wavelengths, bands)
    if len(files.wavelengths) != bands:
        raise ValueError(
            f"{path}: wavelengths (--wavelengths): expected one for each of {bands} bands, or the first and "
            f"the last, got {len(files.wavelengths)}"
        )
    return given_wavelengths(path, files.wavelengths)


def evenly_spaced(path: Path, ends: tuple[float, ...], bands: int) -> np.ndarray:
    """Wavelengths of `bands` bands from the first to the last of them."""
    first, last = given_wavelengths(path, ends)
    if bands < 2:
        raise ValueError(f"{path}: wavelengths (--wavelengths): expected one for its only band, got two")
    return np.linspace(first, last, bands)


def settings_made(settings: Any) -> list[str]:
    """Names of the settings of a dataclass, nested ones too, that differ from their defaults."""
    made = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            made += settings_made(value)
        elif value != field.default:
            made.append(field.name)
    return made


def _onto_the_literatures(path: Path, cube: Cube) -> Cube:
    onto = np.array(CASSI_WAVELENGTHS)
    try:
        return Cube(interpolate_bands(cube.values, cube.wavelengths, onto), onto)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
