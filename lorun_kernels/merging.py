"""Adapters merged into their weights: for inference and back, or for good, as ordinary modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lorun_kernels.adapted import KINDS, Adapted, AdaptedWeight, cache_name, tensor_name
from lorun_kernels.adapting import adapted_weights, plain_class
from lorun_kernels.conv_act import ConvAct
from lorun_kernels.lora_conv_layer import FusedLoRAConv2d
from lorun_kernels.lora_linear_layer import FusedLoRALinear
from lorun_kernels.sharing import ATTRIBUTE
from lorun_kernels.unwrap import unwrapped

ADAPTER_ATTRIBUTES = ("rank", "form", "scaling", "rank_dropout", "_adapters", "_plain_class", ATTRIBUTE)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Let every adapted layer in a model use its merged weight as it is, and return the model.

    Each stage then holds weights of its own, as K separate denoisers would, and a call no longer merges.
    Bases and adapters stay as they are: `unmerge` gives them back bit for bit. A merged layer does not train:
    a call in training mode with gradients raises a RuntimeError, and so do loading and changing adapters.

    Raises:
        ValueError: a merged weight holds NaN or Inf; nothing has been merged then.
    """
    merged = {name: (weight, _finite(name, weight)) for name, weight in adapted_weights(model).items()}
    for weight, value in merged.values():
        weight.module.register_buffer(cache_name(weight.name), value, persistent=False)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Take back what `merge` did, and return the model: base and adapters are as they were."""
    for weight in adapted_weights(model).values():
        weight.module._buffers.pop(cache_name(weight.name), None)
    return model


def is_merged(model: nn.Module) -> bool:
    """Whether any layer of a model uses a merged weight."""
    return any(weight.is_merged for weight in adapted_weights(model).values())


@torch.no_grad()
def to_plain(model: nn.Module) -> nn.Module:
    """The same network without LoRun: ordinary modules, each with a merged weight of its own.

    A copy of `model` in which every module has the class that it had before it was adapted (a
    FusedLoRAConv2d that was made as such becomes an nn.Conv2d, or a :class:`ConvAct` if it has an
    activation), and in which no two stages share a Parameter that was shared for LoRun. Its state dict has
    the names of the original network, whose code loads it; what reads ordinary modules (ONNX, torch.fx,
    counters of FLOPs) reads it.

    Raises:
        ValueError: a merged weight holds NaN or Inf.
    """
    plain = copy.deepcopy(unwrapped(model))
    weights = adapted_weights(plain)
    merged = {name: _finite(name, weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        _drop_adapter(weight)
        weight.module._parameters[weight.name] = nn.Parameter(merged[name])
    for module in plain.modules():
        _give_own_parameters(module)
        if isinstance(module, Adapted):
            _become_plain(module)
    return plain


def merge_all(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of K separate denoisers, as the original network's code loads it.

    Raises:
        ValueError: a merged weight holds NaN or Inf.
    """
    return to_plain(model).state_dict()


def _finite(name: str, weight: AdaptedWeight) -> Tensor:
    merged = weight.merged()
    if not torch.isfinite(merged).all():
        raise ValueError(
            f"{name}: base and adapter together hold NaN or Inf; load an adapter from before they did"
        )
    return merged.detach()


def _drop_adapter(weight: AdaptedWeight) -> None:
    for kind in KINDS:
        del weight.module._parameters[tensor_name(kind, weight.name)]
    weight.module._buffers.pop(cache_name(weight.name), None)


def _give_own_parameters(module: nn.Module) -> None:
    """Undo the sharing of what has no adapter: each module gets a copy."""
    for name in module.__dict__.get(ATTRIBUTE, {}):
        parameter = module._parameters[name]
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().clone())
    module.__dict__.pop(ATTRIBUTE, None)


def _become_plain(module: Any) -> None:
    kind = plain_class(module)
    if kind is FusedLoRAConv2d or (kind is nn.Conv2d and isinstance(module, FusedLoRAConv2d)):
        kind = nn.Conv2d if module.activation is None else ConvAct
    elif kind is FusedLoRALinear:
        kind = nn.Linear
    for name in ADAPTER_ATTRIBUTES:
        module.__dict__.pop(name, None)
    if kind is nn.Conv2d:
        for name in ("activation", "negative_slope"):
            module.__dict__.pop(name, None)
    module.__class__ = kind
