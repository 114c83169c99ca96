"""The checks of arguments that need Python; the ops themselves check shapes and ranks, in C++."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensors(op: str, **tensors: Tensor) -> None:
    """Name the first argument that is not a tensor (TypeError) or not on the device of the first."""
    first, device = None, None
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
        if first is None:
            first, device = name, value.device
        elif value.device != device:
            raise ValueError(
                f"{op}: {name} must be on the device of {first}, {device}, got {value.device}; "
                "move one of them with .to(device)"
            )


def check_input(op: str, input: Tensor, weight: Tensor) -> None:
    """As `check_tensors`, for the input; its dtype must be the weight's unless autocast converts it."""
    if not isinstance(input, Tensor) or input.device != weight.device:
        check_tensors(op, weight=weight, input=input)
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(
            f"{op}: input must have the dtype of weight, {weight.dtype}, got {input.dtype}; "
            "convert one of them with .to(dtype) or run under torch.autocast"
        )
