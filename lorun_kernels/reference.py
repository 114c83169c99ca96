"""Every op in plain PyTorch: the definition that the backends are tested against.

Shapes and meanings are those of the public functions of the same name; nothing is checked here, and
autograd differentiates these as often as it likes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def merge_lora(
    weight: Tensor, lora_up: Tensor, lora_down: Tensor, scaling: float = 1.0, form: str = "reshape"
) -> Tensor:
    """W = W0 + scaling * (up @ down).view_as(W0): Eq. 4, and the same line in the factored form."""
    del form  # it fixes the shapes of up and down, and they decide the rest
    return weight + scaling * (lora_up @ lora_down).view(weight.shape)


def lora_conv2d(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    scaling: float = 1.0,
    form: str = "reshape",
) -> Tensor:
    merged = merge_lora(weight, lora_up, lora_down, scaling, form)
    return F.conv2d(input, merged, bias, stride, padding, dilation, groups)


def lora_linear(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    return F.linear(input, merge_lora(weight, lora_up, lora_down, scaling), bias)
