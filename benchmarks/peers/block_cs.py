"""The data steps of block compressive sensing: as published code writes them, and by linear algebra.

A peer is made for given physics, a measurement and a scale (rho or mu), so that whatever does not depend on x
is computed before the step. Images consist of whole blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.field_network import BlockConvolutions
from benchmarks.peers.packages import package
from lorun.physics import BlockCS


class Convolutions:
    """The step of `BlockConvolutions` alone."""

    def __init__(self, physics: BlockCS, y: Tensor, scale: Tensor) -> None:
        _, self.step = BlockConvolutions(physics, "pgd").begin(y)
        self.scale = scale

    def pgd_step(self, x: Tensor) -> Tensor:
        return self.step(x, self.scale)


class Rows:
    """Blocks become the rows of a matrix in each step: a network has whole images between its steps."""

    def __init__(self, physics: BlockCS, y: Tensor, scale: Tensor) -> None:
        self.phi, self.block, self.scale = physics.phi, physics.block, scale
        self.y = y.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()

    def pgd_step(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        return self._image(rows - self.scale * ((rows @ self.phi.t() - self.y) @ self.phi), x)

    def _rows(self, x: Tensor) -> Tensor:
        """One copy: a pixel unshuffle, which puts pixels before blocks, takes several times as long."""
        blocks = x.unflatten(3, (-1, self.block)).unflatten(2, (-1, self.block)).transpose(3, 4)
        return blocks.reshape(-1, self.block**2)

    def _image(self, rows: Tensor, like: Tensor) -> Tensor:
        blocks = rows.view(len(like), like.shape[2] // self.block, -1, self.block, self.block)
        return blocks.transpose(2, 3).reshape(like.shape)


class Gram(Rows):
    """Phi^T Phi and Phi^T y are formed once, as in ISTA-Net (jianzhangcs/ISTA-Net-PyTorch)."""

    def __init__(self, physics: BlockCS, y: Tensor, scale: Tensor) -> None:
        super().__init__(physics, y, scale)
        self.gram, self.start = self.phi.t() @ self.phi, self.y @ self.phi
        self.identity = torch.eye(len(self.gram), device=y.device)

    def pgd_step(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        return self._image(rows - self.scale * (rows @ self.gram) + self.scale * self.start, x)

    def hqs_step(self, w: Tensor) -> Tensor:
        right = self.start + self.scale * self._rows(w)
        return self._image(torch.linalg.solve(self.gram + self.scale * self.identity, right, left=False), w)


class Inverse(Gram):
    """The inverse of the normal equations is formed once."""

    def __init__(self, physics: BlockCS, y: Tensor, scale: Tensor) -> None:
        super().__init__(physics, y, scale)
        self.inverse = torch.linalg.inv(self.gram + self.scale * self.identity)

    def hqs_step(self, w: Tensor) -> Tensor:
        return self._image((self.start + self.scale * self._rows(w)) @ self.inverse, w)


class Deepinv(Rows):
    """deepinv's `CompressedSensing` of one block, on a batch of blocks.

    Raises:
        ImportError: if deepinv cannot be imported.
    """

    def __init__(self, physics: BlockCS, y: Tensor, scale: Tensor) -> None:
        super().__init__(physics, y, scale)
        shape = (1, self.block, self.block)
        self.physics = package("deepinv").physics.CompressedSensing(len(self.phi), shape, device=y.device)
        self.physics.load_state_dict({"_A": self.phi, "_A_adjoint": self.phi.t()}, strict=False)

    def pgd_step(self, x: Tensor) -> Tensor:
        blocks = self._blocks(x)
        step = self.physics.A_adjoint(self.physics.A(blocks) - self.y)
        return self._image((blocks - self.scale * step).flatten(1), x)

    def hqs_step(self, w: Tensor) -> Tensor:
        """By `prox_l2` with its defaults, which are conjugate gradients."""
        return self._image(self.physics.prox_l2(self._blocks(w), self.y, 1 / self.scale).flatten(1), w)

    def _blocks(self, x: Tensor) -> Tensor:
        return self._rows(x).unflatten(1, (1, self.block, self.block))
