"""nn.Conv2d with what a denoiser's convolutions end in: the plain twin of FusedLoRAConv2d."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lorun_kernels import reference
from lorun_kernels.lora_conv import add_residual, check_activation


class ConvAct(nn.Conv2d):
    """`nn.Conv2d`, then an activation, then a residual, and a second input as if it were concatenated.

    It computes ``activation(conv(cat([input, input2], 1))) + residual``, and is the plain twin of
    :class:`lorun_kernels.FusedLoRAConv2d`: it takes the same arguments, those of the adapter aside, and
    `FusedLoRAConv2d.from_conv` adapts it with its activation, on its own Parameters. Its parameters, their
    start and their state dict are those of `nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as `nn.Conv2d` takes them.
        activation: None, ``"relu"``, ``"gelu"`` (the exact one, ``F.gelu(x)``) or ``"leaky_relu"``.
        negative_slope: the slope of the leaky ReLU below zero, any number.

    Raises:
        ValueError: an unknown activation, or what `nn.Conv2d` refuses.
        TypeError: a negative_slope that is not a number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        check_activation("ConvAct", activation, negative_slope)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation
        self.negative_slope = negative_slope

    def extra_repr(self) -> str:
        return super().extra_repr() + activation_repr(self.activation, self.negative_slope)

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve `input`, activate, add `residual`.

        Args:
            input: ``(N, Cin, H, W)`` or ``(Cin, H, W)``, floating point, any values, in the dtype of the
                weight unless autocast converts it.
            input2: further channels of `input`, in its shape except in them: the channels of both are Cin.
            residual: in the shape of the result.

        Returns:
            ``(N, Cout, H', W')`` or ``(Cout, H', W')``.

        Raises:
            ValueError: a residual of another shape.
            RuntimeError: what `nn.Conv2d` or `torch.cat` refuses.
        """
        output = super().forward(input if input2 is None else torch.cat([input, input2], -3))
        output = reference.activate(output, self.activation, self.negative_slope)
        return add_residual(output, residual)


def activation_repr(activation: str | None, negative_slope: float) -> str:
    """What the repr of a layer says of its activation."""
    slope = f", negative_slope={negative_slope}" if activation == "leaky_relu" else ""
    return "" if activation is None else f", activation={activation!r}{slope}"
