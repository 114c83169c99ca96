"""The layers that are read off the shipped networks, and their blocks."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lorun
from benchmarks import table
from benchmarks.cases.layers import (
    adapted_networks,
    bare,
    bare_table,
    called_layers,
    denoiser_inputs,
    layer_table,
    named_layer,
    network_blocks,
    network_layers,
)
from benchmarks.cases.passes import conv_flops

LAYERS = layer_table()
BY_NAME = {layer.name: layer for layer in LAYERS}
SQUARE = BY_NAME["28->28 3x3 @256 gelu"]
RESIDUAL = BY_NAME["28->28 3x3 @256 +residual"]
DECODER = BY_NAME["56+28->28 3x3 @256 gelu"]


@pytest.mark.parametrize("name", adapted_networks())
def test_a_network_s_layers_are_all_its_convolutions(name):
    base = lorun.create_model(name, pretrained=False).denoiser.to("meta")
    image = torch.empty(1, base.channels, 256, 256, device="meta")
    with FlopCounterMode(display=False) as counter:
        base(*denoiser_inputs(base, image, 0.1))
    layers = network_layers(name)
    assert sum(conv_flops(layer, 1) for layer in layers) == counter.get_total_flops()
    assert len(layers) == 16


def test_the_table_holds_every_layer_once():
    assert set(LAYERS) == {layer for name in adapted_networks() for layer in network_layers(name)}
    # The two networks differ in their first and their last layer.
    assert sum(LAYERS.values()) == 18
    assert LAYERS[SQUARE] == 2


def test_layers_know_their_rank_and_what_comes_after_them():
    for layer in LAYERS:
        assert layer.rank == math.ceil(min(layer.in_channels, layer.out_channels) / 10)
    assert (DECODER.in_channels, DECODER.second_in_channels, DECODER.activation) == (84, 28, "gelu")
    assert (RESIDUAL.residual, RESIDUAL.activation, RESIDUAL.rank) == (True, None, 3)
    last = BY_NAME["28->1 1x1 @256"]
    assert (last.factor_shapes, last.padding) == (((1, 1), (1, 28)), (0, 0))


def test_hooks_are_gone_afterwards():
    network = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    called = called_layers(network.denoisers[0], 1, size=64)
    assert len(called) == 16 and called[0].name == "2->28 3x3 @64 gelu"
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_blocks_of_the_network():
    found = network_blocks()
    assert [len(layers) for layers in found.values()] == [2, 2, 2, 3, 3]
    assert found["decoder on a concatenation, 28 channels @256"] == [DECODER, SQUARE, RESIDUAL]


def test_layers_with_only_a_bias_are_there_once():
    layers = bare_table()
    assert len(layers) == 11 and sum(layers.values()) == 18
    assert layers[bare(SQUARE)] == 4


def test_a_layer_is_found_by_its_name():
    for layer in (*LAYERS, *bare_table()):
        assert named_layer(layer.name) == layer
    with pytest.raises(ValueError, match=r"layer: expected one of .*28->28 3x3 @256 gelu.*, got 'no such'"):
        named_layer("no such")


def test_the_table_has_every_layer_block_and_network():
    """Each once; the largest blocks first, since compiling them takes longest."""
    assert sorted(table.LAYERS) == sorted(layer.name for layer in LAYERS)
    assert sorted(table.BARE_LAYERS) == sorted(layer.name for layer in bare_table())
    assert sorted(table.MODELS) == sorted(adapted_networks())
    blocks = network_blocks()
    assert sorted(table.BLOCKS) == sorted(blocks)
    heights = [blocks[name][0].height for name in table.BLOCKS]
    assert heights == sorted(heights, reverse=True)
