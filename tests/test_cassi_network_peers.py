"""What benchmarks/test_cassi_network.py compares computes the same."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.cassi_network_peers import FieldNetwork, merged_network, random_networks
from benchmarks.cassi_peers import pad
from lorun.physics import CASSI

BATCH, BANDS, HEIGHT, WIDTH, STAGES = 2, 5, 18, 23, 3


@pytest.fixture(params=["pgd", "hqs"])
def case(request):
    """LoRun-K, a camera with its mask, and a measurement."""
    _, net = random_networks(BANDS, 4, STAGES, request.param)
    physics = CASSI(torch.rand(HEIGHT, WIDTH), BANDS)
    return net, physics, physics.A(torch.rand(BATCH, BANDS, HEIGHT, WIDTH))


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_same_network_in_the_fields_style(case):
    net, physics, y = case
    expected = net(y, physics=physics)
    assert_close(FieldNetwork(net, physics, padded=False)(y), expected)
    assert_close(merged_network(net)(y, physics=physics), expected)
    # Adapters and denoisers do something.
    start, unadapted = physics.start(y), copy.deepcopy(net)
    for layer in unadapted.denoisers.modules():
        if hasattr(layer, "reset_adapter"):
            layer.reset_adapter()
    for other in (unadapted(y, physics=physics), start):
        assert (other - expected).abs().mean() > 1e-3


@torch.no_grad()
def test_denoisers_on_padded_columns_are_a_wider_camera_that_is_dark_there(case):
    net, physics, y = case
    columns = 2 * (BANDS - 1)
    wide = CASSI(nn.functional.pad(physics.mask, (0, columns)), BANDS)
    wide.start = lambda _: pad(physics.start(y))
    expected = net(nn.functional.pad(y, (0, columns)), physics=wide)[..., :WIDTH]
    result = FieldNetwork(net, physics, padded=True)(y)
    assert_close(result, expected)
    assert (result - net(y, physics=physics)).abs().max() > 1e-3


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_nothing_in_the_fields_style_is_channels_last(case, padded):
    net, physics, y = case
    field, layouts = FieldNetwork(net, physics, padded), []

    def look(conv, inputs, output):
        for tensor in (conv.weight, *inputs, output):
            if tensor is not None:
                layouts.append(tensor.stride() == torch.empty(tensor.shape).stride())

    convs = [part for part in field.modules() if isinstance(part, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_hook(look)
    assert field(y).stride(-1) == 1
    assert len(convs) == 16 * STAGES
    assert len(layouts) >= 3 * len(convs) and all(layouts)


def test_another_step_or_mask_is_refused():
    _, net = random_networks(BANDS, 4, 1)
    for physics in (CASSI(torch.rand(8, 8), BANDS, step=1), CASSI(torch.rand(BANDS, 8, 8), BANDS)):
        with pytest.raises(ValueError, match="physics: expected an"):
            FieldNetwork(net, physics, padded=False)
