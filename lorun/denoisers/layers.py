"""Layers that the denoisers have in common."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun_kernels import ConvAct


def conv(in_channels: int, out_channels: int, size: int, activation: str | None = None) -> ConvAct:
    """A convolution of odd `size` that keeps height and width, followed by an activation."""
    return ConvAct(in_channels, out_channels, size, padding=size // 2, activation=activation)


@torch.no_grad()
def zero(layer: nn.Conv2d) -> None:
    """Let a layer give zero, until it is trained."""
    layer.weight.zero_()
    zero_bias(layer)


@torch.no_grad()
def zero_bias(layer: nn.Conv2d) -> None:
    if layer.bias is not None:
        layer.bias.zero_()


def double(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
