"""The convolution that denoisers are built from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvAct(nn.Conv2d):
    """`nn.Conv2d`, then GELU or nothing, then a residual; takes a second input as if concatenated.

    ``activation(conv(cat([input, input2], 1))) + residual``. `lorun.adapters` turns it into a
    `FusedLoRAConv2d` with the same options, which GPU kernels compute in one pass.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, activation: str | None = None):
        if activation not in (None, "gelu"):
            raise ValueError(f'ConvAct: activation must be None or "gelu", got {activation!r}')
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        self.activation = activation

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input if input2 is None else torch.cat([input, input2], -3))
        output = F.gelu(output) if self.activation == "gelu" else output
        return output if residual is None else output + residual
