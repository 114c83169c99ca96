"""Networks in the field's style compute the same as LoRun's, in the field's layout, and train the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.cassi_rolls import pad
from benchmarks.peers.field_network import (
    BlockConvolutions,
    CroppedRolls,
    FieldNetwork,
    PaddedRolls,
    merged_network,
    random_lorun,
    random_shared,
)
from lorun.networks import NetworkConfig
from lorun.physics import CASSI, BlockCS

BATCH, BANDS, HEIGHT, WIDTH, STAGES = 2, 5, 18, 23, 3
CONFIGS = {
    "cs": NetworkConfig("cs", ratio=0.1, block=8, width=4, stages=STAGES),
    "cassi": NetworkConfig("cassi", algorithm="hqs", bands=BANDS, width=4, stages=STAGES),
    "cassi, pgd": NetworkConfig("cassi", algorithm="pgd", bands=BANDS, width=4, stages=STAGES),
}


def random_network(task):
    """LoRun-K with the physics of its measurements."""
    shared = random_shared(CONFIGS[task])
    if task != "cs":
        shared.physics = CASSI(torch.rand(HEIGHT, WIDTH), BANDS)
    return random_lorun(shared)


@pytest.fixture(params=CONFIGS)
def case(request):
    """LoRun-K, and a measurement."""
    net = random_network(request.param)
    size = (16, 24) if request.param == "cs" else (HEIGHT, WIDTH)
    return net, net.physics.A(torch.rand(BATCH, net.physics.channels, *size)).detach()


@pytest.fixture(params=["cassi", "cassi, pgd"])
def cassi(request):
    net = random_network(request.param)
    return net, net.physics.A(torch.rand(BATCH, BANDS, HEIGHT, WIDTH))


def in_fields_style(net):
    data = BlockConvolutions if isinstance(net.physics, BlockCS) else CroppedRolls
    return FieldNetwork(net, data(net.physics, net.algorithm))


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_same_network_in_the_fields_style(case):
    net, y = case
    expected = net(y)
    assert torch.isfinite(expected).all()
    assert_close(in_fields_style(net)(y), expected)
    assert_close(merged_network(net)(y), expected)


@torch.no_grad()
def test_each_adapter_and_the_denoisers_do_something(case):
    net, y = case
    expected = net(y)
    assert (net.physics.start(y) - expected).abs().mean() > 1e-3
    for layer in net.denoisers[-1].modules():
        if hasattr(layer, "reset_adapter"):
            layer.reset_adapter()
    assert (net(y) - expected).abs().max() > 5e-4 * expected.abs().max()


def test_it_trains_the_same(case):
    net, y = case
    field, gradients = in_fields_style(net), []
    for one in (net, field):
        one(y).square().mean().backward()
        common = [net.raw_step, net.raw_lambda, *net.physics.parameters()]
        gradients.append([parameter.grad.clone() for parameter in common])
        one.zero_grad()
    for mine, its in zip(*gradients, strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)
    assert all(parameter.requires_grad for parameter in field.parameters())


@torch.no_grad()
def test_denoisers_on_padded_columns_are_a_wider_mask_that_is_dark_there(cassi):
    net, y = cassi
    physics, columns = net.physics, 2 * (BANDS - 1)
    wide = CASSI(F.pad(physics.mask, (0, columns)), BANDS)
    wide.start = lambda _: pad(physics.start(y))
    expected = net(F.pad(y, (0, columns)), physics=wide)[..., :WIDTH]
    result = FieldNetwork(net, PaddedRolls(physics, net.algorithm))(y)
    assert_close(result, expected)
    assert (result - net(y)).abs().max() > 1e-3


@torch.no_grad()
def test_nothing_in_the_fields_style_is_channels_last(case):
    net, y = case
    networks = [in_fields_style(net)]
    if isinstance(net.physics, CASSI):
        networks.append(FieldNetwork(net, PaddedRolls(net.physics, net.algorithm)))
    for field in networks:
        layouts = []

        def look(conv, inputs, output, layouts=layouts):
            for tensor in (conv.weight, *inputs, output):
                if tensor is not None:
                    layouts.append(tensor.stride() == torch.empty(tensor.shape).stride())

        convs = [part for part in field.modules() if isinstance(part, nn.Conv2d)]
        for conv in convs:
            conv.register_forward_hook(look)
        assert field(y).stride(-1) == 1
        assert len(convs) == 16 * STAGES
        assert len(layouts) >= 3 * len(convs) and all(layouts)


def test_what_the_fields_code_does_not_have_is_refused():
    for physics in (CASSI(torch.rand(8, 8), BANDS, step=1), CASSI(torch.rand(BANDS, 8, 8), BANDS)):
        with pytest.raises(ValueError, match="physics: expected an"):
            CroppedRolls(physics, "hqs")
    with pytest.raises(ValueError, match='algorithm: expected "pgd"'):
        BlockConvolutions(BlockCS(0.25, 8), "hqs")
