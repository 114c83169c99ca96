"""torch's FlopCounterMode counts adapted layers as it counts plain ones."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lorun
from lorun import create_model
from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear, flops, use_backend

IMAGE = (2, 4, 9, 8)

# A layer, its adapter, the shapes of its input, and its forward FLOPs: 2 * MAC, by hand.
CONVS = {
    "plain": ((4, 6, 3), {}, IMAGE, 2 * (2 * 7 * 6) * 6 * 4 * 9),
    "no batch": ((4, 6, 3), {}, IMAGE[1:], 2 * (7 * 6) * 6 * 4 * 9),
    "strided": ((4, 6, 3), {"stride": 2, "padding": 1}, IMAGE, 2 * (2 * 5 * 4) * 6 * 4 * 9),
    "dilated": ((4, 6, (3, 1)), {"dilation": 2, "bias": False}, IMAGE, 2 * (2 * 5 * 8) * 6 * 4 * 3),
    "same": ((4, 6, (2, 4)), {"padding": "same"}, IMAGE, 2 * (2 * 9 * 8) * 6 * 4 * 8),
    "grouped": ((4, 6, 3), {"groups": 2}, IMAGE, 2 * (2 * 7 * 6) * 6 * 2 * 9),
    "depthwise": ((4, 4, 3), {"groups": 4}, IMAGE, 2 * (2 * 7 * 6) * 4 * 9),
    "circular": ((4, 6, 3), {"padding": 1, "padding_mode": "circular"}, IMAGE, 2 * (2 * 9 * 8) * 6 * 4 * 9),
}
LINEARS = {
    "rows": ((5, 3), {}, (7, 5), 2 * 7 * 5 * 3),
    "images": ((5, 3), {}, (2, 7, 5), 2 * 14 * 5 * 3),
    "no bias": ((5, 3), {"bias": False}, (2, 7, 2, 5), 2 * 28 * 5 * 3),
}


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def training(layer: nn.Module, *images: torch.Tensor) -> int:
    """Forward and backward, with gradients of the images and of what requires them."""
    images = tuple(image.clone().requires_grad_() for image in images)
    return counted(lambda: layer(*images).sum().backward())


@torch.no_grad()
def inference(layer: nn.Module, *images: torch.Tensor) -> int:
    return counted(lambda: layer(*images))


@pytest.mark.parametrize("form", ["reshape", "factored", "full"])
@pytest.mark.parametrize("name", CONVS)
def test_convolution_counts_as_the_plain_one(name, form):
    arguments, options, shape, expected = CONVS[name]
    conv, image = nn.Conv2d(*arguments, **options), torch.randn(shape)
    rank = None if form == "full" else 1
    layer = FusedLoRAConv2d.from_conv(conv, rank=rank, form=form, freeze=False)
    assert inference(layer, image) == inference(conv, image) == expected
    assert training(layer, image) == training(conv, image)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_two_inputs_count_as_one_image(activation):
    conv = ConvAct(6, 4, 3, padding=1, activation=activation)
    layer = FusedLoRAConv2d.from_conv(conv, rank=2, freeze=False)
    images = [torch.randn(2, channels, 9, 8) for channels in (4, 2, 4)]
    assert inference(layer, *images) == inference(conv, *images) == 2 * (2 * 9 * 8) * 4 * 6 * 9
    assert training(layer, *images) == training(conv, *images)
    images = [image[0] for image in images]
    assert training(layer, *images) == training(conv, *images)


def test_gradient_of_only_the_second_input_counts_as_that_of_both():
    """As of torch's convolution of the concatenated images."""
    layer = FusedLoRAConv2d.from_conv(ConvAct(6, 4, 3), rank=1).requires_grad_(False)
    first, second = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8, requires_grad=True)
    forward = 2 * (7 * 6) * 4 * 6 * 9
    assert counted(lambda: layer(first, second).sum().backward()) == 2 * forward


def test_frozen_convolution_counts_the_gradient_of_its_merged_weight_once():
    """The adapter's gradients are made of it; a plain frozen convolution computes none."""
    conv, image = nn.Conv2d(4, 6, 3), torch.randn(IMAGE)
    trained = training(conv, image)
    layer = FusedLoRAConv2d.from_conv(conv, rank=2, freeze=True)
    assert training(layer, image) == trained
    assert training(conv, image) == trained * 2 // 3
    layer.requires_grad_(False)
    assert training(layer, image) == training(conv, image)
    layer.lora_up.requires_grad_()
    assert counted(lambda: layer(image).sum().backward()) == trained * 2 // 3


@pytest.mark.parametrize("name", LINEARS)
def test_linear_layer_counts_as_the_plain_one(name):
    arguments, options, shape, expected = LINEARS[name]
    linear, image = nn.Linear(*arguments, **options), torch.randn(shape)
    layer = FusedLoRALinear.from_linear(linear, rank=2, freeze=False)
    assert inference(layer, image) == inference(linear, image) == expected
    layer.lora_up.requires_grad_(False)
    layer.lora_down.requires_grad_(False)
    assert training(layer, image) == training(linear, image)


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("freeze", [True, False])
def test_linear_adapter_counts_the_products_through_its_rank(name, freeze):
    """Its gradients are counted by torch in plain products: up's of x @ down.T, down's of grad @ up."""
    arguments, options, shape, _ = LINEARS[name]
    linear, image = nn.Linear(*arguments, **options), torch.randn(shape)
    layer = FusedLoRALinear.from_linear(linear, rank=2, freeze=freeze)
    rows, grad = image.flatten(0, -2), torch.randn(image[..., 0].numel(), 3)

    def adapter_gradients():
        up, down = layer.lora_up.detach(), layer.lora_down.detach()
        return grad.T @ (rows @ down.T), (grad @ up).T @ rows

    assert training(layer, image) == training(linear, image) + counted(adapter_gradients)


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_merge_that_is_left_out_is_as_large_as_documented(form):
    conv, image = nn.Conv2d(4, 6, (3, 2)), torch.randn(IMAGE)
    layer = FusedLoRAConv2d.from_conv(conv, rank=2, form=form)
    with use_backend("reference"):
        merge = inference(layer, image) - inference(conv, image)
    rank, positions = 2 * (2 if form == "reshape" else 1), 2 * 7 * 7
    assert merge * positions == inference(layer, image) * rank


def test_shipped_network_counts_what_its_report_says():
    network = create_model("cs25-unet-lorun9")
    y = network.physics.A(torch.zeros(1, 1, 64, 64))
    count = inference(network, y)
    assert count == lorun.report(network, (64, 64)).flops
    assert count > 8_000_000_000


def test_second_registration_replaces_the_first():
    from torch.utils import flop_counter

    conv, image = FusedLoRAConv2d(4, 6, 3), torch.randn(IMAGE)
    importlib.reload(flops)
    flops.register(flop_counter)
    finders = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") == flops.__name__]
    assert finders == [flops.RegisterAtImport]
    assert inference(conv, image) == 2 * (2 * 7 * 6) * 6 * 4 * 9


SCRIPT = """
import sys
{first}
import torch, lorun_kernels
assert ("torch.utils.flop_counter" in sys.modules) == {imported}
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    lorun_kernels.FusedLoRALinear(5, 3)(torch.ones(7, 5))
print(counter.get_total_flops())
"""


@pytest.mark.parametrize("first", ["", "import torch.utils.flop_counter"])
def test_formulas_are_there_whichever_is_imported_first(first):
    """And importing lorun_kernels alone does not import the counter, which imports Triton."""
    script = SCRIPT.format(first=first, imported=bool(first))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.split() == [str(2 * 7 * 5 * 3)], result.stderr
