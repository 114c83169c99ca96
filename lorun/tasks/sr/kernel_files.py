"""Blur kernels by name or from a file, as the command line takes them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorun.data import read_grey
from lorun.data.array_files import SUFFIXES, read_arrays
from lorun.data.photos import SUFFIXES as IMAGE_SUFFIXES
from lorun.errors import ArgumentError, MissingDataError
from lorun.physics.blur_kernels import bicubic_kernel, gaussian_kernel, motion_kernel
from lorun.tasks.sr.named_kernel import NamedKernel, named_kernel

# The field's twelve (Zhang et al. 2020) as one asks for them, and where they lie under $LORUN_DATA.
PUBLISHED, PUBLISHED_FILE = "12", "sr/kernels_12.mat"
FORMS = (
    'a file, such as k.mat or kernels.mat:3 for the third of several, or "bicubic", "none", '
    '"gaussian:WIDTH", "gaussian:WIDTH,WIDTH,DEGREES" or "motion:SEED"'
)


def find_kernel(spec: str, scale: int) -> NamedKernel:
    """The kernel that a user asks for.

    Args:
        spec: as `FORMS` lists them. A width is a standard deviation in pixels of the large image, and degrees
            are as `gaussian_kernel` has them; "bicubic" is what bicubic shrinking by `scale` is; "none" keeps
            pixels as they are.

    Raises:
        ValueError: no such kernel, or a file without one, with several and none chosen, or with one that
        cannot be.
        OSError: no such file.
    """
    found = find_kernels(spec, scale)
    if len(found) > 1:
        raise ArgumentError(
            "kernel", f"kernel: {spec} holds {len(found)} kernels; say which, such as {spec}:1 for the first"
        )
    return found[0]


def find_kernels(spec: str, scale: int) -> list[NamedKernel]:
    """As `find_kernel`, all of a file that holds several; "12" are the published ones, under $LORUN_DATA.

    Names tell different kernels apart: those of a file are its path and a number, the published ones numbers.
    """
    name, _, numbers = spec.partition(":")
    try:
        if spec in ("bicubic", "none"):
            return [NamedKernel(spec, bicubic_kernel(scale) if spec == "bicubic" else torch.ones(1, 1))]
        if name in GENERATED:
            return [NamedKernel(spec, GENERATED[name](numbers))]
    except (ValueError, TypeError) as error:
        raise ArgumentError("kernel", f"kernel: {spec!r} is no kernel ({error}); expected {FORMS}") from error
    file, number = numbered(spec)
    if file == PUBLISHED:
        found = [replace(one, name=str(n)) for n, one in enumerate(read_kernels(_published_file()), 1)]
    elif Path(file).suffix.lower() in (*SUFFIXES, *IMAGE_SUFFIXES):
        found = read_kernels(file)
    else:
        raise ArgumentError("kernel", f"kernel: expected {FORMS}; got {spec!r}")
    if number is None:
        return found
    if not 1 <= number <= len(found):
        raise ArgumentError(
            "kernel", f"kernel: {file} holds {len(found)}, counted from 1; there is no number {number}"
        )
    return [found[number - 1]]


def read_kernels(path: str | Path) -> list[NamedKernel]:
    """The kernels in a .mat, .npy, .npz, .h5 or image file, each divided by its sum.

    Arrays of two dimensions are kernels, in the order of the file, as are the elements of a MATLAB cell
    array; one of three dimensions is a stack of square ones, (N, k, k) or (k, k, N). A list or a number is no
    kernel. In an image, brightness is what a kernel weighs.

    Raises:
        ValueError: a file without a kernel, or with one that holds NaN or Inf or does not add up to more than
        0.
        OSError: no such file.
    """
    path = Path(path)
    arrays = (
        {path.stem: read_grey(path)}
        if path.suffix.lower() in IMAGE_SUFFIXES
        else read_arrays(path, cells=True)
    )
    found = [one for array in arrays.values() for one in _stack(array)]
    if not found:
        listed = (
            ", ".join(f"`{name}` {array.shape}" for name, array in arrays.items()) or "no array of numbers"
        )
        raise ArgumentError(
            "kernel", f"kernel: {path}: expected a kernel, (kh, kw) of at least 2x2; the file holds {listed}"
        )
    names = [f"{path}:{number}" for number in range(1, len(found) + 1)] if len(found) > 1 else [str(path)]
    return [named_kernel(name, array, str(path)) for name, array in zip(names, found, strict=True)]


def _published_file() -> Path:
    path = Path(os.environ.get("LORUN_DATA", ".")) / PUBLISHED_FILE
    if not path.is_file():
        raise MissingDataError(
            "kernel",
            f"{path}: no such file; set LORUN_DATA to the folder that holds the published kernels, or name a "
            "file of kernels",
        )
    return path


def _stack(array: np.ndarray) -> list[np.ndarray]:
    """The kernels in one array: itself, or those of a stack; none in a list or a number."""
    if array.dtype.kind not in "biuf" or array.size == 0:
        return []
    if array.ndim == 3:
        first, middle, last = array.shape
        return list(array) if middle == last else list(np.moveaxis(array, 2, 0)) if first == middle else []
    return [array] if array.ndim == 2 and min(array.shape) > 1 else []


def numbered(spec: str) -> tuple[str, int | None]:
    """A file, and the number behind its colon, if there is one."""
    file, colon, number = spec.rpartition(":")
    if colon and number.isdecimal() and not Path(spec).exists():
        return file, int(number)
    return spec, None


def _gaussian(numbers: str) -> Tensor:
    values = [float(number) for number in numbers.split(",")]
    if len(values) == 1:
        return gaussian_kernel(values[0])
    if len(values) == 3:
        return gaussian_kernel((values[0], values[1]), values[2])
    raise ValueError(f"expected one width, or two and an angle, got {len(values)} numbers")


def _motion(seed: str) -> Tensor:
    return motion_kernel(np.random.default_rng(int(seed)))


GENERATED: dict[str, Callable[[str], Tensor]] = {"gaussian": _gaussian, "motion": _motion}
