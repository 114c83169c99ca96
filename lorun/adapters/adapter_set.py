"""Adapters as tensors: what is saved, exchanged and swapped, apart from any module."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one weight: two factors, or the full additive weight.

    Attributes:
        shape: of the adapted weight, such as ``(Cout, Cin/groups, kh, kw)`` or ``(out, in)``.
        form: "reshape" (Eq. 4 of arXiv 2602.18697), "factored", or "full" for an additive weight.
        up, down: the left and right factors; None in form "full".
        delta: the additive weight, in `shape`; None in the other forms.
        scaling: multiplies the product of the factors, or `delta`.
        groups: of the convolution; the shapes of the "reshape" factors depend on it.
    """

    shape: tuple[int, ...]
    form: str
    up: Tensor | None = None
    down: Tensor | None = None
    delta: Tensor | None = None
    scaling: float = 1.0
    groups: int = 1

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """up and down, or delta."""
        return tuple(t for t in (self.up, self.down, self.delta) if t is not None)

    def added(self) -> Tensor:
        """What the adapter adds to its weight, in `shape`."""
        if self.delta is not None:
            return self.scaling * self.delta
        assert self.up is not None and self.down is not None
        return self.scaling * (self.up @ self.down).reshape(self.shape)


# By the full name of the adapted parameter in its model, such as "stages.0.conv.weight".
AdapterSet = Mapping[str, LayerAdapter]


def adapters_are_finite(adapters: AdapterSet) -> bool:
    """Whether no tensor holds NaN or Inf."""
    return all(
        bool(torch.isfinite(tensor).all()) for adapter in adapters.values() for tensor in adapter.tensors
    )
