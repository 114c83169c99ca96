"""Continuing a photograph beyond its borders: circular blur carries each border to the opposite one."""

import math

import numpy as np
from torch import Tensor

# At the least, pixels by which a photograph is continued so that its borders meet.
LEAST_MARGIN = 8


def periodic(image: np.ndarray, margin: int) -> np.ndarray:
    """An image (C, H, W), continued at the bottom and on the right so that it meets its other borders.

    The continuation goes from a reflection of one border to a reflection of the other. It is at least
    `margin` pixels long, and as much longer as makes FFTs quick.
    """
    return _continued(_continued(image, margin).swapaxes(1, 2), margin).swapaxes(1, 2)


def margin_for(kernel: Tensor, scale: int) -> int:
    """By how many pixels a photograph is continued, so that a kernel reaches no opposite border."""
    return max(LEAST_MARGIN, math.ceil(max(kernel.shape) / scale))


def _continued(image: np.ndarray, margin: int) -> np.ndarray:
    """`periodic` along the last axis."""
    import scipy.fft

    side = image.shape[-1]
    length = scipy.fft.next_fast_len(side + margin, real=True) - side
    share = (np.arange(1, length + 1) / (length + 1)).astype(image.dtype)
    after = image[..., _reflected(np.arange(side, side + length), side)]
    before = image[..., _reflected(np.arange(-length, 0), side)]
    return np.concatenate([image, (1 - share) * after + share * before], -1)


def _reflected(positions: np.ndarray, side: int) -> np.ndarray:
    """Where in 0 to side - 1 positions beyond it are mirrored to, as often as it takes."""
    inside = positions % (2 * side)
    return np.minimum(inside, 2 * side - 1 - inside)
