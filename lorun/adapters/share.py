"""One base, many adapters: views of a module that share its parameters and own only low-rank updates."""

import copy

from torch import nn

from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear


def adapted_view(base: nn.Module, gamma: float = 10, form: str = "reshape") -> nn.Module:
    """A module that computes as `base` does, shares all of its parameters, and adapts its layers.

    Every nn.Conv2d, ConvAct and nn.Linear, `base` itself included, becomes a FusedLoRAConv2d or
    FusedLoRALinear on the same weight, with an adapter of its own. A layer that has several names is adapted
    once, and stays one layer. A depthwise convolution mixes no channels and has few weights: its adapter is a
    full additive weight, `lora_delta`, in both forms. The caller freezes the base.

    Args:
        base: anybody's module. Layers of other classes, subclasses of nn.Conv2d and nn.Linear among them, are
            shared without an adapter.
        gamma: rank of the adapters in percent of a layer's channels, in (0, 100] (Eq. 12).
        form: "reshape" (Eq. 4 of arXiv 2602.18697) or "factored".

    Raises:
        ValueError: a gamma or form outside these.
    """
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    view = copy.deepcopy(base, memo=shared)
    adapted: dict[nn.Module, nn.Module] = {}
    for parent in list(view.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                if child not in adapted:
                    adapted[child] = _adapted(child, gamma, form)
                setattr(parent, name, adapted[child])
    return _adapted(view, gamma, form)


def _adapted(layer: nn.Module, gamma: float, form: str) -> nn.Module:
    """The layer with an adapter; itself, if it is of a class that gets none."""
    if type(layer) is nn.Linear:
        return FusedLoRALinear.from_linear(layer, gamma=gamma, freeze=False)
    if isinstance(layer, nn.Conv2d) and type(layer) in (nn.Conv2d, ConvAct):
        # "reshape" makes a depthwise layer's adapter the full additive weight; "factored" would give all
        # channels one common filter of rank 1.
        depthwise = layer.groups == layer.in_channels > 1
        own_form = "reshape" if depthwise else form
        return FusedLoRAConv2d.from_conv(layer, gamma=gamma, form=own_form, freeze=False)
    return layer
