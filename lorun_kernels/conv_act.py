"""The plain twin of FusedLoRAConv2d: the same call without an adapter."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lorun_kernels.lora_conv import activation_name
from lorun_kernels.reference import activate


class ConvAct(nn.Conv2d):
    """`nn.Conv2d`, then an activation, then a residual; takes a second input as if concatenated.

    ``activation(conv(cat([input, input2], 1))) + residual``: build a network of these, and
    :meth:`FusedLoRAConv2d.from_conv` adapts each layer on its own weight, with its activation; a GPU kernel
    then computes it in one pass. It takes every argument of `nn.Conv2d`, and its state dict is one of
    `nn.Conv2d`.

    Args:
        activation: None, ``"relu"``, ``"gelu"`` (the exact one) or ``"leaky_relu"``, applied to the result
            before a residual is added.
        negative_slope: of the leaky ReLU, any number.

    Raises:
        ValueError: an unknown activation, or what `nn.Conv2d` refuses.
        TypeError: a slope that is no number.
    """

    def __init__(
        self, *args: Any, activation: str | None = None, negative_slope: float = 0.01, **options: Any
    ) -> None:
        check_activation("ConvAct", activation, negative_slope)
        super().__init__(*args, **options)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve images (N, C, H, W) or (C, H, W).

        Args:
            input2: further channels of the same images.
            residual: in the result's shape; added after the activation.

        Raises:
            ValueError: a residual of another shape.
        """
        both = input if input2 is None else torch.cat([input, input2], -3)
        return finish(super().forward(both), self.activation, self.negative_slope, residual)

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{super().extra_repr()}{activation}"


def check_activation(owner: str, activation: str | None, negative_slope: Any) -> None:
    """Raise if these are no activation and slope."""
    activation_name(activation)
    if not isinstance(negative_slope, Real):
        raise TypeError(f"{owner}: negative_slope must be a number, got {negative_slope!r}")


def finish(output: Tensor, activation: str | None, negative_slope: float, residual: Tensor | None) -> Tensor:
    """What follows a convolution: the activation, then the residual."""
    output = activate(output, activation, negative_slope)
    if residual is None:
        return output
    if residual.shape != output.shape:
        raise ValueError(
            f"lora_conv2d: residual must have the output's shape, {list(output.shape)}, "
            f"got {list(residual.shape)}"
        )
    return output + residual
