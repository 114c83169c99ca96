"""What other people's adapters need to know of a network's layers."""

from torch import nn

from lorun.adapters.exchange import Target
from lorun_kernels import unwrapped


def targets_of(model: nn.Module) -> dict[str, Target]:
    """The convolutions and linear layers of a network, adapted or not, by the full name of their weight.

    This is what `from_loralib`, `from_peft`, `to_peft` and `from_locon` are given. A layer with several names
    is listed under the first.
    """
    return {
        f"{path}.weight".removeprefix("."): _target(module)
        for path, module in unwrapped(model).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module._parameters.get("weight") is not None
    }


def _target(module: nn.Conv2d | nn.Linear) -> Target:
    weight = module._parameters["weight"]
    assert weight is not None
    if isinstance(module, nn.Linear):
        return Target(tuple(weight.shape))
    dilation = (module.dilation[0], module.dilation[1])
    return Target(tuple(weight.shape), module.groups, dilation, module.padding_mode)
