"""nn.Conv2d with a low-rank adapter beside a weight that may be shared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun_kernels import reference
from lorun_kernels._checks import check_input
from lorun_kernels.adapted import Adapted, check_source, choose_rank, share
from lorun_kernels.backends import lora_backend, uses_reference
from lorun_kernels.conv_act import activation_repr
from lorun_kernels.lent_weights import lent_weight
from lorun_kernels.lora_conv import add_residual, check_activation, check_images, resolve_padding_of_both

FORMS = ("reshape", "factored")


class FusedLoRAConv2d(Adapted, nn.Conv2d):
    """`nn.Conv2d` with a low-rank adapter: ``W = weight + scaling * (lora_up @ lora_down)``, Eq. 4.

    It takes every argument of `nn.Conv2d`, has its parameter names, returns its memory format and equals it
    while `lora_up` is zero, which it is at the start. The state dict of an `nn.Conv2d` loads without
    renaming,
    also strictly: the adapter then adds nothing. :class:`lorun_kernels.ConvAct` is the same layer without an
    adapter.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as `nn.Conv2d` takes them.
        rank: the adapter's rank, 1 to ``min(out_channels/groups, in_channels)``; None takes it from `gamma`.
        gamma: a percentage in (0, 100]; the rank is then ``ceil(min(in_channels, out_channels)*gamma/100)``
            (Eq. 12 of arXiv 2602.18697), and at most the bound above.
        form: ``"reshape"`` (Eq. 4 of that paper) or ``"factored"``; :func:`lorun_kernels.lora_conv2d` gives
            the shapes.
        scaling: any float; multiplies the product of the factors.
        activation: None, ``"relu"``, ``"gelu"`` or ``"leaky_relu"``, applied to the result; a residual that
            `forward` is given is added after it (:func:`lorun_kernels.lora_conv2d_act`).
        negative_slope: the slope of the leaky ReLU below zero, any number.

    A grouped layer (a depthwise one, say) whose Eq. 4 adapter would be no smaller than its weight gets a full
    additive weight instead, `lora_delta`, zero at the start; `rank`, `lora_up` and `lora_down` are then None.
    Give a `rank` or ``form="factored"`` for a low-rank adapter there.

    Raises:
        ValueError: a rank, gamma, form or activation outside these ranges, or what `nn.Conv2d` refuses.
        TypeError: a negative_slope that is not a number.
    """

    # For layers that were pickled before these attributes existed.
    activation: str | None = None
    negative_slope: float = 0.01

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
        rank: int | None = None,
        gamma: float = 10,
        form: str = "reshape",
        scaling: float = 1.0,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
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
        if form not in FORMS:
            raise ValueError(f"FusedLoRAConv2d: form must be one of {FORMS}, got {form!r}")
        self.form = form
        self.scaling = scaling
        check_activation("FusedLoRAConv2d", activation, negative_slope)
        self.activation = activation
        self.negative_slope = negative_slope
        largest = min(out_channels // groups, in_channels)
        chosen = choose_rank("FusedLoRAConv2d", in_channels, out_channels, largest, rank, gamma)
        up, down = self._adapter_shapes(chosen)
        adapter_size = math.prod(up) + math.prod(down)
        if rank is None and form == "reshape" and groups > 1 and adapter_size >= self.weight.numel():
            self.rank = None
            self._add_adapter(None, None, self.weight)
        else:
            self.rank = chosen
            self._add_adapter(up, down, self.weight)

    def _adapter_shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        kh, kw = self.kernel_size
        if self.form == "factored":
            return (self.out_channels, rank), (rank, self.in_channels // self.groups * kh * kw)
        inner = rank * min(kh, kw)
        return (self.out_channels // self.groups * kh, inner), (inner, self.in_channels * kw)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | None = None,
        gamma: float = 10,
        form: str = "reshape",
        scaling: float = 1.0,
        activation: str | None = None,
        negative_slope: float | None = None,
        freeze: bool = True,
    ) -> FusedLoRAConv2d:
        """Adapt `conv` without copying it: the result holds conv's own `weight` and `bias` Parameters.

        Several results of one `conv` therefore share them. The adapter starts at zero, on conv's device, in
        its dtype.

        Args:
            conv: an `nn.Conv2d`, such as a :class:`lorun_kernels.ConvAct`.
            rank, gamma, form, scaling: as for the constructor.
            activation, negative_slope: as for the constructor; None takes conv's own, if it has one.
            freeze: whether weight and bias stop requiring gradients, for all that share them.

        Raises:
            TypeError: `conv` is not an `nn.Conv2d`, is adapted already, or computes its weight.
            ValueError: as for the constructor.
        """
        check_source("from_conv", "nn.Conv2d", conv, nn.Conv2d)
        if activation is None:
            activation = getattr(conv, "activation", None)
        if negative_slope is None:
            negative_slope = getattr(conv, "negative_slope", 0.01)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # torch declares a tuple of any length
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
            rank=rank,
            gamma=gamma,
            form=form,
            scaling=scaling,
            activation=activation,
            negative_slope=negative_slope,
        )
        return share(layer, conv, freeze)

    def extra_repr(self) -> str:
        activation = activation_repr(self.activation, self.negative_slope)
        return f"{super().extra_repr()}, form={self.form!r}{activation}"

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``activation(conv(cat([input, input2], 1))) + residual``; see `lorun_kernels.lora_conv2d_act`."""
        # nn.Conv2d has checked every argument but the images: a call needs no more Python than this.
        weight = self.weight
        check_input("lora_conv2d", input, weight)
        check_images(input2=input2, residual=residual)
        padding: str | Sequence[int] = self.padding
        if self.padding_mode != "zeros":
            input, input2 = self._pad(input), None if input2 is None else self._pad(input2)
            padding = (0, 0)
        if self.rank is None:
            return self._full_forward(input, padding, input2, residual)
        if isinstance(padding, str):
            input, input2, padding = resolve_padding_of_both(
                input, input2, weight, self.stride, padding, self.dilation
            )
        args = (
            input,
            weight,
            self.lora_up,
            self.lora_down,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.scaling,
            self.form,
        )
        if uses_reference():
            return reference.lora_conv2d_act(
                *args,
                activation=self.activation,
                negative_slope=self.negative_slope,
                residual=residual,
                input2=input2,
            )
        return torch.ops.lorun.lora_conv2d.default(
            *args,
            input2,
            residual,
            self.activation or "none",
            self.negative_slope,
            lora_backend(input, weight),
            lent_weight(self, input),
        )

    def _pad(self, image: Tensor) -> Tensor:
        return F.pad(image, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def _full_forward(
        self, input: Tensor, padding: str | Sequence[int], input2: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        both = input if input2 is None else torch.cat([input, input2], -3)
        output = F.conv2d(
            both, self.merged_weight(), self.bias, self.stride, padding, self.dilation, self.groups
        )
        output = reference.activate(output, self.activation, self.negative_slope)
        return add_residual(output, residual)
