"""CASSI problems for tests of the CUDA kernels, the operators band by band, and how far rounding may lead."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from lorun_kernels import reference

from .launchers import accumulator

# Rounding of the output for the 16-bit types; of sums of up to 256 terms for the others.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int] = (2, 7, 2, 13)
    step: int | tuple[int, ...] = 2
    mask: str = "2-D"
    layout: str = "contiguous"

    @property
    def offsets(self) -> list[int]:
        return reference.band_offsets(
            self.step if isinstance(self.step, int) else list(self.step), self.shape[1]
        )

    @property
    def measured(self) -> tuple[int, int, int]:
        batch, _, height, width = self.shape
        return batch, height, width + max(self.offsets)

    def cube(self, dtype: torch.dtype) -> torch.Tensor:
        batch, bands, height, width = self.shape
        if self.layout == "channels_last":
            return torch.randn(batch, height, width, bands).to(dtype).permute(0, 3, 1, 2)
        if self.layout == "sliced":
            return torch.randn(batch, bands + 2, height, width + 3).to(dtype)[:, 1:-1, :, 1:-2]
        if self.layout == "sliced channels_last":
            wide = torch.randn(batch, height, width, bands + 3).to(dtype)
            return wide[..., 1:-2].permute(0, 3, 1, 2)
        if self.layout == "aligned slice":
            wide = torch.randn(batch, height, width, bands + 8).to(dtype)
            return wide[..., 4:-4].permute(0, 3, 1, 2)
        if self.layout == "even columns":
            return torch.randn(batch, bands, height, 2 * width).to(dtype)[..., ::2]
        if self.layout == "expanded":
            return torch.randn(1, 1, height, width).to(dtype).expand(self.shape)
        return torch.randn(self.shape).to(dtype)

    def mask_values(self, dtype: torch.dtype) -> torch.Tensor:
        """A mask that is closed in some places, and at one column in all bands."""
        batch, bands, height, width = self.shape
        shape = {
            "2-D": (height, width),
            "3-D": (bands, height, width),
            "per sample": self.shape,
            "2-D per sample": (batch, 1, height, width),
        }[self.mask]
        mask = torch.rand(shape) * (torch.rand(shape) > 0.3)
        mask[..., width // 2 :: 7] = 0
        return mask.to(dtype)

    def scales(self, dtype: torch.dtype) -> torch.Tensor:
        return (torch.rand(self.shape[0], dtype=torch.float64) + 0.25).to(accumulator(dtype))


CASES = {
    "plain": Case(),
    "3-D": Case(mask="3-D"),
    "per sample": Case(mask="per sample"),
    "one pixel": Case((1, 1, 1, 1)),
    "one column": Case((2, 3, 3, 1), step=1),
    "one band": Case((1, 1, 3, 31), step=3, layout="channels_last"),
    "two bands, no step": Case((2, 2, 1, 33), step=0, mask="3-D"),
    "2-D per sample": Case(mask="2-D per sample"),
    "20 columns": Case((1, 3, 2, 20)),
    "32 columns": Case((1, 3, 2, 32), step=1),
    "28 bands": Case((1, 28, 2, 5)),
    "29 bands, channels last": Case((2, 29, 1, 5), step=3, layout="channels_last"),
    "31 bands, channels last": Case((1, 31, 2, 13), step=1, layout="channels_last", mask="3-D"),
    "32 bands, channels last": Case((2, 32, 2, 9), layout="channels_last", mask="per sample"),
    "28 bands, channels last": Case((1, 28, 2, 33), layout="channels_last"),
    "irregular": Case((2, 5, 2, 13), step=(4, 0, 9, 4, 40)),
    "irregular 3-D": Case((1, 4, 3, 5), step=(7, 2, 2, 0), mask="3-D", layout="channels_last"),
    "sliced": Case(layout="sliced"),
    "sliced channels last": Case(layout="sliced channels_last"),
    "aligned slice": Case((2, 12, 2, 5), layout="aligned slice"),
    "even columns": Case(layout="even columns", mask="3-D"),
    "expanded": Case(layout="expanded"),
    "wider than a block": Case((1, 2, 1, 650), step=1),
}

# Rows of a cube that do not fit in the memory that shrink_shared_memory leaves.
LARGE_CASES = [
    Case((2, 31, 1, 13), step=1),
    Case((1, 31, 2, 13), step=1, mask="3-D", layout="channels_last"),
    Case((1, 33, 1, 13), step=0, mask="per sample", layout="sliced"),
]


def shrink_shared_memory(library: ctypes.CDLL, case: Case, dtype: torch.dtype) -> None:
    """Leaves room for the measured rows of the backward pass and for its sum, not for a row of the cube."""
    limit = 176 * torch.empty((), dtype=accumulator(dtype)).element_size()
    assert limit < case.shape[1] * case.shape[3] * dtype.itemsize
    library.cuda_on_host_set_shared_limit(limit)


def assert_close(value: torch.Tensor, expected: torch.Tensor) -> None:
    """The largest difference, over the largest expected magnitude, is within the tolerance of the dtype."""
    assert value.shape == expected.shape
    expected = expected.double()
    error = (value.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= TOLERANCE[value.dtype]


def loop_forward(x, mask, offsets):
    """Phi x band by band, in float64."""
    batch, bands, height, width = x.shape
    y = torch.zeros(batch, height, width + max(offsets), dtype=torch.float64)
    for c, offset in enumerate(offsets):
        y[..., offset : offset + width] += mask.double().expand(x.shape)[:, c] * x[:, c].double()
    return y


def loop_adjoint(y, mask, offsets, shape):
    windows = [y[..., offset : offset + shape[-1]] for offset in offsets]
    return mask.double() * torch.stack(windows, 1).double()
