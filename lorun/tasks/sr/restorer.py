"""Photographs in, larger photographs out: restoring numpy images with a trained network."""

import numpy as np
import torch
from torch import Tensor

from lorun.errors import ArgumentError
from lorun.physics import SuperResolution
from lorun.physics.super_resolution import check_kernel_fits, check_scale
from lorun.tasks.network_restorer import NetworkRestorer
from lorun.tasks.sr.borders import margin_for, periodic
from lorun.tasks.sr.named_kernel import named_kernel
from lorun.unfolding import UnfoldingNetwork


class SuperResolver(NetworkRestorer):
    """Enlarges photographs with one network; refuses NaN, Inf and what does not fit.

    Args:
        net: a trained network for super-resolution, as `lorun.create_model` returns.
        tile: side of the tiles that the denoiser works in, for photographs that do not fit into memory; None
            denoises whole ones.

    Raises:
        ValueError: a network for another task, or tiles that are too small for their overlap.
    """

    kind, task = SuperResolution, "super-resolution"
    others = "lorun.Restorer and lorun.SpectralRestorer restore other measurements"

    def __init__(self, net: UnfoldingNetwork, tile: int | None = None):
        super().__init__(net, tile)
        self.channels = net.physics.channels

    def restore(
        self, image: np.ndarray, kernel: np.ndarray, scale: int, noise: float = 0.0, circular: bool = False
    ) -> np.ndarray:
        """The photograph, enlarged, float32 in [0, 1]: (h * scale, w * scale, 3), or (h * scale, w * scale)
        if grey.

        Args:
            image: (h, w, 3) RGB or (h, w) grey, in [0, 1].
            kernel: what blurred it, (kh, kw), in pixels of the large image; it is divided by its sum. Its
                centre is the element [kh // 2, kw // 2], which is where the upper-left pixel of every scale x
                scale lies. `lorun.physics.blur_kernels` has usual ones.
            scale: at least 1.
            noise: standard deviation of its noise, 0 to 1.
            circular: whether the blur ran around the borders, as `SuperResolution` does. A photograph's did
                not: it is continued beyond them, so that opposite borders do not bleed into each other.

        Raises:
            ValueError: an image or a kernel of another shape, with NaN or Inf, or values outside [0, 1]; a
                kernel larger than the result; a number out of its range.
        """
        check_scale(scale)
        check_noise(noise)
        channels_first = check_photo(image)
        found = named_kernel("kernel", np.asarray(kernel))
        size = (channels_first.shape[1] * scale, channels_first.shape[2] * scale)
        check_kernel_fits(found.kernel, size)
        physics = SuperResolution(found.kernel, scale, self.channels, noise)
        y = channels_first if circular else periodic(channels_first, margin_for(found.kernel, scale))
        restored = self._method.restore(photo_tensor(y, self.channels), physics, size)
        return restored.mean(0) if len(channels_first) == 1 else restored.transpose(1, 2, 0)


def check_noise(noise: float) -> None:
    """Raise ArgumentError if this cannot be the standard deviation of noise where white is 1."""
    if not 0 <= noise <= 1:
        raise ArgumentError(
            "noise",
            f"noise: expected a standard deviation of 0 to 1, where white is 1, got {noise}; 25 of 255 is "
            "0.098",
        )


def check_photo(image: np.ndarray) -> np.ndarray:
    """A photograph (H, W) or (H, W, 3), finite and in [0, 1], as (1 or 3, H, W) float32."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
        raise ValueError(f"image: expected (H, W, 3) or a grey (H, W), got {image.shape}")
    if image.dtype.kind != "f" or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"image: expected floats in [0, 1] without NaN, got {image.dtype} from {image.min():.4g} to "
            f"{image.max():.4g}; divide it by the value that means white"
        )
    return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1), np.float32)


def photo_tensor(y: np.ndarray, channels: int) -> Tensor:
    """A photograph (C, h, w) as a network of so many channels takes it, (1, channels, h, w)."""
    if len(y) > channels:
        raise ValueError(
            f"image: expected a grey image (H, W), because this network restores grey, got {len(y)} colours"
        )
    return torch.from_numpy(np.ascontiguousarray(y)).expand(channels, -1, -1)[None]
