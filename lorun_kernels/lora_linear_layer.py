"""nn.Linear with a low-rank adapter beside a weight that may be shared."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lorun_kernels.adapted import (
    MERGED_WEIGHT,
    check_rank_dropout,
    check_shared_eagerly,
    choose_rank,
    drop_ranks,
    recorded_call,
)
from lorun_kernels.adapted_layer import AdaptedLayer, check_source, share
from lorun_kernels.adapter_shapes import FORMS
from lorun_kernels.lora_linear import lora_linear
from lorun_kernels.recomputed_weights import as_called, recomputed_weights


class FusedLoRALinear(AdaptedLayer, nn.Linear):  # type: ignore[misc]  # torch says that bias is never None
    """`nn.Linear` with a low-rank adapter: ``W = weight + scaling * lora_up @ lora_down``.

    It takes every argument of `nn.Linear`, has its parameter names and equals it while `lora_up` is zero,
    which it is at the start. The state dict of an `nn.Linear` loads without renaming, also strictly. An input
    is ``(..., in_features)``, in the dtype of the weight unless autocast converts it, and the result
    ``(..., out_features)``; see :func:`lorun_kernels.lora_linear`.

    Args:
        in_features, out_features, bias, device, dtype: as `nn.Linear` takes them.
        rank: the adapter's rank, 1 to ``min(in_features, out_features)``; None takes it from `gamma`.
        gamma: a percentage in (0, 100]; the rank is then ``ceil(min(in_features, out_features)*gamma/100)``
            (Eq. 12 of arXiv 2602.18697).
        scaling: any float; multiplies what the adapter adds.
        form: "reshape" or "factored", which are the same here, or "full": an additive weight, `lora_delta`.
        rank_dropout: the probability with which each rank is left out of a training step, in [0, 1).

    `weight` reads as base and adapter together, `base_weight` is the Parameter alone, as in
    :class:`FusedLoRAConv2d`.

    Raises:
        ValueError: a rank, gamma, form or rank_dropout outside these ranges.
    """

    form = "reshape"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        gamma: float = 10,
        scaling: float = 1.0,
        form: str = "reshape",
        rank_dropout: float = 0.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._adapt(rank, gamma, form, scaling, rank_dropout)

    def _adapt(self, rank: int | None, gamma: float, form: str, scaling: float, rank_dropout: float) -> None:
        """Add the adapter to a linear layer that has everything else."""
        if form not in FORMS:
            raise ValueError(f"FusedLoRALinear: form must be one of {FORMS}, got {form!r}")
        check_rank_dropout(rank_dropout)
        sides = (self.in_features, self.out_features)
        chosen = choose_rank("FusedLoRALinear", *sides, min(sides), rank, gamma)
        self.form, self.scaling, self.rank_dropout = form, scaling, rank_dropout
        self.rank = None if form == "full" else chosen
        self._add_adapter("weight", self.adapters()["weight"])

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        gamma: float = 10,
        scaling: float = 1.0,
        form: str = "reshape",
        rank_dropout: float = 0.0,
        freeze: bool = True,
    ) -> FusedLoRALinear:
        """Adapt `linear` without copying it, as :meth:`FusedLoRAConv2d.from_conv` adapts a convolution.

        Raises:
            TypeError: a layer that is not an `nn.Linear`, or as `FusedLoRAConv2d.from_conv`.
            ValueError: as for the constructor.
        """
        check_source("from_linear", "nn.Linear", linear, (nn.Linear,))
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            rank=rank,
            gamma=gamma,
            scaling=scaling,
            form=form,
            rank_dropout=rank_dropout,
        )
        return share(layer, linear, freeze)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return recorded_call(self, input)
        weight, up = cast(Tensor, self._parameters["weight"]), self.lora_up
        check_shared_eagerly(self, "weight")
        if up is None or up.dtype != weight.dtype or MERGED_WEIGHT in self._buffers:
            with recomputed_weights():
                return F.linear(input, as_called(self.merged_weight()), self.bias)
        if self.rank_dropout and self.training:
            assert self.rank is not None
            up = drop_ranks(up, self.rank, self.rank_dropout)  # type: ignore[assignment]
        return lora_linear(input, weight, up, self._factors()[1], self.bias, self.scaling)
