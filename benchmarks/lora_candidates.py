"""A layer of the shipped networks on random data, and every way to compute it.

    python -m benchmarks.lora_candidates PART PARTS

compiles the Triton kernels of every layer but one in PARTS into Triton's cache, so that several processes can
do so beside the GPU tests and the benchmark need not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorun_kernels as lk
from benchmarks.lora_layers import Layer, layer_table
from benchmarks.lora_passes import bare
from benchmarks.lora_results import BACKENDS
from lorun_kernels import ConvAct
from lorun_kernels.reference import activate

BATCHES = (8, 1)


def bench_layers() -> dict[str, dict[Layer, int]]:
    """The layers to time and how often each occurs: as the networks call them, and with a bias only."""
    network = {layer: count for layer, count in layer_table().items() if layer.rank}
    alone: dict[Layer, int] = {}
    for layer, count in network.items():
        alone[bare(layer)] = alone.get(bare(layer), 0) + count
    return {"network": network, "bias only": alone}


class Case:
    """The tensors of a layer; images in `variants` sets, channels_last."""

    def __init__(self, layer: Layer, batch: int, variants: int, device: str, dtype: torch.dtype) -> None:
        def image(channels: int, size: tuple[int, int]) -> list[Tensor | None]:
            shape = (batch, channels, *size)
            if not channels:
                return [None] * variants
            sets = [torch.randn(shape, device=device).to(dtype) for _ in range(variants)]
            return [one.to(memory_format=torch.channels_last) for one in sets]

        def parameter(*shape: int, scale: float) -> Tensor:
            return (torch.randn(shape, device=device) * scale).to(dtype)

        self.layer = layer
        second, size = layer.second_in_channels, (layer.height, layer.width)
        self.inputs = image(layer.in_channels - second, size)
        self.seconds = image(second, size)
        self.residuals = image(layer.out_channels if layer.residual else 0, layer.out_size)
        self.grads = image(layer.out_channels, layer.out_size)
        fan_in = layer.weight_shape[1] * layer.kernel[0] * layer.kernel[1]
        weight = parameter(*layer.weight_shape, scale=fan_in**-0.5)
        self.weight = weight.to(memory_format=torch.channels_last)
        up, down = layer.factor_shapes
        self.up = parameter(*up, scale=0.5 * (fan_in * up[1]) ** -0.5)
        self.down = parameter(*down, scale=1.0)
        self.bias = parameter(layer.out_channels, scale=0.1)

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another dtype, the first set of images only."""
        other = object.__new__(Case)
        other.layer = self.layer
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.to(dtype))
            elif isinstance(value, list):
                setattr(other, name, [value[0] if value[0] is None else value[0].to(dtype)])
        return other

    @staticmethod
    def bytes_of_images(layer: Layer, batch: int) -> int:
        pixels_in, pixels_out = layer.height * layer.width, layer.out_size[0] * layer.out_size[1]
        return 2 * batch * (layer.in_channels * pixels_in + 2 * layer.out_channels * pixels_out)

    def lorun(self, i: int) -> Tensor:
        layer = self.layer
        return lk.lora_conv2d_act(
            self.inputs[i],
            self.weight,
            self.up,
            self.down,
            self.bias,
            layer.stride,
            layer.padding,
            1,
            layer.groups,
            activation=layer.activation,
            residual=self.residuals[i],
            input2=self.seconds[i],
        )

    def loralib(self, i: int) -> Tensor:
        """What loralib's ConvLoRA does: a full weight in every call."""
        return self.separate(i, self.weight + (self.up @ self.down).view(self.weight.shape))

    def plain(self, i: int) -> Tensor:
        """The frozen convolution without an adapter."""
        return self.separate(i, self.weight)

    def separate(self, i: int, weight: Tensor) -> Tensor:
        """PyTorch's own ops, one after another."""
        layer, image, second = self.layer, self.inputs[i], self.seconds[i]
        both = image if second is None else torch.cat([image, second], 1)
        output = F.conv2d(both, weight, self.bias, layer.stride, layer.padding, 1, layer.groups)
        output = activate(output, layer.activation)
        return output if self.residuals[i] is None else output + self.residuals[i]

    def candidates(self) -> dict[str, Callable[[int], Tensor]]:
        """Every way to compute the layer; those of a backend raise ValueError where it cannot run."""
        ours = {name: on(name, self.lorun) for name in BACKENDS}
        return {"default": self.lorun, **ours, "plain": self.plain, "loralib": self.loralib}

    def trained(self, call: Callable[[int], Tensor]) -> Callable[[int], list[Tensor]]:
        """Forward and backward of `call`: gradients of the inputs and, but for "plain", the factors."""
        factors = [] if call == self.plain else [self.up, self.down]
        for tensor in (*self.inputs, *self.seconds, *factors):
            if tensor is not None:
                tensor.requires_grad_()

        def step(i: int) -> list[Tensor]:
            images = [image for image in (self.inputs[i], self.seconds[i]) if image is not None]
            return list(torch.autograd.grad(call(i), [*images, *factors], self.grads[i]))

        return step


def on(backend: str, function: Callable[[int], object]) -> Callable[[int], object]:
    def call(i: int):
        with lk.use_backend(backend):
            return function(i)

    return call


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Of the root mean square."""
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


def usable(
    candidates: dict[str, Callable], peer: str, most: float = 0.02
) -> tuple[dict[str, Callable], dict[str, str]]:
    """The candidates that run and agree with `peer`, and why each of the others is missing.

    `plain`, which has no adapter, is another function and agrees with none.
    """
    expected = _results(candidates[peer])
    calls, missing = {}, {}
    for name, call in candidates.items():
        try:
            results = _results(call)
        except Exception as error:  # a missing candidate is a row of the table, not the end of the run
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        pairs = zip(results, expected, strict=False)
        error = 0.0 if name == "plain" else max(relative_error(ours, theirs) for ours, theirs in pairs)
        # A NaN agrees with nothing.
        if error <= most:
            calls[name] = call
        else:
            missing[name] = f"wrong: {error:.1%} from {peer}"
    return calls, missing


def _results(call: Callable[[int], object]) -> list[Tensor]:
    results = call(0)
    return results if isinstance(results, list) else [results]


class Block(nn.Module):
    """The residual block of a network's level, with the convolution on two inputs where it has one."""

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


def small(layer: Layer, side: int) -> Layer:
    return replace(layer, height=side, width=side)


def compile_part(part: int, parts: int) -> None:
    """Run one in `parts` of the layers once on Triton, forward and backward."""
    work = [(layer, batch) for layers in bench_layers().values() for layer in layers for batch in BATCHES]
    for layer, batch in work[part::parts]:
        case = Case(layer, batch, 1, "cuda", torch.bfloat16)
        call = on("triton", case.lorun)
        with torch.no_grad():
            call(0)
        case.trained(call)(0)


if __name__ == "__main__":
    compile_part(*map(int, sys.argv[1:3]))
