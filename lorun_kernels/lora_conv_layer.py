"""nn.Conv2d with a low-rank adapter beside a weight that may be shared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lorun_kernels import reference
from lorun_kernels._checks import check_input
from lorun_kernels.adapted import (
    MERGED_WEIGHT,
    check_rank_dropout,
    check_shared_eagerly,
    choose_rank,
    drop_ranks,
    recorded_call,
)
from lorun_kernels.adapted_layer import AdaptedLayer, check_source, share
from lorun_kernels.adapter_shapes import FORMS, factor_shapes, largest_rank
from lorun_kernels.backends import lora_backend, uses_reference
from lorun_kernels.conv_act import ConvAct, PaddingMode, Size, activation_repr
from lorun_kernels.lent_weights import lent_weight
from lorun_kernels.lora_conv import (
    add_residual,
    check_activation,
    check_images,
    resolve_padding_of_both,
)
from lorun_kernels.recomputed_weights import as_called, recomputed_weights


class FusedLoRAConv2d(AdaptedLayer, nn.Conv2d):
    """`nn.Conv2d` with a low-rank adapter: ``W = weight + scaling * (lora_up @ lora_down)``, Eq. 4.

    It takes every argument of `nn.Conv2d`, has its parameter names, returns its memory format and equals it
    while `lora_up` is zero, which it is at the start. The state dict of an `nn.Conv2d` loads without
    renaming, also strictly: the adapter stays as it is. :class:`lorun_kernels.ConvAct` is the same layer
    without an adapter.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as `nn.Conv2d` takes them.
        rank: the adapter's rank, 1 to ``min(out_channels/groups, in_channels)``, or in the factored form to
            the smaller side of its matrix; None takes it from `gamma`.
        gamma: a percentage in (0, 100]; the rank is then ``ceil(min(in_channels, out_channels)*gamma/100)``
            (Eq. 12 of arXiv 2602.18697), and at most the bound above.
        form: ``"reshape"`` (Eq. 4 of that paper) or ``"factored"``; :func:`lorun_kernels.lora_conv2d` gives
            the shapes. ``"full"`` is an additive weight in place of factors.
        scaling: any float; multiplies what the adapter adds.
        rank_dropout: the probability with which each rank is left out of a training step, in [0, 1).
        activation: None, ``"relu"``, ``"gelu"`` or ``"leaky_relu"``, applied to the result; a residual that
            `forward` is given is added after it (:func:`lorun_kernels.lora_conv2d_act`).
        negative_slope: the slope of the leaky ReLU below zero, any number.

    A grouped layer (a depthwise one, say) whose Eq. 4 adapter would be no smaller than its weight gets a full
    additive weight instead, `lora_delta`, zero at the start; `rank`, `lora_up` and `lora_down` are then None.
    Give a `rank` or ``form="factored"`` for a low-rank adapter there.

    `weight` reads as base and adapter together, so that code that uses it without calling the layer (for the
    transpose of a convolution, or to fold a batch norm into it) gets what the layer applies; `base_weight` is
    the Parameter alone. `state_dict` and `parameters` hold the base as ``weight``.

    Raises:
        ValueError: a rank, gamma, form or activation outside these ranges, or what `nn.Conv2d` refuses.
        TypeError: a negative_slope that is not a number.
    """

    # For layers that were pickled before these attributes existed.
    activation: str | None = None
    negative_slope: float = 0.01

    def __init__(
        self,
        in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, *,
        rank: int | None = None, gamma: float = 10, form: str = "reshape", scaling: float = 1.0,
        activation: str | None = None, negative_slope: float = 0.01, rank_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            *(padding_mode, device, dtype),
        )
        check_activation("FusedLoRAConv2d", activation, negative_slope)
        self.activation = activation
        self.negative_slope = negative_slope
        self._adapt(rank, gamma, form, scaling, rank_dropout)

    def _adapt(self, rank: int | None, gamma: float, form: str, scaling: float, rank_dropout: float) -> None:
        """Add the adapter to a convolution that has everything else."""
        if form not in FORMS:
            raise ValueError(f"FusedLoRAConv2d: form must be one of {FORMS}, got {form!r}")
        check_rank_dropout(rank_dropout)
        shape = tuple(self.base_weight.shape)
        largest = largest_rank(shape, form, self.groups)
        chosen = choose_rank("FusedLoRAConv2d", self.in_channels, self.out_channels, largest, rank, gamma)
        up, down = factor_shapes(shape, form, chosen, self.groups)
        no_smaller = math.prod(up) + math.prod(down) >= math.prod(shape)
        whole = form == "full" or (rank is None and form == "reshape" and self.groups > 1 and no_smaller)
        self.form, self.scaling, self.rank_dropout = form, scaling, rank_dropout
        self.rank = None if whole else chosen
        self._add_adapter("weight", self.adapters()["weight"])

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, *, rank: int | None = None, gamma: float = 10, form: str = "reshape",
        scaling: float = 1.0, activation: str | None = None, negative_slope: float | None = None,
        rank_dropout: float = 0.0, freeze: bool = True,
    ) -> FusedLoRAConv2d:  # fmt: skip
        """Adapt `conv` without copying it: the result holds conv's own `weight` and `bias` Parameters.

        Several results of one `conv` therefore share them. The adapter starts at zero, on conv's device, in
        its dtype.

        Args:
            conv: an `nn.Conv2d` or a :class:`lorun_kernels.ConvAct`, or a subclass that computes as they do.
            rank, gamma, form, scaling, rank_dropout: as for the constructor.
            activation, negative_slope: as for the constructor; None takes those of a ConvAct.
            freeze: whether weight and bias stop requiring gradients, for all that share them.

        Raises:
            TypeError: `conv` is not an `nn.Conv2d`, is adapted already, computes its weight, has no weight
                yet, or has hooks or a forward of its own, which would be lost: `add_adapter` keeps them.
            ValueError: as for the constructor.
        """
        check_source("from_conv", "nn.Conv2d", conv, (ConvAct, nn.Conv2d))
        if isinstance(conv, ConvAct):
            activation = conv.activation if activation is None else activation
            negative_slope = conv.negative_slope if negative_slope is None else negative_slope
        shape: Any = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        shape += (conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, "meta")
        adapter: Any = {"rank": rank, "gamma": gamma, "form": form, "scaling": scaling}
        slope = 0.01 if negative_slope is None else negative_slope
        layer = cls(*shape, **adapter, activation=activation, negative_slope=slope, rank_dropout=rank_dropout)
        return share(layer, conv, freeze)

    def extra_repr(self) -> str:
        activation = activation_repr(self.activation, self.negative_slope)
        return f"{super().extra_repr()}, form={self.form!r}{activation}"

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``activation(conv(cat([input, input2], 1))) + residual``; see `lorun_kernels.lora_conv2d_act`."""
        # nn.Conv2d has checked every argument but the images: a call needs no more Python than this.
        if isinstance(input, Proxy):
            return recorded_call(self, input, input2=input2, residual=residual)
        weight = cast(Tensor, self._parameters["weight"])
        check_shared_eagerly(self, "weight")
        check_input("lora_conv2d", input, weight)
        check_images(input2=input2, residual=residual)
        padding: str | Sequence[int] = self.padding
        if self.padding_mode != "zeros":
            input, input2 = self._pad(input), None if input2 is None else self._pad(input2)
            padding = (0, 0)
        up, lent = self.lora_up, lent_weight(self, input)
        if up is None or up.dtype != weight.dtype or MERGED_WEIGHT in self._buffers:
            return self._merged_forward(input, padding, input2, residual)
        if self.rank_dropout and self.training:
            assert self.rank is not None
            up, lent = drop_ranks(up, self.rank, self.rank_dropout), None  # type: ignore[assignment]
        if isinstance(padding, str):
            input, input2, padding = resolve_padding_of_both(
                input, input2, weight, self.stride, padding, self.dilation
            )
        args = (
            input,
            weight,
            up,
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
            lent,
        )

    def _pad(self, image: Tensor) -> Tensor:
        return F.pad(image, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def _merged_forward(
        self, input: Tensor, padding: str | Sequence[int], input2: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        """Through torch's own convolution with W; autograd keeps no W either."""
        both = input if input2 is None else torch.cat([input, input2], -3)
        with recomputed_weights():
            weight = as_called(self.merged_weight())
            output = F.conv2d(both, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        output = reference.activate(output, self.activation, self.negative_slope)
        return add_residual(output, residual)
