"""What CASSI code in the field does: loops of slices over the bands, and data steps of per-band rolls.

Written after the published PyTorch code of the field (TSA-Net, MST, DAUHST): cubes keep the columns that
shifting needs, W + step * (C - 1) of them, and the mask is a shifted 3-D one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 2
Move = Callable[[Tensor, int], Tensor]


def loop_forward(x: Tensor, mask: Tensor) -> Tensor:
    batch, bands, height, width = x.shape
    y = x.new_zeros(batch, height, width + STEP * (bands - 1))
    for band in range(bands):
        y[:, :, STEP * band : STEP * band + width] += mask * x[:, band]
    return y


def loop_adjoint(y: Tensor, mask: Tensor, bands: int) -> Tensor:
    width = y.shape[2] - STEP * (bands - 1)
    x = y.new_empty(y.shape[0], bands, y.shape[1], width)
    for band in range(bands):
        x[:, band] = mask * y[:, :, STEP * band : STEP * band + width]
    return x


def view_adjoint(y: Tensor, mask: Tensor, bands: int) -> Tensor:
    """Shifting back is a view of y; no published code that we know makes use of this."""
    batch, height, columns = y.shape
    rows, pixels = y.stride()[1:]
    shape = batch, bands, height, columns - STEP * (bands - 1)
    return mask * y.as_strided(shape, (y.stride(0), STEP * pixels, rows, pixels))


def pad(x: Tensor) -> Tensor:
    """Add the empty columns that the field carries along."""
    return torch.nn.functional.pad(x, (0, STEP * (x.shape[1] - 1)))


def roll(x: Tensor, sign: int) -> Tensor:
    """Shift every band of a padded cube, or shift it back, in place."""
    for band in range(x.shape[1]):
        x[:, band] = torch.roll(x[:, band], sign * STEP * band, 2)
    return x


def rolled(x: Tensor, sign: int) -> Tensor:
    """The same into new memory, which autograd differentiates faster."""
    return torch.stack([torch.roll(x[:, band], sign * STEP * band, 2) for band in range(x.shape[1])], 1)


def shift_mask(mask: Tensor, bands: int) -> Tensor:
    """The 3-D mask: for each band, the (H, W) mask at the columns where the band is measured."""
    return roll(pad(mask.expand(1, bands, *mask.shape)).contiguous(), 1)


def roll_forward(x: Tensor, shifted_mask: Tensor, move: Move = roll) -> Tensor:
    """The measurement of a padded cube, which `roll` leaves shifted."""
    return (move(x, 1) * shifted_mask).sum(1)


def roll_adjoint(y: Tensor, shifted_mask: Tensor, move: Move = roll) -> Tensor:
    """The adjoint, as a padded cube."""
    return move(_spread(y, shifted_mask), -1)


class RollStep:
    """A data step on padded cubes: shift, multiply, sum, divide, multiply, shift back.

    Outside training it leaves its input shifted, as the published steps do.
    """

    def __init__(self, mask: Tensor, bands: int, hqs: bool) -> None:
        self.shifted_mask = shift_mask(mask, bands)
        self.gram = _reached(self.shifted_mask.square().sum(1)) if hqs else None

    def __call__(self, x: Tensor, y: Tensor, scale: Tensor, training: bool = False) -> Tensor:
        move = rolled if training else roll
        z = move(x, 1)
        residual = y - (z * self.shifted_mask).sum(1)
        return move(z + _spread(_weighted(residual, scale, self.gram), self.shifted_mask), -1)


class LoopStep:
    """A data step by `loop_forward` and `loop_adjoint`, on cubes without padding."""

    def __init__(self, mask: Tensor, bands: int, hqs: bool) -> None:
        self.mask = mask
        self.gram = _reached(loop_forward(mask.expand(1, bands, *mask.shape), mask)) if hqs else None

    def __call__(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        weight = _weighted(y - loop_forward(x, self.mask), scale, self.gram)
        return x + loop_adjoint(weight, self.mask, x.shape[1])


def _spread(y: Tensor, shifted_mask: Tensor) -> Tensor:
    return y.unsqueeze(1).repeat(1, shifted_mask.shape[1], 1, 1) * shifted_mask


def _reached(gram: Tensor) -> Tensor:
    """The diagonal of Phi Phi^T, with 1 to divide by where no open mask element reaches a pixel."""
    return torch.where(gram == 0, 1, gram)


def _weighted(residual: Tensor, scale: Tensor, gram: Tensor | None) -> Tensor:
    return scale * residual if gram is None else residual / (gram + scale)
