"""What makes an image of a measurement: a trained network, or a method without one."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lorun.physics import Physics
from lorun.tiling import denoise_in_tiles
from lorun.unfolding import UnfoldingNetwork, alignment_of, reach_of


class Method(Protocol):
    """Restores measurements by `physics`, or by another that `restore` is given."""

    @property
    def physics(self) -> Physics: ...

    def restore(self, y: Tensor, physics: Physics | None, size: tuple[int, int]) -> np.ndarray:
        """The image of one measurement (1, ...): (C, H, W) float32 in [0, 1].

        Args:
            physics: what measured it; None is the method's own.
            size: (H, W) of the image.
        """


class NetworkMethod:
    """Restores by a network, in the network's dtype and on its device.

    Args:
        net: put into evaluation mode.
        tile: side of the tiles that the denoiser works in, for scenes that do not fit into memory; None
            denoises whole scenes.

    Raises:
        ValueError: tiles that are too small for their overlap.
    """

    def __init__(self, net: UnfoldingNetwork, tile: int | None = None):
        if tile is not None:
            check_tile(tile, net.stage_denoiser(0))
        self.net, self.tile = net.eval(), tile
        self.physics = net.physics

    @torch.no_grad()
    def restore(self, y: Tensor, physics: Physics | None, size: tuple[int, int]) -> np.ndarray:
        like = self.net.raw_step
        if physics is not None:
            # A copy, because other methods restore the same scene elsewhere.
            physics = copy.deepcopy(physics).to(like.device, like.dtype)
        image = self.net(y.to(like), physics=physics, size=size, tile=self.tile)
        return image[0].clamp(0, 1).float().numpy(force=True)


@dataclass(frozen=True)
class UntrainedMethod:
    """A method without a network, such as GAP-TV: solve(y, physics) is the image (1, C, H, W)."""

    solve: Callable[[Tensor, Any], Tensor]
    physics: Physics

    @torch.no_grad()
    def restore(self, y: Tensor, physics: Physics | None, size: tuple[int, int]) -> np.ndarray:
        """As `Method.restore`."""
        image = self.solve(y, self.physics if physics is None else physics)
        return image[0, :, : size[0], : size[1]].clamp(0, 1).float().numpy(force=True)


def check_tile(tile: int, denoiser: nn.Module) -> None:
    """Raise if tiles of this side are too small for what a denoiser sees: before the work, not within it."""
    pixel = torch.zeros(1, 1, 1, 1)
    denoise_in_tiles(lambda tile: tile, (pixel,), tile, reach_of(denoiser), alignment_of(denoiser))
