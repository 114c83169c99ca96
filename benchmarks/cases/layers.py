"""The low-rank convolutions of the shipped networks, read off the networks themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import or_

import torch
from torch import nn

import lorun
from lorun.checkpoint import read_config
from lorun.zoo import shipped_path
from lorun_kernels import FusedLoRAConv2d

SIZE = 256


@dataclass(frozen=True)
class Layer:
    """A convolution as a denoiser calls it: activation(conv(cat(input, input2)) + bias) + residual.

    Args:
        second_in_channels: how many of in_channels, the last ones, are the second input's; 0: there is none.
        rank: of Eq. 12; None: the layer has a full additive weight instead of an adapter.
    """

    in_channels: int
    second_in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    height: int
    width: int
    activation: str | None
    residual: bool
    rank: int | None

    @property
    def out_size(self) -> tuple[int, int]:
        sides = zip((self.height, self.width), self.kernel, self.stride, self.padding, strict=True)
        height, width = ((side + 2 * pad - size) // step + 1 for side, size, step, pad in sides)
        return height, width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def factor_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of lora_up and lora_down in Eq. 4."""
        kh, kw = self.kernel
        inner = (self.rank or 0) * min(kh, kw)
        return (self.out_channels // self.groups * kh, inner), (inner, self.in_channels * kw)

    @property
    def name(self) -> str:
        """Such as "56+28->28 3x3 @256 gelu"."""
        second = self.second_in_channels
        channels = f"{self.in_channels - second}+{second}" if second else str(self.in_channels)
        parts = [f"{channels}->{self.out_channels}", "x".join(map(str, self.kernel))]
        parts.append(f"@{self.height}" if self.height == self.width else f"@{self.height}x{self.width}")
        parts += [f"stride {self.stride[0]}"] if max(self.stride) > 1 else []
        parts += ["depthwise"] if self.groups > 1 else []
        parts += [self.activation] if self.activation else []
        return " ".join([*parts, "+residual"] if self.residual else parts)


def _layer(module: FusedLoRAConv2d, input, input2=None, residual=None) -> Layer:
    return Layer(
        in_channels=module.in_channels,
        second_in_channels=0 if input2 is None else input2.shape[1],
        out_channels=module.out_channels,
        kernel=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        groups=module.groups,
        height=input.shape[2],
        width=input.shape[3],
        activation=module.activation,
        residual=residual is not None,
        rank=module.rank,
    )


def denoiser_inputs(denoiser: nn.Module, image: torch.Tensor, level: float | torch.Tensor) -> tuple:
    """What a stage calls its denoiser with; the image also serves as the correction, if one is taken."""
    level = torch.as_tensor(level, device=image.device, dtype=image.dtype)
    return (image, level, image) if denoiser.takes_correction else (image, level)


def called_layers(denoiser: nn.Module, channels: int, size: int = SIZE) -> list[Layer]:
    """Every low-rank convolution of a stage's denoiser, in the order in which an image passes through them.

    The denoiser is moved to the meta device: only shapes are computed.
    """
    called: list[Layer] = []

    def record(module, args, kwargs):
        called.append(_layer(module, *args, **kwargs))

    denoiser.to("meta")
    hooks = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in denoiser.modules()
        if isinstance(module, FusedLoRAConv2d)
    ]
    with torch.no_grad():
        denoiser(*denoiser_inputs(denoiser, torch.empty(1, channels, size, size, device="meta"), 0.1))
    for hook in hooks:
        hook.remove()
    return called


def adapted_networks() -> list[str]:
    """The shipped models that have adapters on a U-Net, for whose layers the kernels are tuned."""
    configs = {name: read_config(shipped_path(name)) for name in lorun.list_models()}
    return [name for name, of in configs.items() if of.variant == "lorun" and of.denoiser == "unet"]


@cache
def network_layers(name: str) -> tuple[Layer, ...]:
    """The layers of one stage of a shipped network, in the order in which an image passes through them."""
    network = lorun.create_model(name, pretrained=False)
    return tuple(called_layers(network.denoisers[0], network.denoiser.channels))


def layer_table() -> dict[Layer, int]:
    """The distinct layers of one stage, over all shipped networks, and how often a stage has each at most."""
    return dict(reduce(or_, (Counter(network_layers(name)) for name in adapted_networks())))


def bare(layer: Layer) -> Layer:
    """The same convolution with only a bias after it, and its input in one piece."""
    return replace(layer, second_in_channels=0, activation=None, residual=False)


def bare_table() -> dict[Layer, int]:
    """The distinct layers with only a bias, and how often a stage has each."""
    bares: dict[Layer, int] = {}
    for layer, count in layer_table().items():
        bares[bare(layer)] = bares.get(bare(layer), 0) + count
    return bares


def named_layer(name: str) -> Layer:
    """The layer of `layer_table` or `bare_table` that has this name.

    Raises:
        ValueError: if there is none.
    """
    named = {layer.name: layer for layer in (*bare_table(), *layer_table())}
    if name not in named:
        raise ValueError(f"layer: expected one of {', '.join(named)}, got {name!r}")
    return named[name]


def network_blocks() -> dict[str, list[Layer]]:
    """The residual blocks of every shipped network's denoiser, by name."""
    return dict(reduce(or_, (blocks(list(network_layers(name))) for name in adapted_networks())))


def blocks(called: list[Layer]) -> dict[str, list[Layer]]:
    """The residual blocks of a network, also with the convolution before them if that has two inputs.

    Args:
        called: the layers in the order in which an image passes through them.
    """
    found = {}
    for i, last in enumerate(called):
        if i == 0 or not last.residual or last.in_channels != last.out_channels:
            continue
        place = f"{last.out_channels} channels @{last.height}"
        found[f"residual block, {place}"] = called[i - 1 : i + 1]
        if i > 1 and called[i - 2].second_in_channels:
            found[f"decoder on a concatenation, {place}"] = called[i - 2 : i + 1]
    return found
