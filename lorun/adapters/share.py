"""One base, many adapters: views of a module that share its parameters and own only low-rank updates."""

import copy

from torch import nn

from lorun.denoisers.conv import ConvAct
from lorun_kernels import FusedLoRAConv2d, FusedLoRALinear


def adapted_view(base: nn.Module, gamma: float = 10, form: str = "reshape") -> nn.Module:
    """A module that computes as `base` does, shares all of its parameters, and adapts its layers.

    Every nn.Conv2d, ConvAct and nn.Linear becomes a FusedLoRAConv2d or FusedLoRALinear on the same weight,
    with an adapter of its own of the rank of Eq. 12. A depthwise convolution mixes no channels and has few
    weights: its adapter is a full additive weight, `lora_delta`, in both forms. The caller freezes the base.
    """
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    view = copy.deepcopy(base, memo=shared)
    for parent in list(view.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Conv2d, ConvAct):
                setattr(parent, name, _adapted_conv(child, gamma, form))
            elif type(child) is nn.Linear:
                setattr(parent, name, FusedLoRALinear.from_linear(child, gamma=gamma, freeze=False))
    return view


def _adapted_conv(conv: nn.Conv2d, gamma: float, form: str) -> FusedLoRAConv2d:
    # Of a depthwise layer, "reshape" makes the full additive weight; "factored" would leave all channels one
    # common filter of rank 1.
    depthwise = conv.groups == conv.in_channels > 1
    return FusedLoRAConv2d.from_conv(conv, gamma=gamma, form="reshape" if depthwise else form, freeze=False)
