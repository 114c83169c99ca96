"""What each way to compute a layer reads, writes and multiplies: its passes over memory, one a kernel.

Sixteen-bit images in channels_last. A pass reads each of its operands once and writes its result once;
floating-point operations are two a multiply-accumulate, of the products that the definition needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.lora_layers import Layer

ITEM = 2


@dataclass(frozen=True)
class Pass:
    """One kernel."""

    name: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of a layer's tensors for a batch."""

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
    """What a tensor core multiplies for `conv_flops`: it takes results by 8 and sources by 16 channels."""
    if layer.groups > 1:
        return conv_flops(layer, batch)
    second = layer.second_in_channels
    sources = _up_to(layer.in_channels - second, 16) + _up_to(second, 16)
    results = _up_to(layer.out_channels, 8)
    return conv_flops(layer, batch) * sources * results // (layer.in_channels * layer.out_channels)


def _up_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _merge(layer: Layer, size: Sizes, how: str) -> list[Pass]:
    """loralib multiplies the factors, then adds; ours and a layer that is merged beforehand differ."""
    if how == "loralib":
        return [
            Pass("product of the factors", merge_flops(layer), size.adapter + size.weight),
            Pass("sum with the base", 0, 3 * size.weight),
        ]
    return [Pass("merge", merge_flops(layer), size.adapter + 2 * size.weight)] if how == "cudnn" else []


def forward(layer: Layer, batch: int, how: str, training: bool = False) -> list[Pass]:
    """The kernels of a forward pass.

    Args:
        how: "fused", one kernel that merges W, reads a second input in place and has bias, activation and
            residual in its store; "cudnn", a kernel that merges W and ATen's cuDNN convolution; "loralib",
            the same in loralib's form; "plain", no adapter at all; "compiled", the convolution on merged
            weights with everything after it in one pass, as torch.compile does it around cuDNN; "template",
            the same in one kernel, as torch.compile's own Triton convolution does it.
        training: the fused kernel also stores what the activation was given.
    """
    size = Sizes.of(layer, batch)
    flops = conv_flops(layer, batch)
    residual = size.output if layer.residual else 0
    if how == "fused":
        kept = size.output if training and layer.activation else 0
        parameters = size.weight + size.adapter + size.bias
        traffic = size.input + size.output + residual + kept + parameters
        return [Pass("fused convolution", flops + merge_flops(layer), traffic)]
    passes = _merge(layer, size, how)
    if layer.second_in_channels:
        passes.append(Pass("concatenation", 0, 2 * size.input))
    if how == "template":
        traffic = size.input + size.output + residual + size.weight + size.bias
        return [*passes, Pass("convolution and epilogue", flops, traffic)]
    passes.append(Pass("convolution", flops, size.input + size.output + size.weight))
    if how == "compiled":
        return [*passes, Pass("bias, activation, residual", 0, 2 * size.output + residual + size.bias)]
    passes.append(Pass("bias", 0, 2 * size.output + size.bias))
    if layer.activation:
        passes.append(Pass("activation", 0, 2 * size.output))
    if layer.residual:
        passes.append(Pass("residual", 0, 2 * size.output + residual))
    return passes


def backward(layer: Layer, batch: int, how: str) -> list[Pass]:
    """The kernels of a backward pass with a frozen base; a residual's gradient costs nothing.

    Args:
        how: "fused", the gradient of the factors straight from the images; "loralib", that of W by cuDNN,
            then those of the factors from it.
    """
    size = Sizes.of(layer, batch)
    flops = conv_flops(layer, batch)
    images = size.input + size.output
    passes = [Pass("activation", 0, 3 * size.output)] if layer.activation else []
    if how == "fused":
        parameters = size.weight + size.adapter
        return [
            *passes,
            Pass("input's gradient", flops + merge_flops(layer), images + parameters),
            # Each factor's gradient, in float32, is added to what is there.
            Pass("adapter's gradient", flops + 2 * merge_flops(layer), images + 5 * size.adapter),
        ]
    return [
        *passes,
        Pass("input's gradient", flops, images + size.weight),
        Pass("weight's gradient", flops, images + size.weight),
        Pass("gradients of the factors", 2 * merge_flops(layer), 2 * size.weight + 2 * size.adapter),
    ]


def blocks(called: list[Layer]) -> dict[str, list[Layer]]:
    """The residual blocks of a network, and with the convolution before them where that has two inputs.

    Args:
        called: the layers in the order in which an image passes them.
    """
    found = {}
    for i, last in enumerate(called):
        if i == 0 or not last.residual or last.in_channels != last.out_channels:
            continue
        place = f"{last.out_channels} channels @{last.height}"
        found[f"residual block, {place}"] = called[i - 1 : i + 1]
        if i > 1 and called[i - 2].second_in_channels:
            found[f"decoder on a concatenation, {place}"] = called[i - 2 : i + 1]
    return found


def bare(layer: Layer) -> Layer:
    """The same convolution with only a bias after it, and its input in one piece."""
    return replace(layer, second_in_channels=0, activation=None, residual=False)
