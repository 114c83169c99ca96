"""What CASSI code in the field does: per-band loops of slices, and data steps of per-band rolls.

Written after the published PyTorch code of the field (TSA-Net, MST, DAUHST): cubes are kept with the columns
that shifting needs, W + step * (C - 1) of them, beside a shifted 3-D mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 2


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


def pad(x: Tensor) -> Tensor:
    """A cube with the empty columns that the field carries along."""
    return torch.nn.functional.pad(x, (0, STEP * (x.shape[1] - 1)))


def roll(x: Tensor, sign: int) -> Tensor:
    """Shift every band of a padded cube, or shift it back, in place."""
    for band in range(x.shape[1]):
        x[:, band] = torch.roll(x[:, band], sign * STEP * band, 2)
    return x


def rolled(x: Tensor, sign: int) -> Tensor:
    """The same into new memory, which autograd differentiates faster."""
    return torch.stack([torch.roll(x[:, band], sign * STEP * band, 2) for band in range(x.shape[1])], 1)


class RollStep:
    """A data step on padded cubes: shift, multiply, sum, divide, multiply, shift back."""

    def __init__(self, mask: Tensor, bands: int, hqs: bool) -> None:
        self.hqs = hqs
        self.shifted_mask = roll(pad(mask.expand(1, bands, *mask.shape)).contiguous(), 1)
        self.gram = self.shifted_mask.square().sum(1)
        self.gram[self.gram == 0] = 1

    def __call__(self, x: Tensor, y: Tensor, scale: Tensor, training: bool = False) -> Tensor:
        move = rolled if training else roll
        z = move(x, 1)
        residual = y - (z * self.shifted_mask).sum(1)
        weight = residual / (self.gram + scale) if self.hqs else scale * residual
        back = weight.unsqueeze(1).repeat(1, x.shape[1], 1, 1) * self.shifted_mask
        return move(z + back, -1)
