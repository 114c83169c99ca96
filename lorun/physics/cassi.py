"""Coded-aperture snapshot spectral imaging: a mask codes bands, a prism shifts them, a sensor adds them."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import lorun_kernels as lk
from lorun.physics.physics import Physics, Size
from lorun.physics.smooth_start import smooth_start

Start = Literal["smooth", "average", "shift_back", "adjoint"]


class CASSI(Physics):
    """y = sum over bands of shift(mask_c * x_c): band c of the coded cube, moved right by step * c columns.

    Cubes are (B, C, H, W) in [0, 1]; measurements are (B, H, W + step * (C - 1)), a plain sum (TSA-Net, Meng
    et al. 2020, Eq. 5). Both have the dtype of the mask. Everything runs on the W valid columns; no padded
    cube exists. A CASSI object with its mask is what this library calls a camera.

    Args:
        mask: (H, W), (C, H, W) or (B, C, H, W) in unshifted coordinates, floating point, finite, at least 0
            and not all 0. None leaves it to the camera that is given at each call of a network.
        bands: C.
        step: columns between neighbouring bands, or one offset >= 0 for each band.
        start: what a network starts from. "smooth": the most probable cube if neighbouring pixels have
            similar spectra (`smooth_start`), which is better than GAP-TV; "average": y divided by the
            measurement of a cube of ones and shifted back, so that every band holds the mean of what meets in
            a pixel; "shift_back": y * 2 / C shifted back, as is usual in the field; "adjoint": Phi^T y.
        noise: a module that physics(x) applies to A(x), such as `GaussianNoise` or `ShotNoise`.

    Raises:
        ValueError: an argument that is none of these, or a mask of another shape or with other values.
        TypeError: a mask that is not a floating-point tensor.
    """

    _mask: Tensor | None

    def __init__(
        self,
        mask: Tensor | None = None,
        bands: int = 28,
        step: int | list[int] = 2,
        start: Start = "smooth",
        noise: nn.Module | None = None,
    ):
        super().__init__(noise)
        if start not in get_args(Start):
            raise ValueError(f"start: expected one of {', '.join(get_args(Start))}, got {start!r}")
        check_step(step, bands)
        if mask is not None:
            check_mask(mask, bands)
        self.bands, self.step, self.start_from = bands, step, start
        self.channels = bands
        # Not persistent: a mask belongs to a camera, not to the weights that restore what it measures.
        self.register_buffer("_mask", mask, persistent=False)

    @classmethod
    def from_shifted(cls, mask: Tensor, step: int | list[int] = 2, **options: Any) -> "CASSI":
        """A camera from a stored shifted mask (C, H, W'), the field's `mask_3d_shift`: its own calibration.

        Args:
            mask: band c lies step * c columns to the right; W' = W + step * (C - 1).
            step: as in the constructor.
            options: `start` and `noise` of the constructor.

        Raises:
            ValueError: not three dimensions, or no wider than the largest offset.
        """
        if mask.dim() != 3:
            raise ValueError(f"mask: expected a shifted mask (C, H, W'), got {tuple(mask.shape)}")
        return cls(lk.unshift(mask, step), mask.shape[0], step, **options)

    @property
    def size(self) -> Size | None:
        """(H, W) of the mask in pixels; None without one."""
        return None if self._mask is None else (self._mask.shape[-2], self._mask.shape[-1])

    def for_size(self, size: Size) -> "CASSI":
        """Itself if one mask of `size` = (H, W) serves every sample; else the same with an open mask of it.

        An open mask is 1 everywhere, in the dtype and on the device of this one's, or float32 on the CPU
        if there is none.
        """
        if self._mask is None:
            mask = torch.ones(size)
        elif self.size == size and self._mask.dim() < 4:
            return self
        else:
            mask = self._mask.new_ones(size)
        return CASSI(mask, self.bands, self.step, self.start_from, self.noise)

    @property
    def mask(self) -> Tensor:
        """The mask, (H, W), (C, H, W) or (B, C, H, W).

        Raises:
            ValueError: there is none.
        """
        if self._mask is None:
            raise ValueError(
                "mask: this model holds no mask, because a mask belongs to a camera; "
                "give one at the call: net(y, physics=CASSI(mask))"
            )
        return self._mask

    @property
    def offsets(self) -> list[int]:
        """By how many columns each band is shifted to the right."""
        return [self.step * band for band in range(self.bands)] if isinstance(self.step, int) else self.step

    def A(self, x: Tensor) -> Tensor:
        """Phi x: (B, C, H, W) -> (B, H, W + step * (C - 1)).

        Raises:
            ValueError: x is not a cube of these bands and the mask's size, or there is no mask.
        """
        self._check_cube(x)
        return lk.cassi_forward(x, self.mask, self.step)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Phi^T y: (B, H, W + step * (C - 1)) -> (B, C, H, W), channels_last.

        Raises:
            ValueError, TypeError: y is not a measurement by this camera (`check_measurement`).
        """
        self.check_measurement(y)
        return lk.cassi_adjoint(y, self.mask, self.bands, self.step, memory_format=torch.channels_last)

    def back_project(self, y: Tensor) -> Tensor:
        """Phi^T y, (B, C, H, W), contiguous, of a y that has been checked."""
        return lk.cassi_adjoint(y, self.mask, self.bands, self.step)

    def start(self, y: Tensor) -> Tensor:
        """The cube that a network starts from, (B, C, H, W), channels_last.

        Raises:
            ValueError, TypeError: y is not a measurement by this camera (`check_measurement`).
        """
        if self.start_from == "adjoint":
            return self.A_adjoint(y)
        self.check_measurement(y)
        if self.start_from == "shift_back":
            return self._shift_back(y * 2 / self.bands)
        average = self._shift_back(self._average(y))
        if self.start_from == "average":
            return average
        return smooth_start(self, y, average).contiguous(memory_format=torch.channels_last)

    def _shift_back(self, y: Tensor) -> Tensor:
        open_mask = torch.ones_like(self.mask)
        return lk.cassi_adjoint(y, open_mask, self.bands, self.step, memory_format=torch.channels_last)

    def pgd_step(self, x: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """x - rho * Phi^T (Phi x - y), Eq. 5, in one pass: see `Physics.pgd_step`."""
        return lk.cassi_pgd_step(x, y, self.mask, rho, self.step)

    def hqs_step(self, w: Tensor, y: Tensor, mu: float | Tensor) -> Tensor:
        """(Phi^T Phi + mu I)^-1 (Phi^T y + mu w), Eq. 9, in closed form and one pass: see `Physics.hqs_step`.

        mu may be 0: then the result measures y, and pixels that reach no open detector pixel stay as in w.
        """
        return lk.cassi_hqs_step(w, y, self.mask, mu, self.step)

    def gram(self) -> Tensor:
        """The diagonal of Phi Phi^T, its only entries, in the shape of y; (H, W') if one mask serves all."""
        return lk.cassi_gram(self.mask, self.bands, self.step)

    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError if y is not (B, H, W') for this mask, TypeError if it has another dtype."""
        height, width = self.mask.shape[-2:]
        if y.dtype != self.mask.dtype:
            raise TypeError(f"y: expected the mask's {self.mask.dtype}, got {y.dtype}; convert one of them")
        expected = (height, width + max(self.offsets))
        if y.ndim != 3 or tuple(y.shape[1:]) != expected:
            raise ValueError(
                f"y: expected (B, {expected[0]}, {expected[1]}) for a {height}x{width} mask and {self.bands} "
                f"bands, got {tuple(y.shape)}; is it the mask and the step of this camera?"
            )
        if self.mask.dim() == 4 and y.shape[0] != self.mask.shape[0]:
            raise ValueError(
                f"y: expected {self.mask.shape[0]} measurements, one for each mask, got {y.shape[0]}; "
                "give one mask (C, H, W) for all of them, or one for each"
            )

    def _check_cube(self, x: Tensor) -> None:
        expected = (self.bands, *self.mask.shape[-2:])
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"x: expected a cube (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}; "
                "interpolate other bands, and crop the cube or the mask to one size"
            )

    def _average(self, y: Tensor) -> Tensor:
        """y divided by the measurement of a cube of ones; where that is 0, as in the row's nearest pixel."""
        mask = self.mask if self.mask.dim() == 4 else self.mask.unsqueeze(0)
        ones = torch.ones((), dtype=mask.dtype, device=mask.device)
        cube = ones.expand(mask.shape[0], self.bands, *mask.shape[-2:])
        light = lk.cassi_forward(cube, self.mask, self.step)
        average = y / torch.where(light > 0, light, 1)
        return average.gather(-1, nearest_column(light > 0).expand_as(average))


def nearest_column(measured: Tensor) -> Tensor:
    """For every pixel (..., W), the column of the nearest measured one in its row; 0 if the row has none."""
    width = measured.shape[-1]
    column = torch.arange(width, device=measured.device).expand(measured.shape)
    left = torch.where(measured, column, -width).cummax(-1).values
    right = torch.where(measured, column, 2 * width).flip(-1).cummin(-1).values.flip(-1)
    nearest = torch.where(right - column < column - left, right, left)
    return torch.where((left < 0) & (right >= width), 0, nearest)


def check_step(step: int | list[int], bands: int) -> None:
    """Raise ValueError if `step` is not one for this many bands."""
    if bands < 1:
        raise ValueError(f"bands: expected at least 1, got {bands}")
    offsets = step if isinstance(step, list | tuple) else [step] * bands
    if len(offsets) != bands or not all(type(offset) is int and offset >= 0 for offset in offsets):
        raise ValueError(
            f"step: expected an int of at least 0 columns, or a list of one for each of {bands} bands, "
            f"got {step!r}"
        )


def check_mask(mask: Tensor, bands: int) -> None:
    """Raise ValueError, or TypeError for another type, if this is not a mask for this many bands."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask: expected a floating-point tensor, got {kind}; convert it with torch.as_tensor"
        )
    if mask.dim() not in (2, 3, 4) or mask.numel() == 0:
        raise ValueError(f"mask: expected (H, W), (C, H, W) or (B, C, H, W), got {tuple(mask.shape)}")
    if mask.dim() > 2 and mask.shape[-3] != bands:
        raise ValueError(
            f"mask: expected {bands} bands in dimension {mask.dim() - 3}, got {tuple(mask.shape)}"
        )
    if not (torch.isfinite(mask).all() and mask.min() >= 0 and mask.max() > 0):
        raise ValueError("mask: expected finite values of at least 0, some above it; correct the mask first")
