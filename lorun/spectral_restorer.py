"""Spectral cubes from snapshots: restoring numpy measurements with a trained CASSI network or without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lorun.data.spectra import REAL_GAIN
from lorun.physics import CASSI
from lorun.tiling import OVERLAP, denoise_in_tiles
from lorun.unfolding import UnfoldingNetwork

# The field scales real snapshots to this maximum of the sensor's range.
REAL_PEAK = 0.8
# More of a real snapshot above 1 than this is another scale, not overexposure.
MOST_OVEREXPOSED = 0.01
# What noise may add to the most that a cube in [0, 1] measures.
NOISE_ROOM = 2.0


class SpectralMethod(Protocol):
    """Anything that makes a cube of a snapshot."""

    bands: int
    step: int

    def restore(self, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(H, W') and a mask -> (C, H, W) float32 in [0, 1]."""


class SpectralRestorer:
    """Restores snapshots with one network; refuses NaN, Inf and what does not fit.

    Args:
        net: a trained CASSI network, as `lorun.create_model` returns.
        tile: side of the tiles that the denoiser works in, for scenes that do not fit into memory; None
            denoises whole scenes.
    """

    def __init__(self, net: UnfoldingNetwork, tile: int | None = None):
        if not isinstance(net.physics, CASSI):
            raise ValueError(
                f"net: expected a network for CASSI, got one for {type(net.physics).__name__}; "
                "lorun.Restorer restores photographs"
            )
        if tile is not None:
            check_tile(tile, net.stage_denoiser(0).downscale)
        self.net, self.tile = net.eval(), tile
        self.bands, self.step = net.physics.bands, net.physics.step

    @torch.no_grad()
    def restore(self, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The cube, (C, H, W) float32 in [0, 1].

        Args:
            y: a snapshot (H, W'), the sum of the coded bands of a cube in [0, 1]; `from_real` brings a real
                camera's to that scale.
            mask: the camera's, (H, W) or (C, H, W).
        """
        device = self.net.raw_step.device
        physics = camera(mask, self.bands, self.step)
        y = snapshot_tensor(y, physics).to(device)
        cube = self.net(y, physics=physics.to(device), tile=self.tile)
        return cube[0].clamp(0, 1).float().numpy(force=True)


@dataclass(frozen=True)
class UntrainedMethod:
    """A method without a network, such as `gap_tv`: solve(y, physics) is the cube (1, C, H, W)."""

    solve: Callable[[Tensor, CASSI], Tensor]
    bands: int = 28
    step: int = 2

    @torch.no_grad()
    def restore(self, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """As `SpectralRestorer.restore`."""
        physics = camera(mask, self.bands, self.step)
        return self.solve(snapshot_tensor(y, physics), physics)[0].clamp(0, 1).numpy()


def measure(cube: np.ndarray, mask: np.ndarray, step: int = 2) -> np.ndarray:
    """The snapshot (H, W') float32 that a camera without noise takes of a cube (C, H, W)."""
    x = torch.from_numpy(np.ascontiguousarray(cube, np.float32))[None]
    return camera(mask, len(cube), step).A(x)[0].numpy()


def camera(mask: np.ndarray, bands: int, step: int) -> CASSI:
    """The physics of a mask in numpy."""
    return CASSI(torch.from_numpy(np.ascontiguousarray(mask, np.float32)), bands, step)


def snapshot_tensor(y: np.ndarray, physics: CASSI) -> Tensor:
    """A snapshot as a network takes it, (1, H, W'); raises where no cube in [0, 1] measures it."""
    y = np.asarray(y)
    if y.ndim != 2 or y.dtype.kind != "f":
        raise ValueError(f"y: expected a float array (H, W'), got {y.dtype} {y.shape}")
    physics.check_measurement(torch.empty(1, *y.shape))
    if not np.isfinite(y).all() or y.min() < 0:
        raise ValueError("y: the snapshot holds NaN, Inf or negative values; mend those first")
    most = physics.bands * physics.mask.max().item()
    if y.max() > NOISE_ROOM * most:
        raise ValueError(
            f"y: the snapshot holds values up to {y.max():.4g}, where {physics.bands} bands in [0, 1] add up "
            f"to {most:.4g} at most; divide it by the value that means 1 (--range)"
        )
    return torch.from_numpy(np.ascontiguousarray(y, np.float32))[None]


def from_real(y: np.ndarray, bands: int) -> np.ndarray:
    """A real camera's snapshot on the scale of `CASSI.A`, as the field brings it there.

    Clipped to [0, 1], scaled to a maximum of 0.8, times C / 2.4.
    """
    overexposed = float(np.mean(y > 1))
    if overexposed > MOST_OVEREXPOSED:
        raise ValueError(
            f"y: {overexposed:.0%} of the snapshot is above 1, up to {y.max():.4g}; divide it by the value "
            "that means 1 (--range)"
        )
    clipped = np.clip(y, 0, 1)
    peak = clipped.max()
    if not peak > 0:
        raise ValueError("y: the snapshot is black; nothing can be restored from it")
    return (clipped * np.float32(REAL_PEAK / peak * bands / REAL_GAIN)).astype(np.float32)


def check_tile(tile: int, align: int) -> None:
    """Raise where tiles of this side are too small for their overlap: before the work, not within it."""
    denoise_in_tiles(lambda pixel: pixel, (torch.zeros(1, 1, 1, 1),), tile, OVERLAP, align)
