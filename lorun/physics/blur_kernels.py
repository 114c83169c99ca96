"""Blur kernels: Gaussian, of motion, and what bicubic shrinking is as one kernel."""

import math

import numpy as np
import torch
from torch import Tensor

from lorun.physics.bicubic import keys
from lorun.physics.super_resolution import check_scale

# The side of the kernels that the field tests with (Zhang et al. 2020).
SIDE = 25
# Points along a path of motion: several in each pixel.
PATH = 400


def gaussian_kernel(width: float | tuple[float, float], angle: float = 0.0, side: int = SIDE) -> Tensor:
    """A Gaussian blur, (side, side) float32, that sums to 1.

    Args:
        width: standard deviation in pixels, above 0; two of them for an anisotropic one.
        angle: by which the first width's axis is turned from the horizontal, in degrees, clockwise as
            pictures show it.
        side: odd, at least 1; `side // 2` is the centre.

    Raises:
        ValueError: an argument out of its range.
    """
    widths = (width, width) if isinstance(width, int | float) else width
    if len(widths) != 2 or not all(0 < one < math.inf for one in widths):
        raise ValueError(f"width: expected one or two standard deviations above 0, got {width}")
    if not math.isfinite(angle):
        raise ValueError(f"angle: expected degrees, got {angle}")
    along, across = _turned(_offsets(side), angle)
    exponent = (along / widths[0]).square() + (across / widths[1]).square()
    return _normalised(torch.exp(-exponent / 2))


def motion_kernel(random: np.random.Generator, side: int = SIDE, length: float | None = None) -> Tensor:
    """A blur by the random motion of a camera during exposure, (side, side) float32, that sums to 1.

    A path that drifts with inertia and now and then turns sharply, in the manner of Boracchi and Foi 2012,
    "Modeling the performance of image restoration from motion blur". The centre of mass is the kernel's
    centre, to a pixel.

    Args:
        random: decides everything else.
        side: odd, at least 3.
        length: of the path in pixels, above 0; None draws one from half a `side` to two of them.

    Raises:
        ValueError: an argument out of its range.
    """
    _check_side(side, 3)
    if length is None:
        length = side * random.uniform(0.5, 2)
    if not 0 < length < math.inf:
        raise ValueError(f"length: expected a path of more than 0 pixels, got {length}")
    turns = random.normal(0, 0.1, PATH) + random.normal(0, 1.5, PATH) * (random.random(PATH) < 3 / PATH)
    direction = random.uniform(0, 2 * math.pi) + np.cumsum(turns)
    path = np.cumsum(np.stack([np.sin(direction), np.cos(direction)]), 1) * (length / PATH)
    path -= path.mean(1, keepdims=True)
    # A path too long for the kernel is made smaller.
    path *= min(1, (side // 2 - 1) / np.abs(path).max())
    return _drawn(torch.from_numpy(path), side)


def bicubic_kernel(scale: int) -> Tensor:
    """Bicubic shrinking with antialiasing as one kernel: square, of odd side, float32.

    `SuperResolution(bicubic_kernel(scale), scale)` shrinks as MATLAB's `imresize` and Pillow's BICUBIC do,
    all with a = -0.5 of Keys 1981; only the border is another. Shrinking keeps the middle of scale x scale
    pixels, so that the centre of mass is (scale - 1) / 2 pixels above and to the left of the kernel's centre.

    Raises:
        ValueError: a scale below 1.
    """
    check_scale(scale)
    # A true convolution takes from position -j what element j weighs.
    shift = (scale - 1) / 2
    farthest = math.ceil(2 * scale + shift) - 1
    offsets = -torch.arange(-farthest, farthest + 1, dtype=torch.float64)
    weights = keys(((offsets - shift) / scale).abs())
    return _normalised(weights[:, None] * weights)


def normalised(kernel: Tensor) -> Tensor:
    """The kernel divided by its sum, so that it keeps the brightness of an image.

    Raises:
        ValueError: a sum that is not above 0.
    """
    total = kernel.double().sum()
    if not 0 < total < math.inf:
        raise ValueError(f"kernel: expected a sum above 0, got {total.item():.4g}; it would leave no image")
    return (kernel.double() / total).to(kernel.dtype if kernel.is_floating_point() else torch.float32)


def _normalised(weights: Tensor) -> Tensor:
    return (weights / weights.sum()).float()


def _offsets(side: int) -> Tensor:
    _check_side(side, 1)
    return torch.arange(side, dtype=torch.float64) - side // 2


def _check_side(side: int, least: int) -> None:
    if not isinstance(side, int) or side < least or side % 2 == 0:
        raise ValueError(f"side: expected an odd number of at least {least} pixels, got {side}")


def _turned(offsets: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates of every pixel along and across an axis at `angle` degrees."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    down, right = offsets[:, None], offsets[None]
    return right * cosine + down * sine, down * cosine - right * sine


def _drawn(path: Tensor, side: int) -> Tensor:
    """The points of a path, (2, N) from the centre, each spread over the four pixels around it."""
    kernel = torch.zeros(side, side, dtype=torch.float64)
    corner = path.floor()
    share = path - corner
    for down in (0, 1):
        for right in (0, 1):
            weight = (share[0] if down else 1 - share[0]) * (share[1] if right else 1 - share[1])
            row, column = corner.long() + side // 2 + torch.tensor([[down], [right]])
            kernel.index_put_((row, column), weight, accumulate=True)
    return _normalised(kernel)
