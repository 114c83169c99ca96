"""Argument checks that need Python: the ops themselves check shapes, devices and ranks in C++."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensors(op: str, **tensors: object) -> None:
    """Raise a TypeError that names the first argument that is not a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def check_input_dtype(op: str, input: Tensor, weight: Tensor) -> None:
    """Refuse an input of another dtype than the weight's, except where autocast converts it."""
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(
            f"{op}: input must have the dtype of weight, {weight.dtype}, got {input.dtype}; "
            "convert one of them with .to(dtype) or run under torch.autocast"
        )
