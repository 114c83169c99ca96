"""FusedLoRAConv2d: nn.Conv2d with an adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRAConv2d, reference

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def adapted(**options) -> FusedLoRAConv2d:
    """A layer whose adapter is not zero."""
    layer = FusedLoRAConv2d(4, 6, 3, padding=1, rank=2, **options)
    nn.init.normal_(layer.lora_up)
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [0, (1, 2), "same", "valid"])
def test_from_conv_equals_its_conv_bit_for_bit_at_the_start(padding, padding_mode, layout):
    conv = nn.Conv2d(4, 6, (3, 5), padding=padding, padding_mode=padding_mode).to(memory_format=layout)
    layer = FusedLoRAConv2d.from_conv(conv)
    image = torch.randn(2, 4, 9, 8).to(memory_format=layout)
    assert torch.equal(layer(image), conv(image))
    assert layer(image).stride() == conv(image).stride()


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_trained_adapter_equals_the_definition(padding_mode, form):
    layer = FusedLoRAConv2d(4, 6, 3, padding=1, groups=2, padding_mode=padding_mode, rank=2, form=form)
    nn.init.normal_(layer.lora_up)
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode=padding_mode)
    weight = reference.merge_lora(layer.base_weight, layer.lora_up, layer.lora_down)
    plain.load_state_dict({"weight": weight, "bias": layer.bias})
    image = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(image), plain(image))
    torch.testing.assert_close(layer.merged_weight(), weight)


@pytest.mark.parametrize("freeze", [True, False])
def test_from_conv_shares_the_parameters(freeze):
    conv = nn.Conv2d(4, 6, 3, dtype=torch.float64).eval()
    stages = [FusedLoRAConv2d.from_conv(conv, freeze=freeze) for _ in range(3)]
    for layer in stages:
        assert layer.base_weight is conv.weight and layer.bias is conv.bias
        assert layer.lora_up.dtype == torch.float64 and not layer.training
        assert layer.lora_up.requires_grad and layer.lora_down.requires_grad
    assert conv.weight.requires_grad is conv.bias.requires_grad is not freeze
    assert stages[0].lora_up is not stages[1].lora_up


def test_frozen_base_gets_no_gradient():
    layer = FusedLoRAConv2d.from_conv(nn.Conv2d(4, 6, 3))
    layer(torch.randn(1, 4, 8, 8)).sum().backward()
    assert layer.base_weight.grad is None and layer.bias.grad is None
    assert layer.lora_up.grad is not None


def test_takes_every_argument_of_conv2d():
    arguments = (4, 6, 3, 2, 1, 2, 2, False, "reflect", "cpu", torch.float64)
    layer, conv = FusedLoRAConv2d(*arguments), nn.Conv2d(*arguments)
    for name in ("stride", "padding", "dilation", "groups", "bias", "padding_mode", "kernel_size"):
        assert getattr(layer, name) == getattr(conv, name)
    assert layer.base_weight.dtype == layer.lora_down.dtype == torch.float64


def test_repr_shows_the_adapter():
    assert "rank=2, form='factored'" in repr(adapted(form="factored"))


@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_layers_get_a_full_additive_weight(bias):
    conv = nn.Conv2d(8, 8, 3, groups=8, bias=bias)
    layer = FusedLoRAConv2d.from_conv(conv)
    image = torch.randn(1, 8, 6, 6)
    assert layer.rank is None and layer.lora_up is None and layer.lora_delta.shape == conv.weight.shape
    assert torch.equal(layer(image), conv(image))
    layer(image).sum().backward()
    assert layer.lora_delta.grad is not None and layer.base_weight.grad is None
    layer.lora_delta.data.normal_()
    expected = nn.functional.conv2d(image, conv.weight + layer.lora_delta, conv.bias, groups=8)
    torch.testing.assert_close(layer(image), expected)
    layer.load_state_dict(conv.state_dict())
    torch.testing.assert_close(layer(image), expected)


@pytest.mark.parametrize("options", [{"rank": 1}, {"form": "factored"}])
def test_depthwise_layers_can_be_low_rank_where_asked(options):
    layer = FusedLoRAConv2d(8, 8, 3, groups=8, **options)
    assert layer.rank == 1 and layer.lora_delta is None
    assert layer(torch.randn(1, 8, 6, 6)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank must be an int between 1 and 4"),
        ({"rank": 5}, "rank must be an int between 1 and 4"),
        ({"rank": 1.5}, "rank must be an int"),
        ({"gamma": -1}, "gamma must be a percentage"),
        ({"gamma": 0}, "gamma must be a percentage"),
        ({"gamma": 101}, "gamma must be a percentage"),
        ({"gamma": float("nan")}, "gamma must be a percentage"),
        ({"form": "low"}, "form must be one of"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
        ({"padding": "full"}, "padding"),
        ({"groups": 3}, "divisible by groups"),
    ],
)
def test_constructor_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        FusedLoRAConv2d(4, 6, 3, **options)


def test_from_conv_refuses_what_it_cannot_share():
    with pytest.raises(TypeError, match="expected an nn.Conv2d, got Linear"):
        FusedLoRAConv2d.from_conv(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="has an adapter already"):
        FusedLoRAConv2d.from_conv(FusedLoRAConv2d(4, 6, 3))
    with pytest.raises(TypeError, match="weight is computed"):
        FusedLoRAConv2d.from_conv(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)))
