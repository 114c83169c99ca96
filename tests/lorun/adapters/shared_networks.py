"""The architectures with a shared base, and what they should compute."""

import torch
from torch import Tensor, nn

import lorun
from lorun.adapters.plan import COMMON, OWN
from lorun.adapters.record import sharing_of
from lorun_kernels import adapted_weights
from tests.lorun.adapters.architectures import ARCHITECTURES


def made(name: str) -> nn.Module:
    """A network of an architecture, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    return ARCHITECTURES[name].make().eval()


def shared(name: str, **options) -> nn.Module:
    return lorun.share_stages(made(name), ARCHITECTURES[name].stages, **{"gamma": 30} | options)


def result(model: nn.Module, name: str) -> Tensor:
    out = model(*ARCHITECTURES[name].inputs())
    return out[0] if isinstance(out, tuple) else out


def with_the_weights_of_stage_one(name: str) -> nn.Module:
    """The original network with the weights of its first stage in all, and their own small parameters."""
    model, decisions = made(name), sharing_of(shared(name))[0].decisions
    first, *others = ARCHITECTURES[name].stages_of(model)
    for decision in decisions:
        if decision.kind not in (OWN, COMMON):
            for stage in others:
                stage.get_parameter(decision.name).data.copy_(first.get_parameter(decision.name))
    return model


def train_adapters(model: nn.Module, scale: float = 0.1, seed: int = 1) -> nn.Module:
    """Give every adapter values, as training would."""
    torch.manual_seed(seed)
    for weight in adapted_weights(model).values():
        nn.init.normal_(weight.tensors[0], std=scale)
    return model


def small_network(stages: int = 3, seed: int = 0) -> nn.Module:
    """Stages of two convolutions and a step size each, in a ModuleList called `stages`."""
    torch.manual_seed(seed)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Parameter(torch.rand(()))
            self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x):
            return x + self.step * self.second(torch.relu(self.first(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(Stage() for _ in range(stages))

        def forward(self, x):
            for stage in self.stages:
                x = stage(x)
            return x

    return Network().eval()


IMAGE = torch.rand(2, 4, 7, 5, generator=torch.Generator().manual_seed(3))
