"""Other ways to compute one of our adapted layers: the merged weight, loralib, peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.peers.packages import package
from lorun_kernels import FusedLoRAConv2d, FusedLoRALinear

Adapted = FusedLoRAConv2d | FusedLoRALinear


@dataclass(frozen=True)
class Twin:
    """A layer with the values of one of ours, and its trained factors: up and down, in this order."""

    module: nn.Module
    factors: tuple[nn.Parameter, ...] = ()


def merged(layer: Adapted, base: nn.Module) -> Twin:
    """The plain layer on the merged weight, as loralib has it after eval() and peft after merge()."""
    plain = copy.deepcopy(base)
    with torch.no_grad():
        plain.weight.copy_(layer.merged_weight())
    return Twin(plain)


def loralib(layer: Adapted) -> Twin:
    """loralib's layer, the same function: its B is `lora_up` and its A is `lora_down`.

    It stays in train(), where its factors are apart; eval() would merge them.
    """
    library, scaling_of_one = package("loralib"), {"r": layer.rank, "lora_alpha": layer.rank}
    if isinstance(layer, nn.Conv2d):
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size[0]
        twin = library.Conv2d(*sizes, padding=layer.padding, **scaling_of_one)
        own = "conv."
    else:
        twin, own = library.Linear(layer.in_features, layer.out_features, **scaling_of_one), ""
    twin = _like(layer, twin)
    base = {f"{own}weight": layer.base_weight, f"{own}bias": layer.bias}
    twin.load_state_dict(base | {"lora_A": layer.lora_down, "lora_B": layer.lora_up})
    twin.get_parameter(f"{own}bias").requires_grad_(False)
    return Twin(twin, (twin.lora_B, twin.lora_A))


def compiled_loralib(layer: Adapted) -> Twin:
    """The same under torch.compile."""
    twin = loralib(layer)
    return replace(twin, module=torch.compile(twin.module))


def peft(layer: Adapted, base: nn.Module) -> Twin:
    """peft's layer, which applies one factor after the other: for a convolution this is our factored form."""
    library = package("peft")
    config = library.LoraConfig(r=layer.rank, lora_alpha=layer.rank, target_modules=["0"])
    twin = _like(layer, library.inject_adapter_in_model(config, nn.Sequential(copy.deepcopy(base)))[0])
    up, down = (factor["default"].weight for factor in (twin.lora_B, twin.lora_A))
    with torch.no_grad():
        up.copy_(layer.lora_up.view_as(up))
        down.copy_(layer.lora_down.view_as(down))
    return Twin(twin, (up, down))


def _like(layer: Adapted, twin: nn.Module) -> nn.Module:
    """Move to our layer's device, dtype and weight layout."""
    return twin.to(layer.base_weight.device, layer.base_weight.dtype, memory_format=torch.channels_last)
