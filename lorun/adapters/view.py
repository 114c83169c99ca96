"""Views of a module: they share its parameters, and have adapters of their own."""

import copy
import math

from torch import nn

from lorun_kernels import (
    ConvAct,
    adapted_weights,
    add_adapter,
    choose_rank,
    factor_shapes,
    groups_of,
    largest_rank,
    share_with,
    weight_channels,
)


def adapted_view(base: nn.Module, gamma: float = 10, form: str = "reshape") -> nn.Module:
    """A module that computes as `base` does, shares all of its parameters, and adapts its weights.

    Every nn.Conv2d, ConvAct and nn.Linear, `base` itself included, becomes a FusedLoRAConv2d or
    FusedLoRALinear on the same weight, with an adapter of its own, and every other weight of two or more
    dimensions is adapted where it is (:func:`lorun_kernels.add_adapter`). A layer that has several names is
    adapted once, and stays one layer. A depthwise convolution mixes no channels and has few weights: its
    adapter is a full additive weight, `lora_delta`, in both forms, and so is that of any other module's
    weight whose factors would be no smaller. The view has buffers of its own, such as running statistics.
    The caller freezes the base. For whole stages, with step sizes of their own, there is
    :func:`lorun.share_stages`, which leaves what is small to each.

    Args:
        base: anybody's module.
        gamma: rank of the adapters in percent of a layer's channels, in (0, 100] (Eq. 12).
        form: "reshape" (Eq. 4 of arXiv 2602.18697) or "factored".

    Raises:
        ValueError: a gamma or form outside these, or a base without a weight to adapt.
    """
    view = copy.deepcopy(base, memo={id(tensor): tensor for tensor in base.parameters()})
    for original, module in zip(base.modules(), view.modules(), strict=True):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                share_with(module, name, original, name)
    for module in _outside_in(view):
        for name in list(module._parameters):
            _adapt_own(module, name, gamma, form)
    if not adapted_weights(view):
        raise ValueError(
            f"base: {type(base).__name__} has no weight of two or more dimensions that an adapter could "
            "change, so its views could not differ"
        )
    return view


def _outside_in(view: nn.Module) -> list[nn.Module]:
    """Every module once: of each, first its children, then theirs; the module itself comes last."""
    children = [child for parent in view.modules() for child in parent.children()]
    return list(dict.fromkeys([*children, view]))


def _adapt_own(module: nn.Module, name: str, gamma: float, form: str) -> None:
    parameter = module._parameters[name]
    if parameter is None or parameter.dim() < 2:
        return
    shape, groups = tuple(parameter.shape), groups_of(module, name)
    if type(module) in (nn.Conv2d, ConvAct, nn.Linear):
        depthwise = isinstance(module, nn.Conv2d) and groups == module.in_channels > 1
        add_adapter(module, name, gamma=gamma, form="full" if depthwise else form)
    elif parameter.numel() > max(shape):
        rank = choose_rank(
            name, *weight_channels(shape, groups), largest_rank(shape, form, groups), None, gamma
        )
        factors = sum(map(math.prod, factor_shapes(shape, form, rank, groups)))
        add_adapter(module, name, rank=rank, form="full" if factors >= math.prod(shape) else form)
