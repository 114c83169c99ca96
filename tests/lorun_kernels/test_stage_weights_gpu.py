"""StageWeights on a GPU, on every backend that runs there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lorun_kernels as lk
from tests.lorun_kernels.residual_stages import run

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
BACKENDS = ["cuda", "triton", "aten"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with lk.use_backend(request.param):
        yield request.param


class Stages(nn.Module):
    """Three stages of a small residual denoiser on one base."""

    def __init__(self):
        super().__init__()
        base = [nn.Conv2d(28, 28, 3, padding=1), nn.Conv2d(28, 56, 3, padding=1), nn.Conv2d(56, 28, 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(*(lk.FusedLoRAConv2d.from_conv(conv, activation="relu") for conv in base))
            for _ in range(3)
        )
        self.to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)
        self.redraw()

    def redraw(self):
        for name, parameter in self.named_parameters():
            if name.endswith("lora_up"):
                nn.init.normal_(parameter, std=0.1)

    def run(self, image, weights=None):
        return run(self.stages, image, weights)


def new_image():
    image = torch.randn(2, 28, 40, 24, device=DEVICE, dtype=torch.bfloat16)
    return image.to(memory_format=torch.channels_last)


def test_stage_weights_give_the_same_results(backend, relative_error):
    net, image = Stages(), new_image()
    with torch.no_grad():
        assert relative_error(net.run(image, lk.StageWeights(net.stages)), net.run(image)) <= 1e-2


def test_gradients_of_a_stage_are_the_same(backend, relative_error):
    """On any backend; through ATen one launch computes them for the stage."""
    net, image = Stages(), new_image()
    adapters = [parameter for name, parameter in net.named_parameters() if "lora_" in name]
    found, expected = (
        torch.autograd.grad(net.run(image, weights).square().sum(), adapters)
        for weights in (lk.StageWeights(net.stages), None)
    )
    for value, definition in zip(found, expected, strict=True):
        assert relative_error(value, definition) <= 2e-2


def test_a_captured_graph_replays_with_other_adapters(backend, relative_error):
    net, image = Stages(), new_image()
    weights = lk.StageWeights(net.stages)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            net.run(image, weights)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = net.run(image, weights)
        for _ in range(2):
            net.redraw()
            image.copy_(new_image())
            graph.replay()
            assert relative_error(output, net.run(image)) <= 1e-2
