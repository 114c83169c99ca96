"""Training samples of super-resolution: photographs, each with a kernel and a noise level of its own."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorun.data import PhotoCrops
from lorun.data.locate import find_photo_folders
from lorun.physics import Physics, SuperResolution
from lorun.physics.blur_kernels import bicubic_kernel, gaussian_kernel, motion_kernel, normalised
from lorun.physics.physics import crop_to
from lorun.tasks.sr.settings import SRNetwork, SRTraining
from lorun.tasks.task import Sample, Size

VALIDATION_SIDE = 96
VALIDATION_WIDTHS = (0.7, 1.2, 1.6, 2.0)


class PhotoSamples:
    """Random crops, each blurred by a random kernel; all of a sample are decimated by one random scale."""

    def __init__(self, network: SRNetwork, data: tuple[str, ...], settings: SRTraining, seed: int):
        self.photos = PhotoCrops(find_photo_folders(data), seed, colour=network.channels == 3)
        self.channels, self.degradation, self.seed = network.channels, settings.degradation, seed

    def check(self, sizes: Sequence[Size], square: bool) -> None:
        if not square:
            raise ValueError("crop_width: super-resolution trains on square crops; leave it out")
        least = self.degradation.kernel_side + max(self.degradation.scales)
        for side, _ in sizes:
            if side < least:
                raise ValueError(
                    f"crop: expected at least {least} pixels, more than a kernel has, got {side}"
                )
            self.photos.check_side(side)
        self.photos.held_out(VALIDATION_SIDE)

    def prepare(self, physics: Physics) -> None:
        """Nothing in the physics comes from the data."""

    def sample(self, index: int, count: int, size: Size, device: torch.device) -> Sample:
        random = np.random.default_rng((self.seed, index, 1))
        scale = int(random.choice(self.degradation.scales))
        kernels = torch.stack([self._kernel(scale, random) for _ in range(count)])
        noisy = random.random(count) >= self.degradation.noise_free
        levels = torch.from_numpy(random.uniform(0, self.degradation.noise, count) * noisy).float()
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + index)
        physics = SuperResolution(kernels, scale, self.channels, levels, generator).to(device)
        return Sample(_divisible(self.photos.batch(index, count, size[0]), scale).to(device), physics)

    def held_out(self, device: torch.device) -> Sample:
        """Without noise, through Gaussian kernels, at the middle one of the scales."""
        scale = sorted(self.degradation.scales)[len(self.degradation.scales) // 2]
        photos = self.photos.held_out(VALIDATION_SIDE)
        images = _divisible(photos.repeat_interleave(len(VALIDATION_WIDTHS), 0), scale)
        kernels = torch.stack([gaussian_kernel(width) for width in VALIDATION_WIDTHS]).repeat(
            len(photos), 1, 1
        )
        return Sample(images.to(device), SuperResolution(kernels, scale, self.channels).to(device))

    def _kernel(self, scale: int, random: np.random.Generator) -> Tensor:
        side, kind = self.degradation.kernel_side, random.random()
        if kind < self.degradation.motion:
            return motion_kernel(random, side)
        if kind < self.degradation.motion + self.degradation.bicubic:
            return centred(bicubic_kernel(scale), side)
        width, other = random.uniform(self.degradation.widths[0], self.degradation.widths[1], 2)
        isotropic = random.random() < 0.5
        return gaussian_kernel((width, width if isotropic else other), random.uniform(0, 180), side)


def centred(kernel: Tensor, side: int) -> Tensor:
    """A kernel of odd size amid zeros, or cut, to `side` x `side`; it keeps its centre and sums to 1."""
    margin = (side - kernel.shape[0]) // 2
    return normalised(F.pad(kernel, (margin,) * 4))


def _divisible(images: Tensor, scale: int) -> Tensor:
    height, width = images.shape[-2:]
    return crop_to(images, (height // scale * scale, width // scale * scale))
