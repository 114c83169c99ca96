"""The adapted layers in common: what their weight reads as, what they refuse, what they say of themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear
from tests.lorun.adapters.architectures import SamePaddingConv2d, StandardisedConv2d
from tests.lorun_kernels.adaptable_modules import trained

LAYERS = {
    "conv": lambda **options: FusedLoRAConv2d(4, 6, 3, padding=1, rank=2, **options),
    "conv factored": lambda **options: FusedLoRAConv2d(4, 6, (3, 2), rank=3, form="factored", **options),
    "conv grouped": lambda **options: FusedLoRAConv2d(4, 6, 3, groups=2, rank=2, **options),
    "depthwise": lambda **options: FusedLoRAConv2d(4, 4, 3, groups=4, **options),
    "conv full": lambda **options: FusedLoRAConv2d(4, 6, 3, form="full", **options),
    "linear": lambda **options: FusedLoRALinear(4, 6, rank=2, **options),
    "linear full": lambda **options: FusedLoRALinear(4, 6, form="full", **options),
}

every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def sum_of(layer: nn.Module) -> torch.Tensor:
    """Base and adapter together, without the package."""
    added = layer.lora_delta if layer.lora_up is None else layer.lora_up @ layer.lora_down
    return (layer._parameters["weight"] + layer.scaling * added.view(layer.base_weight.shape)).detach()


def apply(layer: nn.Module, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(image, weight, layer.bias)
    return F.conv2d(image, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def image_for(layer: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((3, 4) if isinstance(layer, nn.Linear) else (2, 4, 6, 7)).to(dtype)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_reads_as_what_the_layer_applies(make, dtype):
    layer = trained(make(scaling=0.5)).to(dtype)
    image, expected = image_for(layer, dtype), sum_of(layer)
    torch.testing.assert_close(layer.weight.detach(), expected)
    torch.testing.assert_close(layer(image), apply(layer, image, expected))
    assert torch.equal(layer.weight, layer.merged_weight()) and layer.weight.requires_grad
    assert layer.base_weight is layer._parameters["weight"] is dict(layer.named_parameters())["weight"]
    assert layer.state_dict()["weight"].data_ptr() == layer.base_weight.data_ptr()
    assert not torch.allclose(layer.base_weight, expected)


@every_layer
def test_gradients_through_the_weight_reach_base_and_adapter(make):
    layer = trained(make(scaling=0.5))
    direction = torch.randn_like(layer.base_weight)
    (layer.weight * direction).sum().backward()
    assert torch.equal(layer.base_weight.grad, direction)
    if layer.lora_up is None:
        torch.testing.assert_close(layer.lora_delta.grad, 0.5 * direction)
    else:
        matrix = direction.reshape(layer.lora_up.shape[0], -1)
        torch.testing.assert_close(layer.lora_up.grad, 0.5 * matrix @ layer.lora_down.T)


@every_layer
@pytest.mark.parametrize("ready", [False, True])
def test_the_weight_can_be_set(make, ready):
    layer = trained(make()) if ready else make()
    target = torch.randn_like(layer.base_weight)
    layer.weight = nn.Parameter(target.clone())
    torch.testing.assert_close(layer.weight.detach(), target)
    image = image_for(layer)
    torch.testing.assert_close(layer(image), apply(layer, image, target), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.base_weight, target) is not ready
    with pytest.raises(TypeError, match="cannot assign"):
        layer.weight = target


def test_setting_the_weight_of_one_stage_leaves_the_others():
    conv = nn.Conv2d(4, 6, 3)
    first, second = (FusedLoRAConv2d.from_conv(conv) for _ in range(2))
    image = torch.randn(1, 4, 5, 6)
    expected = second(image)
    first.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
    assert torch.equal(second(image), expected) and second.base_weight is conv.weight
    assert first(image).shape == expected.shape  # and does not ask for retie


@pytest.mark.parametrize(
    "layer, parts",
    [
        (FusedLoRAConv2d(4, 6, 3, rank=2), ["4, 6, kernel_size=(3, 3)", "rank=2", "form='reshape'"]),
        (FusedLoRAConv2d(4, 4, 3, groups=4), ["groups=4", "full delta"]),
        (FusedLoRALinear(4, 6, rank=3, scaling=0.5), ["in_features=4", "rank=3, scaling=0.5"]),
        (FusedLoRALinear(4, 6, rank=3, rank_dropout=0.25), ["rank=3, rank_dropout=0.25"]),
        (FusedLoRALinear(4, 6, form="full"), ["full delta"]),
        (FusedLoRAConv2d(4, 6, 3, activation="leaky_relu"), ["activation='leaky_relu', negative_slope=0.01"]),
    ],
)
def test_the_repr_says_what_the_layer_has(layer, parts):
    for part in parts:
        assert part in repr(layer)
    assert ("scaling" in repr(layer)) == (layer.scaling != 1)
    assert ("dropout" in repr(layer)) == bool(layer.rank_dropout)


def hooked(kind: str) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    getattr(conv, kind)(lambda *args: None)
    return conv


def patched() -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.forward = lambda x: x
    return conv


class Calling(nn.Conv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Inside(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return 2 * super()._conv_forward(input, weight, bias)


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: StandardisedConv2d(4, 4, 3, padding=1), "StandardisedConv2d has a forward of its own"),
        (lambda: SamePaddingConv2d(4, 4, 3), "SamePaddingConv2d has a forward of its own"),
        (lambda: Calling(4, 4, 3), "forward of its own"),
        (lambda: Inside(4, 4, 3), "forward of its own"),
        (patched, "forward of its own"),
        (lambda: ScaledLinear(4, 4), "forward of its own"),
        (lambda: hooked("register_forward_hook"), "hooks, which would be lost"),
        (lambda: hooked("register_forward_pre_hook"), "hooks, which would be lost"),
        (lambda: hooked("register_full_backward_hook"), "hooks, which would be lost"),
        (lambda: hooked("register_load_state_dict_post_hook"), "hooks, which would be lost"),
        (lambda: nn.LazyConv2d(4, 3), "has no weight yet; call it once"),
        (lambda: nn.LazyLinear(4), "has no weight yet; call it once"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "weight is computed"),
        (lambda: FusedLoRAConv2d(4, 4, 3), "has an adapter already"),
        (lambda: FusedLoRALinear(4, 4), "has an adapter already"),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "expected an nn.Conv2d, got ConvTranspose2d"),
    ],
)
def test_a_layer_that_would_compute_something_else_is_refused(make, message):
    layer = make()
    convert = FusedLoRALinear.from_linear if isinstance(layer, nn.Linear) else FusedLoRAConv2d.from_conv
    with pytest.raises(TypeError, match=message):
        convert(layer)


def test_a_subclass_that_computes_as_its_parent_is_taken():
    class Named(nn.Conv2d):
        """With a constructor of its own."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 3, padding=1)

    class Projection(nn.Linear):
        pass

    conv, linear = Named(4), Projection(4, 5)
    image, rows = torch.randn(1, 4, 5, 6), torch.randn(3, 4)
    assert torch.equal(FusedLoRAConv2d.from_conv(conv)(image), conv(image))
    assert torch.equal(FusedLoRALinear.from_linear(linear)(rows), linear(rows))


