"""torch.fx records networks with adapted layers: the same results, from adapters that stay live."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from lorun_kernels import (
    FusedLoRAConv2d,
    FusedLoRALinear,
    adapted_weights,
    add_adapter,
    merge,
    to_plain,
    use_backend,
)

MODES = ["zeros", "reflect", "replicate", "circular"]


class TwoInputs(nn.Module):
    """A convolution of two images as one, with a residual, as a U-Net's decoder calls it."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layer = FusedLoRAConv2d(6, 4, 3, padding=1, activation="leaky_relu", **options)

    def forward(self, image, skip):
        return self.layer(image, skip, residual=image)


class Mixer(nn.Module):
    """A module that applies a Parameter of its own and reads the weight of a layer for its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image):
        mixed = torch.einsum("oc,nchw->nohw", self.mix, self.conv(image))
        return nn.functional.conv_transpose2d(mixed, self.conv.weight, padding=1)


def mixer() -> nn.Sequential:
    network = nn.Sequential(Mixer())
    add_adapter(network[0], "mix", rank=2, scaling=0.5)
    add_adapter(network[0].conv, rank=1)
    return network


def adapted(*layers: nn.Module, **options) -> nn.Sequential:
    return nn.Sequential(*(add_adapter(layer, **options) for layer in layers))


IMAGE, ROWS = (2, 4, 7, 6), (3, 5, 8)

CASES = {
    **{f"conv-{mode}": lambda mode=mode: (_conv(padding_mode=mode), [IMAGE]) for mode in MODES},
    "conv-same": lambda: (_conv(padding="same", kernel_size=(2, 3)), [IMAGE]),
    "conv-activation": lambda: (_conv(activation="gelu", scaling=0.5, form="factored"), [IMAGE]),
    "conv-full": lambda: (_conv(form="full", activation="relu"), [IMAGE]),
    "conv-depthwise": lambda: (_conv(groups=4), [IMAGE]),
    "two-inputs": lambda: (TwoInputs(rank=2), [IMAGE, (2, 2, 7, 6)]),
    "two-inputs-full": lambda: (TwoInputs(form="full"), [IMAGE, (2, 2, 7, 6)]),
    "linear": lambda: (nn.Sequential(FusedLoRALinear(8, 6, rank=2, scaling=2.0)), [ROWS]),
    "linear-full": lambda: (nn.Sequential(FusedLoRALinear(8, 6, bias=False, form="full")), [ROWS]),
    "transposed": lambda: (
        adapted(nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 3), rank=1),
        [IMAGE],
    ),
    "transposed-full": lambda: (adapted(nn.ConvTranspose2d(4, 4, 2, 2), form="full"), [IMAGE]),
    "own-parameter": lambda: (mixer(), [IMAGE]),
}


def _conv(kernel_size=3, padding=1, **options) -> nn.Sequential:
    return nn.Sequential(FusedLoRAConv2d(4, 4, kernel_size, padding=padding, **options))


def trained(network: nn.Module) -> nn.Module:
    """The network with adapters that add something."""
    with torch.no_grad():
        for weight in adapted_weights(network).values():
            for tensor in weight.tensors:
                tensor.normal_(std=0.3)
    return network


def case(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    network, shapes = CASES[name]()
    return trained(network), [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_traced_network_computes_what_ordinary_modules_do(name):
    network, images = case(name)
    expected = to_plain(network)(*images)
    traced = symbolic_trace(network)
    torch.testing.assert_close(traced(*images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traced(*images), network(*images))


@pytest.mark.parametrize("name", CASES)
def test_traced_network_follows_its_adapters(name):
    network, images = case(name)
    traced = symbolic_trace(network)
    before = traced(*images)
    trained(network)
    after = traced(*images)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after, to_plain(network)(*images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_traced_network_reach_its_adapters(name):
    network, images = case(name)
    tensors = [t for weight in adapted_weights(network).values() for t in (weight.base, *weight.tensors)]
    expected = torch.autograd.grad(network(*images).square().sum(), tensors)
    gradients = torch.autograd.grad(symbolic_trace(network)(*images).square().sum(), tensors)
    assert all(gradient.any() for gradient in gradients)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_graph_has_nothing_that_is_not_used(name):
    graph = symbolic_trace(case(name)[0]).graph
    assert not graph.eliminate_dead_code(), graph


def test_backend_is_chosen_when_the_recorded_network_runs():
    network, images = case("conv-activation")
    traced = symbolic_trace(network)
    with torch.profiler.profile() as profile, torch.no_grad():
        traced(*images)
    assert any(event.name == "lorun::lora_conv2d" for event in profile.events())
    with use_backend("reference"), torch.profiler.profile() as profile, torch.no_grad():
        traced(*images)
    assert not any(event.name == "lorun::lora_conv2d" for event in profile.events())


@pytest.mark.parametrize("name", ["conv-zeros", "linear", "transposed", "own-parameter"])
def test_factors_of_a_wider_dtype_are_recorded(name):
    network, images = case(name)
    network.double()
    for weight in adapted_weights(network).values():
        weight.base.data = weight.base.data.float()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data.float()
    torch.testing.assert_close(symbolic_trace(network)(*images), network(*images))


@pytest.mark.parametrize("name", ["conv-zeros", "linear", "transposed", "own-parameter"])
def test_merged_network_is_recorded(name):
    network, images = case(name)
    expected = network(*images)
    merge(network.eval())
    torch.testing.assert_close(symbolic_trace(network)(*images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FusedLoRAConv2d(4, 4, 3, rank=2, rank_dropout=0.5),
        lambda: FusedLoRALinear(6, 4, rank=2, rank_dropout=0.5),
        lambda: add_adapter(nn.ConvTranspose2d(4, 4, 2), rank=2, rank_dropout=0.5),
    ],
)
def test_ranks_are_dropped_anew_in_every_call_of_a_network_recorded_in_training(make):
    network, image = trained(nn.Sequential(make())), torch.randn(IMAGE)
    traced, recorded_in_eval = symbolic_trace(network), symbolic_trace(copy.deepcopy(network).eval())
    results = torch.stack([traced(image) for _ in range(40)])
    assert 2 <= len(results.flatten(1).unique(dim=0)) <= 4  # two ranks: none, one, the other, both
    assert torch.equal(recorded_in_eval(image), recorded_in_eval(image))


@pytest.mark.parametrize("make", [lambda: FusedLoRAConv2d(4, 4, 3), lambda: FusedLoRALinear(8, 6)])
def test_a_layer_by_itself_is_refused_with_what_to_do(make):
    with pytest.raises(TypeError, match=r"trace nn\.Sequential\(layer\)"):
        symbolic_trace(make())
