"""Restoring a spectral cube file: a real snapshot, or one that is simulated from a cube."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import arg

from lorun import metrics
from lorun.data import save_cube
from lorun.device import choose_device
from lorun.files import check_not_input, check_target
from lorun.gap_tv import gap_tv
from lorun.real_scenes import without_borders
from lorun.spectral_figures import MOST_METHODS, save_band_montage, save_spectral_comparison
from lorun.spectral_files import (
    OptionalPath,
    OptionalTile,
    Scale,
    SpectralFiles,
    is_real,
    known_wavelengths,
    load_cube,
    load_mask,
    load_snapshot,
    mask_path,
)
from lorun.spectral_restorer import SpectralMethod, SpectralRestorer, UntrainedMethod, measure
from lorun.zoo import load_model

DEFAULT_MODEL = "cassi-unet-lorun9"
UNTRAINED = {
    "gap-tv": gap_tv,
    # What our networks start from: the rest is what a network adds.
    "smooth-start": lambda y, physics: physics.start(y),
}
PROTOCOL = "cassi-mst"


@dataclass(frozen=True)
class SpectralOptions:
    """What `lorun restore --task cassi` takes."""

    meas: OptionalPath = None
    """A snapshot (H, W + step * (bands - 1)), in place of a cube whose snapshot is simulated."""
    scale: Scale = "auto"
    """Of --meas: a "sum" of coded bands, or of a "real" camera; "auto" is "real" for the key meas_real."""
    tile: OptionalTile = None
    """Denoise in tiles of this side, at least 84 for a U-Net: large scenes in bounded memory."""
    figures: bool = False
    """Write pictures beside the cube: methods side by side, spectra of regions, all bands."""
    compare: tuple[str, ...] = ()
    """Further models, or gap-tv and smooth-start, for the pictures."""
    files: Annotated[SpectralFiles, arg(name="")] = field(default_factory=SpectralFiles)


def restore_cube(
    cube: Path | None, out: Path, options: SpectralOptions, model: str | None = None, device: str = "auto"
) -> str:
    """Restore into `out`, a .mat or .npz with `pred` (and `truth`); returns one line that says what was done.

    Args:
        cube: a cube whose snapshot is simulated; None takes the snapshot `options.meas`.
        model: a shipped model's name, a model file, "gap-tv" or "smooth-start".
    """
    names = list(dict.fromkeys((model or DEFAULT_MODEL, *options.compare)))
    _check(cube, out, options, names)
    methods = load_methods(names, options.tile, device)
    bands, step = camera_of(methods)
    mask = load_mask(options.files, bands, step)
    y, mask, truth, nm = _measured(cube, options, mask, bands, step)
    if options.figures and nm is None:
        raise ValueError(
            f"figures: the wavelengths of these {bands} bands are not known; give --wavelengths, or leave "
            "--figures out"
        )
    restored = {name: method.restore(y, mask) for name, method in methods.items()}
    first = restored[names[0]]
    save_cube(out, first, truth)
    done = f"{out}: {bands} bands of {first.shape[1]}x{first.shape[2]} pixels restored by {names[0]}"
    if truth is not None:
        done += f", PSNR {metrics.psnr(first, truth, PROTOCOL):.2f} dB ({PROTOCOL})"
    if options.figures:
        comparison, montage = figure_paths(out)
        save_spectral_comparison(comparison, y, restored, nm, truth)
        save_band_montage(montage, first, nm)
        done += f"; pictures: {comparison}, {montage}"
    return done


def load_methods(
    names: list[str], tile: int | None = None, device: str = "auto"
) -> dict[str, SpectralMethod]:
    """Shipped models, model files and untrained methods, for the camera that the models are for."""
    where = choose_device(device)
    networks = {
        name: SpectralRestorer(load_model(name, "cassi")[0].to(where), tile)
        for name in names
        if name not in UNTRAINED
    }
    if tile is not None and not networks:
        raise ValueError(
            f"tile: is for networks, and {' and '.join(names)} work on whole scenes; leave it out"
        )
    camera = camera_of(networks) if networks else ()
    untrained = {name: UntrainedMethod(UNTRAINED[name], *camera) for name in names if name in UNTRAINED}
    return {name: (networks | untrained)[name] for name in names}


def camera_of(methods: dict[str, SpectralMethod]) -> tuple[int, int]:
    """Bands and step that all methods are for."""
    cameras = {name: (method.bands, method.step) for name, method in methods.items()}
    if len(set(cameras.values())) > 1:
        listed = ", ".join(f"{name} ({bands} bands, step {step})" for name, (bands, step) in cameras.items())
        raise ValueError(f"models: are for different cameras, {listed}; run them apart")
    return next(iter(cameras.values()))


def figure_paths(out: Path) -> tuple[Path, Path]:
    """Where the pictures beside a cube go: the comparison and all bands."""
    return out.with_name(f"{out.stem}-comparison.png"), out.with_name(f"{out.stem}-bands.png")


def _check(cube: Path | None, out: Path, options: SpectralOptions, names: list[str]) -> None:
    """Raise now what would be raised after the work."""
    check_target(out, ".mat", ".npz")
    if (cube is None) == (options.meas is None):
        raise ValueError(
            "input, meas: expected either a cube, whose snapshot is simulated, or a snapshot (--meas), got "
            f"{'neither' if cube is None else 'both'}"
        )
    if cube is not None and options.scale != "auto":
        raise ValueError("scale: is for a snapshot (--meas), a cube's is simulated; leave it out")
    if cube is None and options.files.layout is not None:
        raise ValueError("layout: is for a cube, a snapshot has no bands; leave it out")
    check_not_input(out, cube, options.meas, mask_path(options.files))
    if options.figures:
        for picture in figure_paths(out):
            check_target(picture, ".png")
        if len(names) > MOST_METHODS:
            raise ValueError(f"compare: pictures hold {MOST_METHODS} methods at most, got {len(names)}")
    elif options.compare:
        raise ValueError("compare: is for the pictures; add --figures")


def _measured(
    cube: Path | None, options: SpectralOptions, mask: np.ndarray, bands: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The snapshot, its mask, the truth if there is one, and the bands' wavelengths if they are known."""
    files, (height, width) = options.files, mask.shape[-2:]
    if cube is None:
        real = is_real(options.meas, files, options.scale)
        y = load_snapshot(options.meas, files, bands, real)
        wide = width + step * (bands - 1)
        if y.shape != (height, wide):
            raise ValueError(
                f"{options.meas}: is {y.shape[0]}x{y.shape[1]} pixels, where a mask of {height}x{width} and "
                f"{bands} bands {step} columns apart make {height}x{wide}; give this camera's mask and model"
            )
        if real:
            y, mask = without_borders(y, mask, bands, step)
        return y, mask, None, known_wavelengths(options.meas, files, bands)
    truth = load_cube(cube, files, bands)
    size = truth.values.shape[-2:]
    if size != (height, width):
        raise ValueError(
            f"{cube}: is {size[0]}x{size[1]} pixels, the mask {height}x{width}; crop one to the other"
        )
    nm = known_wavelengths(cube, files, bands) if truth.wavelengths is None else truth.wavelengths
    return measure(truth.values, mask, step), mask, truth.values, nm
