"""nn.Linear with a low-rank adapter beside a weight that may be shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorun_kernels.adapted import Adapted, check_source, choose_rank, share
from lorun_kernels.lora_linear import lora_linear


class FusedLoRALinear(Adapted, nn.Linear):  # type: ignore[misc]  # torch says that bias is never None
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
        scaling: any float; multiplies the product of the factors.

    Raises:
        ValueError: a rank or gamma outside these ranges.
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
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.scaling = scaling
        largest = min(in_features, out_features)
        self.rank = choose_rank("FusedLoRALinear", in_features, out_features, largest, rank, gamma)
        self._add_adapter((out_features, self.rank), (self.rank, in_features), self.weight)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        gamma: float = 10,
        scaling: float = 1.0,
        freeze: bool = True,
    ) -> FusedLoRALinear:
        """Adapt `linear` without copying it, as :meth:`FusedLoRAConv2d.from_conv` adapts a convolution.

        Raises:
            TypeError: `linear` is not an `nn.Linear`, is adapted already, or computes its weight.
            ValueError: as for the constructor.
        """
        check_source("from_linear", "nn.Linear", linear, nn.Linear)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            rank=rank,
            gamma=gamma,
            scaling=scaling,
        )
        return share(layer, linear, freeze)

    def forward(self, input: Tensor) -> Tensor:
        return lora_linear(input, self.weight, *self._factors(), self.bias, self.scaling)
