"""What each task trains on: images, their measurements, and the physics that measured them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lorun.data import CASSI_WAVELENGTHS, PhotoCrops, SpectralCrops, principal_phi, read_mask
from lorun.data.spectra import REAL_GAIN
from lorun.physics import CASSI, GaussianNoise, ShotNoise
from lorun.training.config import TrainConfig
from lorun.unfolding import UnfoldingNetwork

VALIDATION_SIDE = 96
VALIDATION_SIZE = (64, 256)


@dataclass(frozen=True)
class Sample:
    """Images (B, C, H, W), their measurement, and its physics where that is not the network's own."""

    images: Tensor
    y: Tensor
    physics: nn.Module | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]


class Task(Protocol):
    """Where training gets its samples from."""

    def check(self, config: TrainConfig) -> None:
        """Raise now what a later phase or segment would raise after hours."""

    def prepare(self, net: UnfoldingNetwork) -> None:
        """Give the untrained network what it takes from the data."""

    def sample(self, net: UnfoldingNetwork, index: int, count: int, size: tuple[int, int]) -> Sample:
        """Sample number `index`: `count` random crops, measured."""

    def held_out(self, net: UnfoldingNetwork) -> Sample:
        """What quality is watched on while training."""


def make_task(config: TrainConfig) -> Task:
    """The task that a run's network is for."""
    return {"cs": CompressiveSensing, "cassi": SnapshotSpectral}[config.network.task](config)


class CompressiveSensing:
    """Photographs, measured by the network's own Phi."""

    def __init__(self, config: TrainConfig):
        self.photos = PhotoCrops(config.data_folders(), config.seed)
        self.phi_start = config.phi_start

    def check(self, config: TrainConfig) -> None:
        self.photos.check_side(config.network.block)
        for phase in (config.phase1, config.phase2):
            if phase.crop_width:
                raise ValueError("crop_width: compressive sensing trains on square crops; leave it out")
            self.photos.check_side(max(phase.crop))
        self.photos.held_out(VALIDATION_SIDE)

    def prepare(self, net: UnfoldingNetwork) -> None:
        if self.phi_start == "principal":
            phi = net.physics.phi
            phi.data.copy_(principal_phi(self.photos, phi.shape[0], net.physics.block))

    def sample(self, net: UnfoldingNetwork, index: int, count: int, size: tuple[int, int]) -> Sample:
        return self._measured(net, self.photos.batch(index, count, size[0]))

    def held_out(self, net: UnfoldingNetwork) -> Sample:
        return self._measured(net, self.photos.held_out(VALIDATION_SIDE))

    @staticmethod
    def _measured(net: UnfoldingNetwork, images: Tensor) -> Sample:
        images = images.to(net.raw_step.device)
        return Sample(images, net.physics.A(images))


class SnapshotSpectral:
    """Spectral cubes, each measured through a random window of the mask, turned over at random."""

    def __init__(self, config: TrainConfig):
        spectral, network = config.spectral, config.network
        if network.bands != len(CASSI_WAVELENGTHS):
            raise ValueError(
                f"bands: training interpolates cubes onto {len(CASSI_WAVELENGTHS)} bands, got {network.bands}"
            )
        mask_path = config.resolve((spectral.mask,), "--spectral.mask")[0]
        self.mask = torch.from_numpy(read_mask(mask_path, bands=network.bands, step=network.step))
        self.cubes = SpectralCrops(
            config.data_paths(),
            CASSI_WAVELENGTHS,
            config.resolve(spectral.synthetic, "--spectral.synthetic"),
            spectral.synthetic_share,
            config.seed,
        )
        self.noise, self.sigma, self.seed = spectral.noise, spectral.sigma, config.seed

    def check(self, config: TrainConfig) -> None:
        self._check_mask("mask", VALIDATION_SIZE, "take a larger one")
        self.cubes.held_out(VALIDATION_SIZE)
        for phase in (config.phase1, config.phase2):
            for segment in range(len(phase.steps)):
                self._check_mask("crop", phase.size(segment), "use smaller crops")
                self.cubes.check_size(phase.size(segment))

    def prepare(self, net: UnfoldingNetwork) -> None:
        """Nothing of a CASSI network comes from the data."""

    def sample(self, net: UnfoldingNetwork, index: int, count: int, size: tuple[int, int]) -> Sample:
        random = np.random.default_rng((self.seed, index, 1))
        masks = torch.stack([self._window(size, random) for _ in range(count)])
        return self._measured(net, self.cubes.batch(index, count, size), masks, index)

    def held_out(self, net: UnfoldingNetwork) -> Sample:
        images = self.cubes.held_out(VALIDATION_SIZE)
        height, width = VALIDATION_SIZE
        masks = self.mask[..., :height, :width].expand(len(images), *images.shape[1:])
        return self._measured(net, images, masks, 0)

    def _check_mask(self, name: str, size: tuple[int, int], advice: str) -> None:
        if self.mask.shape[-2] < size[0] or self.mask.shape[-1] < size[1]:
            raise ValueError(
                f"{name}: the mask has {self.mask.shape[-2]}x{self.mask.shape[-1]} pixels, training takes "
                f"{size[0]}x{size[1]} of them; {advice}"
            )

    def _window(self, size: tuple[int, int], random: np.random.Generator) -> Tensor:
        top = random.integers(self.mask.shape[-2] - size[0] + 1)
        left = random.integers(self.mask.shape[-1] - size[1] + 1)
        window = self.mask[..., top : top + size[0], left : left + size[1]]
        turned = window.flip([axis for axis in (-2, -1) if random.integers(2)])
        return turned.expand(len(CASSI_WAVELENGTHS), *size)

    def _measured(self, net: UnfoldingNetwork, images: Tensor, masks: Tensor, index: int) -> Sample:
        device = net.raw_step.device
        noise = self._noise(index, device)
        physics = CASSI(masks, net.physics.bands, net.physics.step, noise=noise).to(device)
        images = images.to(device)
        with torch.no_grad():
            return Sample(images, physics(images), physics)

    def _noise(self, index: int, device: torch.device) -> nn.Module | None:
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + index)
        if self.noise == "gaussian":
            return GaussianNoise(self.sigma, generator)
        if self.noise == "shot":
            return ShotNoise(full_well=len(CASSI_WAVELENGTHS) / REAL_GAIN, generator=generator)
        return None
