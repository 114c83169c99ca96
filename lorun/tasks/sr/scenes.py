"""The scenes of super-resolution: photographs to enlarge, and good ones that are made smaller first."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lorun import metrics
from lorun.data import list_photos, read_colour
from lorun.data.photos import to_grey
from lorun.errors import ArgumentError, MissingDataError
from lorun.physics import GaussianNoise, SuperResolution
from lorun.physics.super_resolution import check_kernel_fits, check_scale
from lorun.tasks.sr.borders import margin_for, periodic
from lorun.tasks.sr.kernel_files import find_kernel, find_kernels, numbered
from lorun.tasks.sr.named_kernel import NamedKernel
from lorun.tasks.sr.options import SREval, SRRestore
from lorun.tasks.sr.restorer import check_noise
from lorun.tasks.task import Scene

# Images of evaluation are cropped to multiples of this as well (Zhang et al. 2020).
EVAL_MULTIPLE = 8
SEED = 0
Result = TypeVar("Result")


@dataclass(frozen=True)
class PhotoScene(Scene):
    """A photograph; `measured_by` is what makes it smaller, if another kernel than the restoring one does."""

    grey: bool = False
    measured_by: SuperResolution | None = None


def restore_inputs(source: Path | None, options: SRRestore) -> list[Path]:
    """The files that a call of `lorun restore` reads; raises if its options make no sense."""
    if source is None:
        raise ValueError("input: name a photograph to enlarge")
    _for_option("scale", check_scale, options.scale)
    check_noise(options.noise)
    kernel = Path(numbered(options.kernel)[0])
    return [source, kernel] if kernel.is_file() else [source]


def open_photo(source: Path, options: SRRestore, channels: int) -> PhotoScene:
    """The photograph of `lorun restore`, to be enlarged, or to be made smaller first."""
    found = find_kernel(options.kernel, options.scale)
    image, notes = _with_channels(read_colour(source), channels)
    physics = SuperResolution(found.kernel, options.scale, channels, options.noise)
    notes, grey = (*notes, *found.notes), _is_grey(image)
    if not options.simulate:
        size = (image.shape[-2] * options.scale, image.shape[-1] * options.scale)
        check_kernel_fits(found.kernel, size)
        y = periodic(image, margin_for(found.kernel, options.scale))
        return PhotoScene(source.name, size, y=y, physics=physics, notes=notes, grey=grey)
    height, width = _cropped(image, options.scale).shape[1:]
    if (height, width) != image.shape[1:]:
        raise ArgumentError(
            "scale",
            f"scale: expected one that divides the photograph's {image.shape[1]}x{image.shape[2]} pixels, "
            f"got {options.scale}; crop the photograph to {height}x{width}",
        )
    metrics.psnr(image, image, "sr-rgb", options.scale)  # raises now if it would after the work
    return PhotoScene(source.name, image.shape[1:], truth=image, physics=physics, notes=notes, grey=grey)


def table_inputs(source: Path, options: SREval) -> list[Path]:
    """The files that a call of `lorun eval` reads; raises if its options make no sense."""
    if not options.scales or not options.kernels:
        raise ValueError("scales, kernels: expected at least one of each")
    for scale in options.scales:
        _for_option("scales", check_scale, scale)
    check_noise(options.noise)
    return [source] if source.is_file() else list_photos(source)


def table_scenes(source: Path, options: SREval, channels: int) -> list[Scene]:
    """Every photograph at every scale through every kernel."""
    photos = [
        (path.name, _with_channels(read_colour(path), channels)[0]) for path in table_inputs(source, options)
    ]
    scenes: list[Scene] = []
    for scale in dict.fromkeys(options.scales):
        multiple = math.lcm(scale, EVAL_MULTIPLE)
        truths = {name: _cropped(image, multiple, name) for name, image in photos}
        for name, truth in truths.items():
            _check_comparable(name, truth, options.protocol, scale)
        for found, restored_by in _kernels_of(options, scale):
            measured_by = SuperResolution(found.kernel, scale, channels, options.noise)
            physics = SuperResolution(restored_by, scale, channels, options.noise)
            for name, truth in truths.items():
                size = truth.shape[1:]
                for kernel in (found.kernel, restored_by):
                    _for_option("kernels", check_kernel_fits, kernel, size, name)
                cell = (f"x{scale}", found.name)
                scenes.append(
                    PhotoScene(
                        name,
                        size,
                        truth=truth,
                        physics=physics,
                        cell=cell,
                        grey=_is_grey(truth),
                        measured_by=measured_by,
                    )
                )
    return scenes


def _kernels_of(options: SREval, scale: int) -> list[tuple[NamedKernel, Tensor]]:
    """The kernels of a table, each once, and by which each is restored."""
    found = [one for spec in options.kernels for one in _for_option("kernels", find_kernels, spec, scale)]
    each = {one.name: one for one in found}.values()
    if options.assumed is None:
        return [(one, one.kernel) for one in each]
    assumed = _for_option("assumed", find_kernel, options.assumed, scale).kernel
    return [(one, assumed) for one in each]


def _check_comparable(name: str, truth: np.ndarray, protocol: str, scale: int) -> None:
    """Raise now what the metrics would raise when this photograph's turn comes."""
    least = metrics.least_side(protocol, scale)
    if min(truth.shape[1:]) < least:
        raise ValueError(
            f"{name}: protocol {protocol} needs at least {least}x{least} pixels at scale {scale}, got "
            f"{truth.shape[1]}x{truth.shape[2]}; leave this photograph or this scale out"
        )


def simulated(truth: np.ndarray, physics: SuperResolution) -> Tensor:
    """What `physics` makes of an image (C, H, W): (1, C, h, w) float32, with the same noise at every call."""
    y = physics.A(torch.from_numpy(np.ascontiguousarray(truth))[None])
    return GaussianNoise(physics.noise_level.item(), torch.Generator().manual_seed(SEED))(y)


def _for_option(option: str, call: Callable[..., Result], *arguments: Any) -> Result:
    """call(*arguments), whose errors are about this option of the command."""
    try:
        return call(*arguments)
    except MissingDataError as error:
        raise MissingDataError(option, str(error)) from error
    except ValueError as error:
        raise ArgumentError(option, str(error)) from error


def _with_channels(image: np.ndarray, channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """A photograph as a network of so many channels takes it, and what that changed."""
    if len(image) == channels:
        return image, ()
    if channels == 1:
        return to_grey(image.transpose(1, 2, 0))[None], ("colour became grey, as this model restores",)
    return np.repeat(image, channels, 0), ()


def _is_grey(image: np.ndarray) -> bool:
    return bool((image == image[:1]).all())


def _cropped(image: np.ndarray, multiple: int, name: str = "input") -> np.ndarray:
    height, width = (side // multiple * multiple for side in image.shape[1:])
    if 0 in (height, width):
        raise ValueError(
            f"{name}: expected at least {multiple}x{multiple} pixels for this scale, got "
            f"{image.shape[1]}x{image.shape[2]}; use a larger photograph"
        )
    return image[:, :height, :width]
