"""Spectral cubes from snapshots: restoring numpy measurements with a trained CASSI network."""

import numpy as np
import torch
from torch import Tensor

from lorun.data.spectra import REAL_GAIN
from lorun.errors import ArgumentError
from lorun.physics import CASSI
from lorun.tasks.network_restorer import NetworkRestorer
from lorun.unfolding import UnfoldingNetwork

# The field scales real snapshots to this maximum of the sensor's range.
REAL_PEAK = 0.8
# More of a real snapshot above 1 than this is another scale, not overexposure.
MOST_OVEREXPOSED = 0.01
# What noise may add to the most that a cube in [0, 1] measures.
NOISE_ROOM = 2.0


class SpectralRestorer(NetworkRestorer):
    """Restores snapshots with one network; refuses NaN, Inf and what does not fit.

    Args:
        net: a trained CASSI network, as `lorun.create_model` returns.
        tile: side of the tiles that the denoiser works in, for scenes that do not fit into memory; None
            denoises whole scenes.

    Raises:
        ValueError: a network for another task, or tiles that are too small for their overlap.
    """

    kind, task = CASSI, "CASSI"
    others = "lorun.Restorer restores photographs"

    def __init__(self, net: UnfoldingNetwork, tile: int | None = None):
        super().__init__(net, tile)
        assert isinstance(net.physics, CASSI)
        self.bands, self.step = net.physics.bands, net.physics.step

    def restore(self, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The cube, (C, H, W) float32 in [0, 1].

        Args:
            y: a snapshot (H, W'), the sum of the coded bands of a cube in [0, 1]; `from_real` brings a real
                camera's to that scale.
            mask: the camera's, (H, W) or (C, H, W).

        Raises:
            ValueError: a snapshot that does not fit the mask, is on another scale, or holds NaN or Inf.
        """
        camera = camera_of(mask, self.bands, self.step)
        assert camera.size is not None
        return self._method.restore(snapshot_tensor(y, camera), camera, camera.size)


def measure(cube: np.ndarray, mask: np.ndarray, step: int = 2) -> np.ndarray:
    """The snapshot (H, W') float32 that a camera without noise takes of a cube (C, H, W)."""
    return measure_by(camera_of(mask, len(cube), step), cube)


def measure_by(camera: CASSI, cube: np.ndarray) -> np.ndarray:
    """As `measure`, by a camera that has its mask."""
    return camera.A(torch.from_numpy(np.ascontiguousarray(cube, np.float32))[None])[0].numpy()


def camera_of(mask: np.ndarray, bands: int, step: int | list[int]) -> CASSI:
    """The camera that has this mask, (H, W) or (C, H, W)."""
    return CASSI(torch.from_numpy(np.ascontiguousarray(mask, np.float32)), bands, step)


def snapshot_tensor(y: np.ndarray, camera: CASSI) -> Tensor:
    """A snapshot as a network takes it, (1, H, W'); raises if no cube in [0, 1] can measure it."""
    y = np.asarray(y)
    if y.ndim != 2 or y.dtype.kind != "f":
        raise ValueError(f"y: expected a float array (H, W'), got {y.dtype} {y.shape}")
    camera.check_measurement(torch.empty(1, *y.shape))
    if not np.isfinite(y).all() or y.min() < 0:
        raise ValueError("y: the snapshot holds NaN, Inf or negative values; fix those first")
    most = camera.bands * camera.mask.max().item()
    if y.max() > NOISE_ROOM * most:
        raise ArgumentError(
            "range",
            f"y: the snapshot holds values up to {y.max():.4g}, where {camera.bands} bands in [0, 1] add up "
            f"to {most:.4g} at most; divide it by the value that means 1",
        )
    return torch.from_numpy(np.ascontiguousarray(y, np.float32))[None]


def from_real(y: np.ndarray, bands: int) -> np.ndarray:
    """A real camera's snapshot on the scale of `CASSI.A`, as the field brings it there.

    Clipped to [0, 1], scaled to a maximum of 0.8, times C / 2.4.
    """
    overexposed = float(np.mean(y > 1))
    if overexposed > MOST_OVEREXPOSED:
        raise ArgumentError(
            "range",
            f"y: {overexposed:.0%} of the snapshot is above 1, up to {y.max():.4g}; divide it by the value "
            "that means 1",
        )
    clipped = np.clip(y, 0, 1)
    peak = clipped.max()
    if not peak > 0:
        raise ValueError("y: the snapshot is black; nothing can be restored from it")
    return (clipped * np.float32(REAL_PEAK / peak * bands / REAL_GAIN)).astype(np.float32)
