"""The scenes of CASSI: a snapshot and its mask, or cubes whose snapshots are simulated, from their files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorun import metrics
from lorun.data.snapshots import open_snapshot
from lorun.data.spectral_crops import list_cubes
from lorun.errors import ArgumentError
from lorun.files import check_not_input, check_target
from lorun.physics import CASSI
from lorun.tasks.cassi.files import known_wavelengths, load_cube, load_mask, mask_path
from lorun.tasks.cassi.options import CASSIEval, CASSIRestore
from lorun.tasks.cassi.real_scenes import without_borders
from lorun.tasks.cassi.restorer import camera_of, from_real
from lorun.tasks.task import Scene


@dataclass(frozen=True)
class SpectralScene(Scene):
    """A scene with the wavelengths of its bands in nm, (C,), if they are known."""

    wavelengths: np.ndarray | None = None


def restore_inputs(source: Path | None, options: CASSIRestore) -> list[Path]:
    """The files that restoring one scene reads; raises if the options contradict each other."""
    if (source is None) == (options.meas is None):
        raise ArgumentError(
            "meas",
            "input, meas: expected either a cube, whose snapshot is simulated, or a snapshot (meas), got "
            f"{'neither' if source is None else 'both'}",
        )
    if source is not None and options.scale != "auto":
        raise ArgumentError("scale", "scale: is for a snapshot (meas), a cube's is simulated; leave it out")
    if source is None and options.files.layout is not None:
        raise ArgumentError("layout", "layout: is for a cube, a snapshot has no bands; leave it out")
    return [path for path in (source, options.meas, mask_path(options.files)) if path is not None]


def open_scene(source: Path | None, options: CASSIRestore, bands: int, step: int) -> SpectralScene:
    """The scene to restore: a snapshot as measured, or a cube to measure."""
    mask = load_mask(options.files, bands, step)
    if source is None:
        assert options.meas is not None
        return open_measured(options.meas, options, mask, bands, step)
    cube = load_cube(source, options.files, bands)
    size, expected = cube.values.shape[-2:], mask.shape[-2:]
    if size != expected:
        raise ValueError(
            f"{source}: is {size[0]}x{size[1]} pixels, the mask {expected[0]}x{expected[1]}; "
            "crop one to the other"
        )
    known = cube.wavelengths
    nm = known_wavelengths(source, options.files, bands) if known is None else known
    return replace(_simulated(source.name, cube.values, camera_of(mask, bands, step)), wavelengths=nm)


def open_measured(
    path: Path, options: CASSIRestore, mask: np.ndarray, bands: int, step: int
) -> SpectralScene:
    """A snapshot on the scale of `CASSI.A`: a plain sum as it is, a real camera's as the field scales it."""
    snapshot = open_snapshot(path, key=options.files.key, range=options.files.range)
    y, real = snapshot.values, options.scale == "real" or (options.scale == "auto" and snapshot.real)
    if real:
        try:
            y = from_real(y, bands)
        except ArgumentError as error:
            raise ArgumentError(error.argument, f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    height, width = mask.shape[-2:]
    wide = width + step * (bands - 1)
    if y.shape != (height, wide):
        raise ValueError(
            f"{path}: is {y.shape[0]}x{y.shape[1]} pixels, where a mask of {height}x{width} and "
            f"{bands} bands {step} columns apart make {height}x{wide}; give this camera's mask and model"
        )
    if real:
        y, mask = without_borders(y, mask, bands, step)
    nm = known_wavelengths(path, options.files, bands)
    camera = camera_of(mask, bands, step)
    return SpectralScene(path.name, (height, width), y=y, physics=camera, wavelengths=nm)


def table_inputs(source: Path, options: CASSIEval) -> list[Path]:
    """The mask and the cubes of a table; raises if what it writes would replace one of them."""
    mask = mask_path(options.files)
    if options.result is not None:
        check_target(options.result, ".mat", ".npz")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such cube or folder of cubes")
    cubes = list_cubes([source])
    if options.result is not None:
        check_not_input(options.result, mask, *cubes)
    return [mask, *cubes]


def table_scenes(source: Path, options: CASSIEval, bands: int, step: int) -> list[Scene]:
    """The scenes of a table.

    A cube of the mask's height and width is one scene; a larger one, whose sides are multiples of the mask's,
    is cut into scenes of that size, row by row.
    """
    camera = camera_of(load_mask(options.files, bands, step), bands, step)
    assert camera.size is not None
    blank = np.zeros((bands, *camera.size))
    metrics.ssim(blank, blank, options.protocol)  # raises now if scenes are too small for its window
    scenes: list[Scene] = []
    for path in list_cubes([source]):
        parts = cut_scenes(path, load_cube(path, options.files, bands).values, camera.size)
        scenes += [_simulated(name, truth, camera) for name, truth in parts.items()]
    return scenes


def cut_scenes(file: Path, cube: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A cube (C, H, W) as scenes of `size`, by name."""
    rows, columns = (side // of for side, of in zip(cube.shape[-2:], size, strict=True))
    if (rows * size[0], columns * size[1]) != cube.shape[-2:] or not rows * columns:
        raise ValueError(
            f"{file}: is {cube.shape[-2]}x{cube.shape[-1]} pixels, not a multiple of the mask's "
            f"{size[0]}x{size[1]}; crop it"
        )
    if rows == columns == 1:
        return {file.name: cube}
    return {
        f"{file.name} [{row},{column}]": cube[
            :, row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]
        ]
        for row in range(rows)
        for column in range(columns)
    }


def _simulated(name: str, truth: np.ndarray, camera: CASSI) -> SpectralScene:
    return SpectralScene(name, truth.shape[-2:], truth=truth, physics=camera)
