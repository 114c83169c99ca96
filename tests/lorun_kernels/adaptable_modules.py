"""Modules of many kinds that add_adapter adapts, and what each of them is called with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lorun_kernels import adapted_weights, add_adapter
from tests.lorun.adapters.architectures import SamePaddingConv2d, StandardisedConv2d

ADDED = 0.3


class Mixer(nn.Module):
    """A Parameter of its own, through einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        return torch.einsum("oc,nchw->nohw", self.mix, x)


class Dictionary(nn.Module):
    """A Parameter of its own as a convolution and as its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.randn(7, 3, 3, 5) / 5)
        self.threshold = nn.Parameter(torch.full((7, 1, 1), 0.1))

    def forward(self, x):
        codes = F.relu(F.conv2d(x, self.D, padding=(1, 2)) - self.threshold)
        return F.conv_transpose2d(codes, self.D, padding=(1, 2))


class Positions(nn.Module):
    """A table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, x):
        return torch.tanh(x + self.position)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(5, 4), torch.randn(3, 5)])

    def forward(self, x):
        for matrix in self.matrices:
            x = torch.tanh(F.linear(x, matrix))
        return x


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterDict({"first": torch.randn(5, 4), "last": torch.randn(3, 5)})

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.matrices["first"])), self.matrices.last)


class Attending(nn.Module):
    """Attention with the arguments that most networks give it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(*args, batch_first=True, **options)

    def forward(self, query, key, value):
        return self.attention(query, key, value, need_weights=False)[0]


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(module)


@dataclass(frozen=True)
class Case:
    """A kind of module: how it is made, what it is called with, and which weight of it is adapted."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    path: str = ""
    name: str = "weight"
    fullgraph: bool = True
    options: dict = field(default_factory=lambda: {"rank": 1})

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module before adaptation, the same at every call."""
        torch.manual_seed(0)
        return self.make().to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(1)
        if self.path == "" and isinstance(self.make(), nn.Embedding):
            return tuple(torch.randint(0, 11, shape, generator=random) for shape in self.shapes)
        return tuple(torch.randn(shape, generator=random).to(dtype) for shape in self.shapes)

    def owner(self, module: nn.Module) -> nn.Module:
        return module.get_submodule(self.path)

    def adapted(self, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
        """The module with an adapter that adds nothing yet."""
        module = self.module(dtype)
        add_adapter(self.owner(module), self.name, **self.options | options)
        return module

    def trained(self, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
        return trained(self.adapted(dtype, **options))

    def plain_twin(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """An ordinary module whose weight is base and adapter of another one together, by numpy."""
        twin = self.module(dtype)
        parameter, owner = self.owner(twin)._parameters[self.name], self.owner(module)
        suffix = "" if self.name == "weight" else f"_{self.name}"
        tensors = {kind: owner._parameters[f"lora_{kind}{suffix}"] for kind in ("up", "down", "delta")}
        values = {
            kind: value.detach().double().numpy() for kind, value in tensors.items() if value is not None
        }
        added = values["delta"] if "delta" in values else (values["up"] @ values["down"])
        scaling = owner.adapters()[self.name].scaling
        parameter.data += (scaling * torch.from_numpy(added.reshape(parameter.shape))).to(dtype)
        return twin


def trained(module: nn.Module) -> nn.Module:
    """The module with adapters that add something."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted_weights(module).values():
            for tensor in weight.tensors:
                values = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
                tensor.copy_(ADDED * values)
    return module


def flat(output: Any) -> list[Tensor]:
    """The tensors of what a module returns."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in flat(part)]


def gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The gradients of all adapters, and of the input if it has one, of the sum of a call's squares."""
    inputs = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    wanted = {
        f"{name}.{index}": tensor
        for name, weight in adapted_weights(module).items()
        for index, tensor in enumerate((weight.base, *weight.tensors))
    }
    wanted |= {f"input {index}": x for index, x in enumerate(inputs) if x.requires_grad}
    loss = sum(tensor.square().sum() for tensor in flat(module(*inputs)))
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))


