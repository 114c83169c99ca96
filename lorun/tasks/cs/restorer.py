"""Photographs in, photographs out: measuring and restoring numpy images with a trained model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorun.files import write_in_one_step
from lorun.physics import BlockCS
from lorun.tasks.network_restorer import NetworkRestorer
from lorun.unfolding import UnfoldingNetwork

MIN_SIDE = 8
MAX_MEASUREMENT = 1e6


@dataclass(frozen=True)
class Measurement:
    """What a compressive camera delivers: `y` (M, h, w) float32 and the `size` (H, W) of the image."""

    y: np.ndarray
    size: tuple[int, int]

    def save(self, path: str | Path) -> None:
        """Write an .npz with the keys `y` and `size`."""
        write_in_one_step(path, self._write)

    def _write(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, y=self.y, size=np.array(self.size))


class Restorer(NetworkRestorer):
    """Measures and restores grey images with one model; refuses NaN, Inf and what does not fit.

    Args:
        net: a trained compressive-sensing network, as `lorun.create_model` returns.

    Raises:
        ValueError: a network for another task.
    """

    kind, task = BlockCS, "compressive sensing"
    others = "lorun.SpectralRestorer restores snapshots of spectral cubes"

    def __init__(self, net: UnfoldingNetwork):
        super().__init__(net)
        assert isinstance(net.physics, BlockCS)
        self._physics = net.physics

    @torch.no_grad()
    def measure(self, image: np.ndarray) -> Measurement:
        """Simulate the measurement of an image, (H, W) in [0, 1], with the model's Phi.

        Raises:
            ValueError: another shape, fewer than 8x8 pixels, NaN, Inf, or values outside [0, 1].
        """
        image = check_image(image)
        y = self._physics.A(image_tensor(image, self._physics))
        return Measurement(y[0].float().numpy(force=True), image.shape)

    def restore(self, measurement: Measurement) -> np.ndarray:
        """The image that the model restores, (H, W) float32 in [0, 1].

        Raises:
            ValueError: a measurement of another Phi, whose size does not fit, or with NaN or Inf.
        """
        y = checked_measurement(measurement, self._physics)
        return self._method.restore(y, None, measurement.size)[0]

    @torch.no_grad()
    def start(self, measurement: Measurement) -> np.ndarray:
        """Phi^T y, (H, W) float32 in [0, 1]: where the network starts from.

        Raises:
            ValueError: as `restore`.
        """
        y = checked_measurement(measurement, self._physics)
        return self._physics.A_adjoint(y, measurement.size)[0, 0].clamp(0, 1).float().numpy(force=True)


def image_tensor(image: np.ndarray, physics: BlockCS) -> Tensor:
    """An image (H, W) as Phi measures it, (1, 1, H, W) on its device."""
    return _tensor(image, physics)[None, None]


def checked_measurement(measurement: Measurement, physics: BlockCS) -> Tensor:
    """A measurement as a network takes it, (1, M, h, w); raises if it is not one by this Phi."""
    y, size = np.asarray(measurement.y), measurement.size
    if y.ndim != 3 or y.dtype.kind != "f":
        raise ValueError(f"y: expected a float array (M, h, w), got {y.dtype} {y.shape}")
    # Far above what any image in [0, 1] measures, far below what overflows on the way.
    if not np.isfinite(y).all() or np.abs(y).max(initial=0) > MAX_MEASUREMENT:
        raise ValueError(
            f"y: the measurement holds NaN, Inf or values beyond {MAX_MEASUREMENT:g}; fix those first"
        )
    tensor = _tensor(y, physics)[None]
    physics.check_measurement(tensor)
    if min(size) < 1:
        raise ValueError(f"size: expected an image of at least 1x1 pixels, got {tuple(size)}")
    blocks = tuple(-(-side // physics.block) for side in size)
    if blocks != tuple(y.shape[1:]):
        raise ValueError(f"size: an image of {size} has {blocks} blocks, the measurement has {y.shape[1:]}")
    return tensor


def _tensor(array: np.ndarray, physics: BlockCS) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(physics.phi)


def check_image(image: np.ndarray) -> np.ndarray:
    """An image as measuring needs it: (H, W), finite, in [0, 1], at least 8x8 pixels."""
    image = np.asarray(image)
    if image.ndim != 2:
        raise ValueError(f"image: expected a grey image (H, W), got {image.shape}; see lorun.data.to_grey")
    if min(image.shape) < MIN_SIDE:
        raise ValueError(
            f"image: expected at least {MIN_SIDE}x{MIN_SIDE} pixels, got {image.shape[0]}x{image.shape[1]}; "
            "use a larger photograph"
        )
    if not np.isfinite(image).all():
        raise ValueError("image: holds NaN or Inf; fix those pixels first")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(f"image: expected values in [0, 1], got {image.min():.4g} to {image.max():.4g}")
    return image


def read_measurement(path: str | Path) -> Measurement:
    """Read an .npz with the keys `y`, (M, h, w) float, and `size`, (H, W)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            y, size = file["y"], file["size"]
    except KeyError as error:
        raise ValueError(f"{path}: lacks the key {error}; a measurement holds `y` and `size`") from error
    except Exception as error:  # numpy raises a dozen kinds for a damaged archive
        raise ValueError(f"{path}: not a readable .npz measurement ({error}); write it again") from error
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ValueError(f"{path}: `size` must be two whole numbers, height and width, got {size!r}")
    return Measurement(y, (int(size[0]), int(size[1])))
