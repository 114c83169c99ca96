"""A blur kernel that sums to 1, and what was done to make it so."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorun.errors import ArgumentError
from lorun.physics.blur_kernels import normalised

# A sum this close to 1 is rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class NamedKernel:
    """A kernel (kh, kw) float32 that sums to 1, how tables call it, and what was done to it."""

    name: str
    kernel: Tensor
    notes: tuple[str, ...] = ()


def named_kernel(name: str, array: np.ndarray, source: str = "kernel") -> NamedKernel:
    """An array (kh, kw) as a kernel that sums to 1; its notes say what that took, and where its centre is.

    Args:
        source: where it comes from, for errors.

    Raises:
        ArgumentError: an array of another shape or dtype, with NaN or Inf, or whose sum is not above 0.
    """
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise ArgumentError(
            "kernel", f"kernel: {source}: expected (kh, kw) numbers, got {array.dtype} {array.shape}"
        )
    kernel = torch.from_numpy(np.ascontiguousarray(array, np.float64))
    if not torch.isfinite(kernel).all():
        raise ArgumentError("kernel", f"kernel: {source}: holds NaN or Inf; fix those first")
    total = kernel.sum().item()
    if not total > 0:
        raise ArgumentError(
            "kernel", f"kernel: {source}: expected a sum above 0, got {total:.4g}; it would leave no image"
        )
    notes = []
    if abs(total - 1) > ROUNDING:
        notes.append(f"the kernel was divided by its sum, {total:.4g}")
    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        notes.append(
            f"the centre of the {height}x{width} kernel is row {height // 2}, column {width // 2}, counted "
            "from 0"
        )
    return NamedKernel(name, normalised(kernel).float(), tuple(notes))
