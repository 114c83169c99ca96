"""What every adapted layer has: a rank, a start, and a state dict that can be that of a plain layer."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRAConv2d


def adapted(**options) -> FusedLoRAConv2d:
    """A layer whose adapter is not zero."""
    layer = FusedLoRAConv2d(4, 6, 3, padding=1, rank=2, **options)
    nn.init.normal_(layer.lora_up)
    return layer


@pytest.mark.parametrize(
    "in_channels, out_channels, groups, gamma, rank",
    [
        (28, 28, 1, 10, 3),
        (30, 30, 1, 10, 3),
        (2, 28, 1, 10, 1),
        (112, 112, 1, 10, 12),
        (64, 64, 1, 12.5, 8),
        (1000, 1000, 1, 1.1, 11),
        (8, 8, 4, 100, 2),
    ],
)
def test_eq_12_sets_the_rank(in_channels, out_channels, groups, gamma, rank):
    layer = FusedLoRAConv2d(in_channels, out_channels, 3, groups=groups, gamma=gamma, form="factored")
    assert layer.rank == rank


def test_adapter_starts_at_zero_up_and_gaussian_down():
    torch.manual_seed(0)
    layer = FusedLoRAConv2d(64, 64, 3)
    assert not layer.lora_up.any()
    values = layer.lora_down.detach().flatten()
    std = (64 * 3) ** -0.5
    assert abs(values.std().item() / std - 1) < 0.05
    assert 0.60 < (values.abs() < std).float().mean() < 0.76
    assert values.abs().max() > 3 * std


@pytest.mark.parametrize("strict", [True, False])
def test_loads_a_conv2d_state_dict_without_renaming(strict):
    conv, layer = nn.Conv2d(4, 6, 3, padding=1), adapted()
    down = layer.lora_down.detach().clone()
    assert not any(layer.load_state_dict(conv.state_dict(), strict=strict))
    image = torch.randn(1, 4, 8, 8)
    assert torch.equal(layer(image), conv(image))
    assert torch.equal(layer.lora_down, down)


def test_half_an_adapter_is_a_missing_key():
    state = adapted().state_dict()
    del state["lora_down"]
    with pytest.raises(RuntimeError, match="lora_down"):
        adapted().load_state_dict(state)


def test_state_dict_deepcopy_and_pickle_round_trips():
    layer, image = adapted(scaling=0.5), torch.randn(1, 4, 8, 8)
    expected = layer(image)
    loaded = adapted(scaling=0.5)
    loaded.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = [
        loaded,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
        copy.deepcopy(layer).to(memory_format=torch.channels_last),
    ]
    for other in copies:
        torch.testing.assert_close(other(image), expected)


def test_meta_device_materialises():
    layer = FusedLoRAConv2d(4, 6, 3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    layer.reset_adapter()
    assert layer(torch.randn(1, 4, 8, 8)).isfinite().all()
