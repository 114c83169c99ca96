"""Blocks as rows of a matrix."""

import torch

from benchmarks.peers import block_cs as peers
from lorun.physics import BlockCS


def test_rows_of_an_image_that_is_not_square():
    physics = BlockCS(0.3, 3, learned=False)
    x, y, rho = torch.rand(2, 1, 6, 9), torch.rand(2, 3, 2, 3), torch.tensor(0.5)
    torch.testing.assert_close(peers.Rows(physics, y, rho).pgd_step(x), physics.pgd_step(x, y, rho))
