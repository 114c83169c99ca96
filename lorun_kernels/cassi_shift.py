"""Dispersion alone: bands are moved to the columns in which the sensor sees them, and back."""

from __future__ import annotations

from torch import Tensor

from lorun_kernels import reference
from lorun_kernels._cassi_arguments import offsets_of
from lorun_kernels._checks import check_tensors


def shift(x: Tensor, step: reference.Step = 2) -> Tensor:
    """Move every band to the right by its offset, into zeros: ``(..., C, H, W)`` to ``(..., C, H, W')``.

    Args:
        x: a cube or a mask of any dtype, with C >= 1 bands in the third dimension from the end.
        step: as in :func:`cassi_forward`; ``W' = W + max(o_c)``.

    Raises:
        ValueError: fewer than three dimensions, or a step that does not fit.
        TypeError: `x` is not a tensor, or step is neither an int nor integers.
    """
    return reference.shift(x, _stack_offsets("shift", "x", x, step))


def unshift(y: Tensor, step: reference.Step = 2) -> Tensor:
    """Undo :func:`shift`: ``(..., C, H, W')`` to ``(..., C, H, W)``, dropping the columns outside.

    This brings a stored shifted mask to the unshifted coordinates that the other functions take.

    Raises:
        ValueError: fewer than three dimensions, a step that does not fit, or one that leaves no column.
        TypeError: `y` is not a tensor, or step is neither an int nor integers.
    """
    offsets = _stack_offsets("unshift", "y", y, step)
    if y.shape[-1] <= max(offsets):
        raise ValueError(
            f"unshift: y must be wider than the largest offset, {max(offsets)}, got shape {list(y.shape)}"
        )
    return reference.unshift(y, offsets)


def _stack_offsets(op: str, name: str, stack: Tensor, step: reference.Step) -> list[int]:
    check_tensors(op, **{name: stack})
    if stack.dim() < 3 or stack.shape[-3] == 0:
        raise ValueError(f"{op}: {name} must be (..., C, H, W) with C >= 1, got shape {list(stack.shape)}")
    return offsets_of(op, step, stack.shape[-3])
