"""A residual block of a shipped network with adapters, against torch.compile on merged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.cases.backends import add_on_backends
from benchmarks.cases.inputs import input_sets
from benchmarks.cases.layers import Layer, network_blocks
from benchmarks.cases.lora_layer import (
    BACKENDS,
    DTYPES,
    TOLERANCES,
    Operands,
    bytes_of_images,
    resized,
)
from benchmarks.harness.case import OURS, Call, Candidate, Case
from lorun.adapters import adapted_view
from lorun_kernels import ConvAct

GROUP = "residual block, forward"  # of the table
EAGER, COMPILED, CUDNN_ONLY = "eager", "compiled", "compiled, cuDNN only"
# The graphs of max-autotune copy their inputs, so it also runs without them.
OPTIONS = {
    COMPILED: {"mode": "max-autotune"},
    "compiled, no graphs": {"mode": "max-autotune-no-cudagraphs"},
    CUDNN_ONLY: {"options": {"max_autotune": True, "max_autotune_conv_backends": "ATEN"}},
}
COMPILE_SECONDS = 30


class Block(nn.Module):
    """The residual block of a network's level, with the convolution on two inputs if it has one."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            ConvAct(
                layer.in_channels,
                layer.out_channels,
                layer.kernel[0],
                padding=layer.kernel[0] // 2,
                activation=layer.activation,
            )
            for layer in layers
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        *entry, first, second = self.convs
        for conv in entry:
            x = conv(x, skip)
        return second(first(x), residual=x)


@torch.no_grad()
def block(device: str, block: str, batch: int, size: int | None = None, compiled: bool = True) -> Case:
    """A pass of the block.

    Args:
        block: its name in `network_blocks`.
        size: of the images, if not the block's own.
    """
    layers, dtype = network_blocks()[block], DTYPES[device]
    first = layers[0] if size is None else resized(layers[0], size)
    sets = input_sets(device, bytes_of_images(first, batch, dtype.itemsize))
    operands = Operands(first, batch, sets, device, dtype)
    base = Block(layers).to(device, dtype).to(memory_format=torch.channels_last)
    ours = adapted_view(base)
    for conv in ours.convs:
        conv.lora_up.normal_(std=0.02)
    merged = _merged(base, ours)

    def of(module: nn.Module) -> Call:
        return lambda i: module(operands.inputs[i], operands.seconds[i])

    case = Case(
        f"{block}, batch {batch}",
        images=batch,
        inputs=sets,
        tolerance=TOLERANCES[device],
        kernels=True,
    )
    case.candidates[OURS] = Candidate(of(ours), ours=True)
    add_on_backends(case, BACKENDS[device])
    case.candidates[EAGER] = Candidate(of(merged))
    for name, options in OPTIONS.items() if compiled else ():
        call = of(torch.compile(merged, **options))
        case.candidates[name] = Candidate(call, patience=COMPILE_SECONDS)
    return case


def _merged(base: nn.Module, adapted: nn.Module) -> nn.Module:
    """A copy of `base` with the adapters merged into its weights."""
    merged = copy.deepcopy(base)
    for conv, its in zip(merged.convs, adapted.convs, strict=True):
        conv.weight.copy_(its.merged_weight())
    return merged
