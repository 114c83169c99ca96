"""What each way to compute a layer reads, writes and multiplies: its passes over memory, one per kernel.

Images are sixteen-bit and channels_last. A pass reads each of its operands once and writes its result once;
a multiply-accumulate of the products that the definition needs counts as two floating-point operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.cases.layers import Layer
from benchmarks.harness.case import Work

ITEM = 2


@dataclass(frozen=True, kw_only=True)
class Pass(Work):
    """The work of one kernel."""

    name: str


@dataclass(frozen=True)
class Sizes:
    """Bytes of a layer's tensors, for a batch."""

    input: int
    output: int
    weight: int
    adapter: int
    bias: int

    @classmethod
    def of(cls, layer: Layer, batch: int) -> Sizes:
        return cls(
            input=ITEM * batch * layer.in_channels * layer.height * layer.width,
            output=ITEM * batch * layer.out_channels * math.prod(layer.out_size),
            weight=ITEM * math.prod(layer.weight_shape),
            adapter=ITEM * sum(map(math.prod, layer.factor_shapes)),
            bias=ITEM * layer.out_channels,
        )


def conv_flops(layer: Layer, batch: int) -> int:
    """Of the convolution, and of each of its two gradients."""
    return 2 * batch * math.prod(layer.out_size) * math.prod(layer.weight_shape)


def merge_flops(layer: Layer) -> int:
    """Of up @ down."""
    return 2 * math.prod(layer.weight_shape) * layer.factor_shapes[0][1]


def tile_flops(layer: Layer, batch: int) -> int:
    """What a tensor core computes for `conv_flops`: it takes results by 8 channels and sources by 16."""
    if layer.groups > 1:
        return conv_flops(layer, batch)
    second = layer.second_in_channels
    sources = _up_to(layer.in_channels - second, 16) + _up_to(second, 16)
    results = _up_to(layer.out_channels, 8)
    return conv_flops(layer, batch) * sources * results // (layer.in_channels * layer.out_channels)


def _up_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _merge(layer: Layer, size: Sizes, how: str) -> list[Pass]:
    """loralib multiplies the factors, then adds them to the base; ours does both in one kernel."""
    if how == "loralib":
        return [
            Pass(size.adapter + size.weight, merge_flops(layer), name="product of the factors"),
            Pass(3 * size.weight, 0, name="sum with the base"),
        ]
    return [Pass(size.adapter + 2 * size.weight, merge_flops(layer), name="merge")] if how == "cudnn" else []


def forward(layer: Layer, batch: int, how: str, training: bool = False) -> list[Pass]:
    """The kernels of a forward pass.

    Args:
        how: "fused", one kernel that merges W, reads a second input in place, and applies bias, activation
            and residual before it stores; "cudnn", a kernel that merges W, then ATen's cuDNN convolution;
            "loralib", the same in loralib's form; "plain", no adapter at all; "compiled", the convolution on
            merged weights and everything after it in one pass, as torch.compile does around cuDNN;
            "template", the same in one kernel, as torch.compile's own Triton convolution does.
        training: the fused kernel also stores what the activation was given.
    """
    size = Sizes.of(layer, batch)
    flops = conv_flops(layer, batch)
    residual = size.output if layer.residual else 0
    if how == "fused":
        kept = size.output if training and layer.activation else 0
        parameters = size.weight + size.adapter + size.bias
        traffic = size.input + size.output + residual + kept + parameters
        return [Pass(traffic, flops + merge_flops(layer), name="fused convolution")]
    passes = _merge(layer, size, how)
    if layer.second_in_channels:
        passes.append(Pass(2 * size.input, 0, name="concatenation"))
    if how == "template":
        traffic = size.input + size.output + residual + size.weight + size.bias
        return [*passes, Pass(traffic, flops, name="convolution and epilogue")]
    passes.append(Pass(size.input + size.output + size.weight, flops, name="convolution"))
    if how == "compiled":
        return [*passes, Pass(2 * size.output + residual + size.bias, 0, name="bias, activation, residual")]
    passes.append(Pass(2 * size.output + size.bias, 0, name="bias"))
    if layer.activation:
        passes.append(Pass(2 * size.output, 0, name="activation"))
    if layer.residual:
        passes.append(Pass(2 * size.output + residual, 0, name="residual"))
    return passes


def backward(layer: Layer, batch: int, how: str) -> list[Pass]:
    """The kernels of a backward pass with a frozen base; the gradient of a residual costs nothing.

    Args:
        how: "fused", the gradients of the factors directly from the images; "loralib", the gradient of W by
            cuDNN, then those of the factors from it.
    """
    size = Sizes.of(layer, batch)
    flops = conv_flops(layer, batch)
    images = size.input + size.output
    passes = [Pass(3 * size.output, 0, name="activation")] if layer.activation else []
    if how == "fused":
        parameters = size.weight + size.adapter
        return [
            *passes,
            Pass(images + parameters, flops + merge_flops(layer), name="input's gradient"),
            # Each factor's gradient, in float32, is added to what is there.
            Pass(images + 5 * size.adapter, flops + 2 * merge_flops(layer), name="adapter's gradient"),
        ]
    return [
        *passes,
        Pass(images + size.weight, flops, name="input's gradient"),
        Pass(images + size.weight, flops, name="weight's gradient"),
        Pass(2 * size.weight + 2 * size.adapter, 2 * merge_flops(layer), name="gradients of the factors"),
    ]
