"""A layer of the shipped networks as they call it: a low-rank convolution, and what follows it in one call.

What follows is an activation and a residual; a skip connection may be a second input. Every backend is
compared with PyTorch's own ops one after another, in loralib's form and without an adapter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import lorun_kernels as lk
from benchmarks.cases.backends import add_on_backends
from benchmarks.cases.inputs import input_sets
from benchmarks.cases.layers import Layer, named_layer
from benchmarks.harness.case import OURS, REFERENCE, Call, Candidate, Case
from lorun_kernels.reference import activate

# Groups of the table.
FORWARD, TRAINING = "LoRA layer, forward", "LoRA layer, forward + backward"
BARE = "LoRA layer with only a bias, forward"
PLAIN, LORALIB = "plain frozen", "loralib's form"
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCES = {"cpu": 1e-4, "cuda": 0.02}
BACKENDS = {
    "cpu": {f"{OURS}, aten": "aten", REFERENCE: "reference"},
    "cuda": {f"{OURS}, {backend}": backend for backend in ("cuda", "triton", "aten")},
}


def convolution(device: str, layer: str, batch: int, size: int | None = None, grad: bool = False) -> Case:
    """A pass of the layer or, with `grad`, a pass and the gradients of its images and of the factors.

    Args:
        layer: the name of one in `benchmarks.cases.layers`.
        size: of the images, if not the layer's own.
    """
    named = named_layer(layer)
    sized = named if size is None else resized(named, size)
    dtype = DTYPES[device]
    sets = input_sets(device, bytes_of_images(sized, batch, dtype.itemsize))
    operands = Operands(sized, batch, sets, device, dtype, grad)
    case = Case(
        f"{sized.name}, batch {batch}",
        images=batch,
        inputs=sets,
        tolerance=TOLERANCES[device],
        grad=grad,
    )
    factors = [operands.up, operands.down]
    case.candidates[OURS] = operands.candidate(operands.fused, factors, ours=True)
    add_on_backends(case, BACKENDS[device])
    case.candidates[PLAIN] = operands.candidate(operands.plain, [], unlike="no adapter")
    case.candidates[LORALIB] = operands.candidate(operands.loralib, factors)
    return case


def resized(layer: Layer, size: int) -> Layer:
    """The same layer on images of another size."""
    return replace(layer, height=size, width=size)


def bytes_of_images(layer: Layer, batch: int, itemsize: int) -> int:
    """Of one set: what the layer reads, its result, and the result's gradient or residual."""
    pixels_in, pixels_out = layer.height * layer.width, layer.out_size[0] * layer.out_size[1]
    return itemsize * batch * (layer.in_channels * pixels_in + 2 * layer.out_channels * pixels_out)


class Operands:
    """Random tensors of a layer, images in `sets` sets and channels_last, and ways to compute it.

    Attributes:
        inputs, seconds, residuals, grads: one image batch per set; None if the layer has no such operand.
        weight, up, down, bias: the parameters, the base frozen.
    """

    def __init__(
        self, layer: Layer, batch: int, sets: int, device: str, dtype: torch.dtype, grad: bool = False
    ) -> None:
        def images(channels: int, size: tuple[int, int]) -> list[Tensor | None]:
            if not channels:
                return [None] * sets
            drawn = (torch.randn(batch, channels, *size, device=device).to(dtype) for _ in range(sets))
            return [one.to(memory_format=torch.channels_last) for one in drawn]

        def parameter(*shape: int, scale: float) -> Tensor:
            return (torch.randn(shape, device=device) * scale).to(dtype)

        self.layer, self.grad = layer, grad
        second, size = layer.second_in_channels, (layer.height, layer.width)
        self.inputs = images(layer.in_channels - second, size)
        self.seconds = images(second, size)
        self.residuals = images(layer.out_channels if layer.residual else 0, layer.out_size)
        self.grads = images(layer.out_channels if grad else 0, layer.out_size)
        fan_in = layer.weight_shape[1] * layer.kernel[0] * layer.kernel[1]
        weight = parameter(*layer.weight_shape, scale=fan_in**-0.5)
        self.weight = weight.to(memory_format=torch.channels_last)
        up, down = layer.factor_shapes
        self.up = parameter(*up, scale=0.5 * (fan_in * up[1]) ** -0.5)
        self.down = parameter(*down, scale=1.0)
        self.bias = parameter(layer.out_channels, scale=0.1)
        for tensor in (*self.inputs, *self.seconds, self.up, self.down) if grad else ():
            if tensor is not None:
                tensor.requires_grad_()

    def to(self, dtype: torch.dtype) -> Operands:
        """The same values in another dtype, the first set of images only."""

        def converted(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        other = object.__new__(Operands)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = converted(value)
            elif isinstance(value, list):
                value = [converted(value[0])]
            setattr(other, name, value)
        return other

    def fused(self, i: int) -> Tensor:
        """The layer in one call."""
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
        return self._separate(i, self.weight + (self.up @ self.down).view(self.weight.shape))

    def plain(self, i: int) -> Tensor:
        """The frozen convolution without an adapter."""
        return self._separate(i, self.weight)

    def _separate(self, i: int, weight: Tensor) -> Tensor:
        """PyTorch's own ops, one after another."""
        layer, image, second = self.layer, self.inputs[i], self.seconds[i]
        both = image if second is None else torch.cat([image, second], 1)
        output = F.conv2d(both, weight, self.bias, layer.stride, layer.padding, 1, layer.groups)
        output = activate(output, layer.activation)
        return output if self.residuals[i] is None else output + self.residuals[i]

    def candidate(self, forward: Call, factors: list[Tensor], **fields) -> Candidate:
        """A pass or, if the operands have gradients, a training step that ends in those of `factors` too."""
        if not self.grad:
            return Candidate(forward, **fields)
        return Candidate(lambda i: self.gradients(forward, factors, i), forward=forward, **fields)

    def gradients(self, forward: Call, factors: list[Tensor], i: int) -> tuple[Tensor, ...]:
        """Of the images and of `factors`."""
        images = [image for image in (self.inputs[i], self.seconds[i]) if image is not None]
        return torch.autograd.grad(forward(i), [*images, *factors], self.grads[i])