def test_a_stray_activation_of_a_convolution_is_not_applied():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.activation, conv.negative_slope = "relu", "steep"
    image = torch.randn(1, 4, 5, 6)
    layer = FusedLoRAConv2d.from_conv(conv)
    assert layer.activation is None and torch.equal(layer(image), conv(image)) and (conv(image) < 0).any()
    with_activation = FusedLoRAConv2d.from_conv(ConvAct(4, 4, 3, activation="relu"))
    assert with_activation.activation == "relu" and (with_activation(image) >= 0).all()


HALF = {
    "groups 1": lambda: (FusedLoRAConv2d.from_conv, nn.Conv2d(8, 8, 3, padding=1)),
    "groups 8": lambda: (FusedLoRAConv2d.from_conv, nn.Conv2d(8, 16, 3, padding=1, groups=8)),
    "depthwise": lambda: (FusedLoRAConv2d.from_conv, nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "linear": lambda: (FusedLoRALinear.from_linear, nn.Linear(8, 8)),
}


@pytest.mark.parametrize("make", HALF.values(), ids=HALF)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_in_bfloat16_is_merged_with_float32_adapters_and_rounded_once(make, autocast):
    torch.manual_seed(0)
    convert, plain = make()
    layer = convert(plain.bfloat16(), scaling=0.5)
    adapters = {name: p for name, p in layer.named_parameters() if "lora_" in name}
    for parameter in adapters.values():
        parameter.data = torch.randn(parameter.shape)
    merged = (layer.base_weight.float() + (sum_of(layer) - layer.base_weight.float())).bfloat16()
    assert torch.equal(layer.weight, merged) and layer.weight.dtype == torch.bfloat16
    rows = isinstance(layer, nn.Linear)
    image = torch.randn((3, 8) if rows else (1, 8, 6, 7)).to(torch.float32 if autocast else torch.bfloat16)
    image.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, expected = layer(image), apply(layer, image, merged)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
    output.float().square().sum().backward()
    assert image.grad.dtype == image.dtype and layer.base_weight.grad is None and len(adapters) in (1, 2)
    for parameter in adapters.values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.any()


def test_small_steps_of_float32_adapters_beside_bfloat16_are_not_lost():
    layer = FusedLoRAConv2d.from_conv(nn.Conv2d(4, 4, 3).bfloat16())
    for parameter in (layer.lora_up, layer.lora_down):
        parameter.data = torch.ones(parameter.shape)
    optimizer = torch.optim.SGD([layer.lora_up, layer.lora_down], lr=1e-6)
    layer(torch.randn(1, 4, 6, 7).bfloat16()).float().sum().backward()
    optimizer.step()
    assert (layer.lora_up != 1).any() and (layer.lora_up.bfloat16() == 1).all()
