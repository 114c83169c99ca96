"""Snapshots of every form, whose Phi can be built entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CassiSample:
    batch: int = 2
    bands: int = 5
    height: int = 3
    width: int = 7
    step: int | tuple[int, ...] = 2

    @property
    def offsets(self) -> list[int]:
        if isinstance(self.step, int):
            return [self.step * band for band in range(self.bands)]
        return list(self.step)

    @property
    def measured(self) -> int:
        return self.width + max(self.offsets)

    @property
    def cube_shape(self) -> tuple[int, ...]:
        return (self.batch, self.bands, self.height, self.width)

    def draw(self, mask_dim: int, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and a mask, of which one row and a third of the rest are closed."""
        x = torch.randn(self.cube_shape, dtype=torch.float64)
        y = torch.randn(self.batch, self.height, self.measured, dtype=torch.float64)
        mask = torch.rand(self.cube_shape[4 - mask_dim :], dtype=torch.float64)
        mask = mask * (torch.rand_like(mask) > 1 / 3)
        mask[..., 0, :] = 0
        return x.to(dtype), y.to(dtype), mask.to(dtype)

    def dense_phi(self, mask: Tensor) -> Tensor:
        """Phi of every sample as a matrix, entry by entry: (B, H * W', C * H * W)."""
        full = mask.double().expand(self.cube_shape)
        b, c, h, w = self.cube_shape
        phi = torch.zeros(b, h, self.measured, c, h, w, dtype=torch.float64)
        for band, offset in enumerate(self.offsets):
            for row in range(h):
                for column in range(w):
                    phi[:, row, column + offset, band, row, column] = full[:, band, row, column]
        return phi.reshape(b, h * self.measured, c * h * w)


SAMPLES = {
    "step 2": CassiSample(),
    "step 0": CassiSample(step=0),
    "step 1, 8 bands": CassiSample(bands=8, width=13, step=1),
    "step 3, wider than the row": CassiSample(bands=6, width=4, step=3),
    "one band": CassiSample(bands=1),
    "one column": CassiSample(width=1),
    "one pixel": CassiSample(batch=1, bands=1, height=1, width=1),
    "29 bands": CassiSample(batch=1, bands=29, height=2, width=31),
    "irregular": CassiSample(bands=4, step=(3, 0, 7, 3)),
    "shifted from the start": CassiSample(bands=3, step=(2, 4, 6)),
}
