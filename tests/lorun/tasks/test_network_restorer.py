import pytest

import lorun
from lorun.denoisers import UNet
from lorun.physics import BlockCS
from lorun.tasks.network_restorer import NetworkRestorer


class GreyRestorer(NetworkRestorer):
    kind, task, others = BlockCS, "blocks", "take another"


def test_it_evaluates_a_network_of_its_kind_in_tiles():
    net = lorun.UnfoldingNetwork(BlockCS(0.25, block=8), UNet(width=4), 2, "shared").train()
    restorer = GreyRestorer(net, tile=128)
    assert restorer.net is net and not net.training and restorer.tile == 128
    assert GreyRestorer(net).tile is None


def test_other_networks_and_tiles_are_refused():
    net = lorun.UnfoldingNetwork(lorun.physics.CASSI(bands=1), UNet(width=4), 2, "shared")
    with pytest.raises(
        ValueError, match="net: expected a network for blocks, got one for CASSI; take another"
    ):
        GreyRestorer(net)
    net = lorun.UnfoldingNetwork(BlockCS(0.25, block=8), UNet(width=4), 2, "shared")
    with pytest.raises(ValueError, match="tile: expected at least 84"):
        GreyRestorer(net, tile=40)
