"""The network inside what torch wraps around it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, of what torch.compile, DataParallel or DistributedDataParallel made of it."""
    while True:
        # The class that torch.compile makes is not named here: importing it takes seconds.
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        else:
            return model