ATTENTION = ((2, 5, 6), (2, 3, 6), (2, 3, 6))
IMAGE = ((2, 3, 7, 5),)

CASES = {
    "Conv1d": Case(lambda: nn.Conv1d(5, 7, 3, padding=1, padding_mode="circular"), ((2, 5, 9),)),
    "Conv2d": Case(lambda: nn.Conv2d(3, 4, (3, 2), padding=1), IMAGE),
    "Conv2d grouped": Case(lambda: nn.Conv2d(6, 4, 3, stride=2, groups=2), ((2, 6, 7, 5),)),
    "Conv2d depthwise": Case(lambda: nn.Conv2d(3, 3, 3, padding=2, groups=3), IMAGE),
    "Conv3d": Case(lambda: nn.Conv3d(3, 4, (3, 2, 5), padding=2), ((2, 3, 4, 5, 3),)),
    "Conv3d grouped": Case(lambda: nn.Conv3d(4, 6, 2, groups=2, bias=False), ((1, 4, 3, 5, 4),)),
    "ConvTranspose1d": Case(lambda: nn.ConvTranspose1d(5, 3, 4, stride=2), ((2, 5, 6),)),
    "ConvTranspose2d": Case(lambda: nn.ConvTranspose2d(3, 5, (4, 3), 2, 1, output_padding=1), IMAGE),
    "ConvTranspose2d grouped": Case(lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), ((1, 6, 4, 5),)),
    "ConvTranspose3d": Case(lambda: nn.ConvTranspose3d(3, 4, 2, stride=2), ((1, 3, 2, 3, 2),)),
    "Linear": Case(lambda: nn.Linear(7, 5), ((3, 2, 7),)),
    "Bilinear": Case(lambda: nn.Bilinear(3, 4, 5), ((6, 3), (6, 4))),
    "Embedding": Case(lambda: nn.Embedding(11, 6, padding_idx=2), ((4, 3),)),
    "attention in": Case(lambda: Attending(6, 2), ATTENTION, "attention", "in_proj_weight"),
    "attention out": Case(lambda: Attending(6, 2), ATTENTION, "attention.out_proj"),
    "attention keys": Case(
        lambda: Attending(6, 2, kdim=3, vdim=5),
        ((2, 4, 6), (2, 7, 3), (2, 7, 5)),
        "attention",
        "k_proj_weight",
    ),
    "encoder layer": Case(
        lambda: nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True), ((2, 5, 6),), "linear2"
    ),
    "GRU": Case(
        lambda: nn.GRU(5, 6, num_layers=2, bidirectional=True),
        ((4, 2, 5),),
        name="weight_hh_l1_reverse",
        fullgraph=False,
    ),
    "LSTM": Case(lambda: nn.LSTM(5, 6, proj_size=3), ((4, 2, 5),), name="weight_ih_l0", fullgraph=False),
    "LSTMCell": Case(lambda: nn.LSTMCell(5, 3), ((2, 5),), name="weight_ih"),
    "weight_norm": Case(
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        IMAGE,
        "parametrizations.weight",
        "original1",
    ),
    "spectral_norm": Case(
        lambda: parametrizations.spectral_norm(nn.Linear(7, 5)),
        ((3, 7),),
        "parametrizations.weight",
        "original",
    ),
    "weight_norm of old": Case(
        lambda: old_weight_norm(nn.Conv2d(3, 4, 3)), IMAGE, name="weight_v", fullgraph=False
    ),
    "standardised": Case(lambda: StandardisedConv2d(3, 4, 3, padding=1), IMAGE),
    "padding of TensorFlow": Case(lambda: SamePaddingConv2d(3, 4, 3, stride=2), IMAGE),
    "einsum": Case(Mixer, IMAGE, name="mix"),
    "dictionary": Case(Dictionary, IMAGE, name="D"),
    "positions": Case(Positions, ((3, 5, 4),), name="position"),
    "ParameterList": Case(Listed, ((6, 4),), "matrices", "1"),
    "ParameterDict": Case(Named, ((6, 4),), "matrices", "first"),
}
