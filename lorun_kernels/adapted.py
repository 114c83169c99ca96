"""What FusedLoRAConv2d and FusedLoRALinear share: an adapter beside a weight that may be shared."""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorun_kernels.lora_merge import merge_lora


def _eq12_rank(in_channels: int, out_channels: int, gamma: float) -> int:
    """ceil(min(in, out) * gamma / 100), in exact arithmetic: 30 channels at 10 % are 3, never 4."""
    percent = Fraction(gamma).limit_denominator(10**6)
    return max(1, math.ceil(min(in_channels, out_channels) * percent / 100))


def choose_rank(
    owner: str, in_channels: int, out_channels: int, largest: int, rank: int | None, gamma: float
) -> int:
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


class Adapted(nn.Module):
    """What the adapted layers share: the adapter's parameters, their start, and loading without them."""

    weight: Tensor
    rank: int | None
    scaling: float
    form: str
    lora_up: nn.Parameter | None
    lora_down: nn.Parameter | None
    lora_delta: nn.Parameter | None

    # The thread that runs a stage of `StageWeights`, and W as that has merged it; any other thread merges W.
    _stage_weight: tuple[int, Tensor] | None = None

    def _add_adapter(self, up: tuple[int, int] | None, down: tuple[int, int] | None, like: Tensor) -> None:
        """Add an adapter of these shapes, or a full additive weight where they are None."""

        def parameter(shape: tuple[int, ...] | None) -> nn.Parameter | None:
            if shape is None:
                return None
            return nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))

        self.lora_up = parameter(up)
        self.lora_down = parameter(down)
        self.lora_delta = parameter(tuple(like.shape) if up is None else None)
        self.reset_adapter()

    @property
    def stage_weight(self) -> Tensor | None:
        """W as `StageWeights` has merged it for this thread; None if each call merges it."""
        if self._stage_weight is None:
            return None
        thread, weight = self._stage_weight
        return weight if torch.compiler.is_compiling() or thread == threading.get_ident() else None

    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Start the adapter again: a zero `lora_up` (or `lora_delta`) and a Gaussian `lora_down`."""
        if self.lora_delta is not None:
            self.lora_delta.zero_()
            return
        up, down = self._factors()
        up.zero_()
        down.normal_(std=down.shape[1] ** -0.5)

    def _factors(self) -> tuple[Tensor, Tensor]:
        assert self.lora_up is not None and self.lora_down is not None
        return self.lora_up, self.lora_down

    def merged_weight(self) -> Tensor:
        """The full weight W0 + scaling * (up @ down) that the layer applies, in the weight's layout."""
        if self.lora_delta is not None:
            return self.weight + self.scaling * self.lora_delta
        return merge_lora(self.weight, *self._factors(), self.scaling, self.form)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # A plain layer's state dict means an adapter that adds nothing, not missing keys.
        names = [name for name in ("lora_up", "lora_down", "lora_delta") if getattr(self, name) is not None]
        if prefix + "weight" in state_dict and not any(prefix + name in state_dict for name in names):
            state_dict = dict(state_dict)
            for name in names:
                value = getattr(self, name).detach()
                state_dict[prefix + name] = value if name == "lora_down" else torch.zeros_like(value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict:
        # The stage that happens to run is no part of a copy or a file.
        return {name: value for name, value in self.__dict__.items() if name != "_stage_weight"}

    def extra_repr(self) -> str:
        adapter = "full delta" if self.rank is None else f"rank={self.rank}"
        scaling = "" if self.scaling == 1.0 else f", scaling={self.scaling}"
        return f"{super().extra_repr()}, {adapter}{scaling}"


AnyAdapted = TypeVar("AnyAdapted", bound=Adapted)


def check_source(method: str, expected: str, source: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(source, kind):
        raise TypeError(f"{method}: expected an {expected}, got {type(source).__name__}")
    if isinstance(source, Adapted):
        raise TypeError(f"{method}: {type(source).__name__} has an adapter already; adapt its base layer")
    if not isinstance(source._parameters.get("weight"), nn.Parameter):
        raise TypeError(f"{method}: the layer's weight is computed (parametrized or normed); undo that first")


def share(layer: AnyAdapted, source: nn.Conv2d | nn.Linear, freeze: bool) -> AnyAdapted:
    """Give a layer that was built on the meta device the source's Parameters and a real adapter."""
    layer.weight, layer.bias = source.weight, source.bias  # type: ignore[assignment]
    layer._add_adapter(_shape(layer.lora_up), _shape(layer.lora_down), source.weight)
    if freeze:
        layer.weight.requires_grad_(False)
        if source.bias is not None:
            source.bias.requires_grad_(False)
    return layer.train(source.training)


def _shape(factor: Tensor | None) -> tuple[int, int] | None:
    return None if factor is None else (factor.shape[0], factor.shape[1])
