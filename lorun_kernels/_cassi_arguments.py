"""The arguments of the CASSI functions as their ops take them; the ops check, in C++, that shapes agree."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from lorun_kernels import reference

MAX_BANDS = 256
# The kernels count in 32 bits: this is far beyond any sensor, and far below what they hold.
MAX_OFFSET = 2**30 - 1


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def offsets_of(op: str, step: reference.Step, bands: int) -> list[int]:
    """The offset of each of `bands` bands."""
    if not 1 <= bands <= MAX_BANDS:
        raise ValueError(f"{op}: between 1 and {MAX_BANDS} bands are supported, got {bands}")
    constant = type(step) is int
    offsets = [step * band for band in range(bands)] if type(step) is int else _given_offsets(op, step)
    if len(offsets) != bands:
        raise ValueError(f"{op}: step must have one offset for each of the {bands} bands, got {len(offsets)}")
    ends = (offsets[0], offsets[-1]) if constant else offsets
    if min(ends) < 0 or max(ends) > MAX_OFFSET:
        raise ValueError(
            f"{op}: step must shift every band to the right, by at most {MAX_OFFSET} columns, got {step}"
        )
    return offsets


def _given_offsets(op: str, step: reference.Step) -> list[int]:
    if isinstance(step, Tensor):
        if step.dim() != 1 or step.is_floating_point() or step.is_complex() or step.dtype == torch.bool:
            raise ValueError(
                f"{op}: step as a tensor must hold one integer offset for each band, "
                f"got {step.dtype} of shape {list(step.shape)}"
            )
        return step.tolist()
    if isinstance(step, list | tuple) and all(type(offset) is int for offset in step):
        return list(step)
    raise TypeError(
        f"{op}: step must be an int, or one int for each band as a list, a tuple or a tensor, got {step!r}; "
        "convert NumPy numbers with int() and arrays with .tolist()"
    )


def checked_bands(op: str, bands: int) -> int:
    if type(bands) is not int or not 1 <= bands <= MAX_BANDS:
        raise ValueError(f"{op}: bands must be an int between 1 and {MAX_BANDS}, got {bands!r}")
    return bands


def with_batch(op: str, name: str, x: Tensor) -> Tensor:
    """The cube as (B, C, H, W), from that or from (C, H, W)."""
    if x.dim() not in (3, 4):
        raise ValueError(f"{op}: {name} must be (B, C, H, W) or (C, H, W), got shape {list(x.shape)}")
    return x if x.dim() == 4 else x.unsqueeze(0)


def step_size(op: str, name: str, value: float | Tensor, x: Tensor, least: float) -> Tensor:
    """rho or mu as the op takes it: () or (B,), in the dtype of the sums."""
    dtype = accumulator(x.dtype)
    if not isinstance(value, Tensor):
        most = torch.finfo(dtype).max
        if not isinstance(value, Real) or isinstance(value, bool) or not max(least, -most) <= value <= most:
            raise ValueError(
                f"{op}: {name} must be a finite number{' >= 0' if least == 0 else ''} or a tensor, "
                f"got {value!r}"
            )
        return torch.full((), float(value), dtype=dtype, device=x.device)
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}; convert it with .float()")
    if value.dim() > 0 and value.numel() == 1:
        value = value.reshape(())
    elif value.dim() > 1 and value.numel() == value.shape[0]:
        value = value.reshape(-1)
    # Asked here because .to(dtype) takes a microsecond to find that there is nothing to do.
    return value if value.dtype == dtype else value.to(dtype)
