"""One base, many adapters: views of a module that share its parameters and own only low-rank updates."""

import copy

from torch import nn

from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear

# Of these exactly: what a subclass computes, an adapted layer would not.
ADAPTED = (nn.Conv2d, ConvAct, nn.Linear)


def adapted_view(base: nn.Module, gamma: float = 10, form: str = "reshape") -> nn.Module:
    """A module that computes as `base` does, shares all of its parameters, and adapts its layers.

    Every nn.Conv2d, lorun_kernels.ConvAct and nn.Linear, `base` itself included, becomes a FusedLoRAConv2d or
    FusedLoRALinear on the same weight, with an adapter of its own, of the rank of Eq. 12 (arXiv 2602.18697);
    a layer that stands under several names becomes one adapted layer under these names. A depthwise
    convolution mixes no channels and has few weights: its adapter is a full additive weight, `lora_delta`, in
    both forms. Everything else stays shared. The caller freezes the base; what a stage learns besides its
    adapters, such as its step size, belongs outside of the base.

    Args:
        base: any module.
        gamma: the adapters' rank, as a percentage in (0, 100] of a layer's smaller number of channels.
        form: "reshape" (Eq. 4) or "factored", of the adapters of convolutions.

    Raises:
        ValueError: a gamma or form outside these.
        TypeError: a layer whose weight is computed (parametrized or normed).
    """
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    view = copy.deepcopy(base, memo=shared)
    if type(view) in ADAPTED:
        return _adapted(view, gamma, form)
    adapted: dict[nn.Module, nn.Module] = {}
    for parent in list(view.modules()):
        # Not named_children(), which leaves out a second name.
        for name, child in list(parent._modules.items()):
            if type(child) not in ADAPTED:
                continue
            if child not in adapted:
                adapted[child] = _adapted(child, gamma, form)
            setattr(parent, name, adapted[child])
    return view


def _adapted(layer: nn.Module, gamma: float, form: str) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return FusedLoRALinear.from_linear(layer, gamma=gamma, freeze=False)
    assert isinstance(layer, nn.Conv2d)
    # Of a depthwise layer, "reshape" makes the full additive weight; "factored" would leave all channels one
    # common filter of rank 1.
    depthwise = layer.groups == layer.in_channels > 1
    return FusedLoRAConv2d.from_conv(layer, gamma=gamma, form="reshape" if depthwise else form, freeze=False)
