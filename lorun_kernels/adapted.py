"""The base class of the adapted layers: the adapter's parameters, its rank, its start, and its state dict."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor, nn

from lorun_kernels.lora_merge import merge_lora


class Adapted(nn.Module):
    """A layer whose weight, which it may share with others, has an adapter beside it."""

    weight: Tensor
    bias: Tensor | None
    rank: int | None
    scaling: float
    form: str
    lora_up: nn.Parameter | None
    lora_down: nn.Parameter | None
    lora_delta: nn.Parameter | None

    def _add_adapter(self, up: tuple[int, int] | None, down: tuple[int, int] | None, like: Tensor) -> None:
        """Add factors of these shapes, or a full additive weight if they are None; `like` is the base."""

        def parameter(shape: tuple[int, ...] | None) -> nn.Parameter | None:
            if shape is None:
                return None
            return nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))

        self.lora_up = parameter(up)
        self.lora_down = parameter(down)
        self.lora_delta = parameter(tuple(like.shape) if up is None else None)
        self.reset_adapter()

    def _factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """`lora_up` and `lora_down` of a layer that has a rank."""
        assert self.lora_up is not None and self.lora_down is not None
        return self.lora_up, self.lora_down

    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Start again: `lora_up` or `lora_delta` is zero, `lora_down` is N(0, 1 / its number of columns)."""
        if self.lora_delta is not None:
            self.lora_delta.zero_()
            return
        up, down = self._factors()
        up.zero_()
        down.normal_(std=down.shape[1] ** -0.5)

    def merged_weight(self) -> Tensor:
        """The weight that the layer applies, in the shape, dtype and layout of `weight`.

        It is ``weight + scaling * (lora_up @ lora_down).view_as(weight)``, Eq. 4 of arXiv 2602.18697, or
        ``weight + scaling * lora_delta``; differentiable once in every tensor.
        """
        if self.lora_delta is not None:
            return self.weight + self.scaling * self.lora_delta
        return merge_lora(self.weight, *self._factors(), self.scaling, self.form)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # The state dict of a plain layer means an adapter that adds nothing, not missing keys.
        names = [name for name in ("lora_up", "lora_down", "lora_delta") if getattr(self, name) is not None]
        if prefix + "weight" in state_dict and not any(prefix + name in state_dict for name in names):
            state_dict = dict(state_dict)
            for name in names:
                value = getattr(self, name).detach()
                state_dict[prefix + name] = value if name == "lora_down" else torch.zeros_like(value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        adapter = "full delta" if self.rank is None else f"rank={self.rank}"
        scaling = "" if self.scaling == 1.0 else f", scaling={self.scaling}"
        return f"{super().extra_repr()}, {adapter}{scaling}"


Layer = TypeVar("Layer", bound=Adapted)


def choose_rank(
    owner: str, in_channels: int, out_channels: int, largest: int, rank: int | None, gamma: float
) -> int:
    """`rank` if it is given, else that of Eq. 12, ceil(min(in, out) * gamma / 100), at most `largest`."""
    if rank is None:
        if not 0 < gamma <= 100:
            raise ValueError(f"{owner}: gamma must be a percentage in (0, 100], got {gamma}")
        return min(_eq12_rank(in_channels, out_channels, gamma), largest)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise ValueError(
            f"{owner}: rank must be an int between 1 and {largest} for this layer, got {rank!r}; "
            "choose a smaller rank, or leave it to gamma"
        )
    return rank


def _eq12_rank(in_channels: int, out_channels: int, gamma: float) -> int:
    # In exact arithmetic: 30 channels at 10 % are 3, never 4.
    percent = Fraction(gamma).limit_denominator(10**6)
    return max(1, math.ceil(min(in_channels, out_channels) * percent / 100))


def check_source(method: str, expected: str, source: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse (TypeError) a layer that `method` cannot adapt in place."""
    if not isinstance(source, kind):
        raise TypeError(f"{method}: expected an {expected}, got {type(source).__name__}")
    if isinstance(source, Adapted):
        raise TypeError(f"{method}: {type(source).__name__} has an adapter already; adapt its base layer")
    if not isinstance(source._parameters.get("weight"), nn.Parameter):
        raise TypeError(f"{method}: the layer's weight is computed (parametrized or normed); undo that first")


def share(layer: Layer, source: nn.Conv2d | nn.Linear, freeze: bool) -> Layer:
    """Give a layer that was built on the meta device the Parameters of `source` and a real adapter."""
    layer.weight, layer.bias = source.weight, source.bias
    if layer.rank is None:
        layer._add_adapter(None, None, source.weight)
    else:
        up, down = layer._factors()
        layer._add_adapter((up.shape[0], up.shape[1]), (down.shape[0], down.shape[1]), source.weight)
    if freeze:
        layer.weight.requires_grad_(False)
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    return layer.train(source.training)
