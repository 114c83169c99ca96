"""torch.compile without graph breaks, and torch.export."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRAConv2d, FusedLoRALinear, lora_conv2d


class Network(nn.Module):
    """Every kind of layer in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FusedLoRAConv2d(2, 8, 3, padding=1, padding_mode="reflect"),
            FusedLoRAConv2d(8, 8, 3, padding="same", groups=2, rank=1),
            FusedLoRAConv2d(8, 8, 3, padding=1, groups=8),
            FusedLoRAConv2d(8, 8, (2, 4), padding="same", form="factored"),
            FusedLoRALinear(6, 6),
        )
        for name, parameter in self.named_parameters():
            if name.endswith(("lora_up", "lora_delta")):
                nn.init.normal_(parameter)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(network, function, image):
    image = image.clone().requires_grad_()
    output = function(image)
    grads = torch.autograd.grad(output.square().sum(), [image, *network.parameters()])
    return [output, *grads]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiles_to_one_graph_forward_and_backward(layout):
    # In float64: sums in another order differ by more than float32's tolerance on some processors.
    network = Network().double().to(memory_format=layout)
    image = torch.randn(2, 2, 6, 6, dtype=torch.float64).to(memory_format=layout)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    expected = gradients(network, network, image)
    for value, eager in zip(gradients(network, compiled, image), expected, strict=True):
        torch.testing.assert_close(value, eager)


def test_compiles_to_one_graph_under_autocast():
    network, image = Network(), torch.randn(2, 2, 6, 6)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(image), network(image), rtol=0.02, atol=0.02)


def test_compiles_once_for_every_size_and_batch():
    network = Network()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, height in [(2, 8), (3, 12), (5, 7)]:
        image = torch.randn(batch, 2, height, 6)
        torch.testing.assert_close(compiled(image), network(image))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_an_adapted_layer():
    layer = FusedLoRAConv2d.from_conv(nn.Conv2d(2, 4, 3))
    nn.init.normal_(layer.lora_up)
    image = torch.randn(1, 2, 8, 8).to(memory_format=torch.channels_last)
    compiled = torch.compile(lambda x: layer(x).relu(), fullgraph=True)
    torch.testing.assert_close(compiled(image), layer(image).relu())


def test_exports_with_a_dynamic_batch():
    network = Network()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.randn(2, 2, 6, 6),), dynamic_shapes=({0: batch},))
    image = torch.randn(4, 2, 6, 6)
    torch.testing.assert_close(program.module()(image), network(image))


def test_meta_tensors_give_shapes(conv_sample):
    tensors = conv_sample.tensors()
    meta = [None if t is None else t.to("meta") for t in tensors]
    output = lora_conv2d(*meta, *conv_sample.options)
    assert output.shape == lora_conv2d(*tensors, *conv_sample.options).shape
