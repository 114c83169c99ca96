"""Bicubic interpolation between pixels that stand at the upper left of what they become."""

import torch
from torch import Tensor


def enlarge(image: Tensor, scale: int) -> Tensor:
    """Interpolate: (..., h, w) -> (..., h * scale, w * scale), where pixel (i, j) stays, at (i, j) * scale.

    Keys 1981 with a = -0.5. Images run around the border, as `SuperResolution` has them.

    Usual libraries put the pixel into the middle of scale x scale instead, which moves the image by
    (scale - 1) / 2 pixels against one that was decimated by keeping upper-left pixels.
    """
    weights = interpolation_weights(scale).to(image)
    return _in_rows(_in_rows(image, weights).mT, weights).mT


def interpolation_weights(scale: int) -> Tensor:
    """(scale, 4) float64: at each of `scale` steps from pixel 0 to 1, what pixels -1, 0, 1 and 2 weigh."""
    steps = torch.arange(scale, dtype=torch.float64) / scale
    return keys((torch.arange(-1, 3, dtype=torch.float64) - steps[:, None]).abs())


def keys(distance: Tensor) -> Tensor:
    """The cubic convolution kernel of Keys 1981 with a = -0.5, at distances of at least 0."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def _in_rows(image: Tensor, weights: Tensor) -> Tensor:
    """Interpolate along the last axis."""
    neighbours = torch.stack([image.roll(shift, -1) for shift in (1, 0, -1, -2)], -1)
    return (neighbours @ weights.T).flatten(-2)
