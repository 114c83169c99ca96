"""Training samples of CASSI: crops of spectral cubes, each measured through a random window of the mask."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lorun.data import CASSI_WAVELENGTHS, SpectralCrops, read_mask
from lorun.data.locate import find_data, find_training_data
from lorun.data.spectra import REAL_GAIN
from lorun.errors import ArgumentError
from lorun.physics import CASSI, GaussianNoise, Physics, ShotNoise
from lorun.tasks.cassi.settings import CASSINetwork, CASSITraining
from lorun.tasks.task import Sample, Size

VALIDATION_SIZE = (64, 256)


class SpectralSamples:
    """Spectral cubes, each measured through a random window of the mask, flipped at random."""

    def __init__(self, network: CASSINetwork, data: tuple[str, ...], settings: CASSITraining, seed: int):
        if network.bands != len(CASSI_WAVELENGTHS):
            raise ValueError(
                f"bands: training interpolates cubes onto {len(CASSI_WAVELENGTHS)} bands, got {network.bands}"
            )
        spectral = settings.spectral
        mask_path = find_data((spectral.mask,), "spectral.mask")[0]
        try:
            self.mask = torch.from_numpy(read_mask(mask_path, bands=network.bands, step=network.step))
        except ArgumentError as error:
            raise ArgumentError("spectral.mask", str(error)) from error
        self.cubes = SpectralCrops(
            find_training_data(data),
            CASSI_WAVELENGTHS,
            find_data(spectral.synthetic, "spectral.synthetic"),
            spectral.synthetic_share,
            seed,
        )
        self.bands, self.step = network.bands, network.step
        self.noise, self.sigma, self.seed = spectral.noise, spectral.sigma, seed

    def check(self, sizes: Sequence[Size], square: bool) -> None:
        self._check_mask("mask", VALIDATION_SIZE, "take a larger one")
        self.cubes.held_out(VALIDATION_SIZE)
        for size in sizes:
            self._check_mask("crop", size, "use smaller crops")
            self.cubes.check_size(size)

    def prepare(self, physics: Physics) -> None:
        """Nothing in a CASSI network comes from the data."""

    def sample(self, index: int, count: int, size: Size, device: torch.device) -> Sample:
        random = np.random.default_rng((self.seed, index, 1))
        masks = torch.stack([self._window(size, random) for _ in range(count)])
        return self._measured_by(masks, self.cubes.batch(index, count, size), index, device)

    def held_out(self, device: torch.device) -> Sample:
        images = self.cubes.held_out(VALIDATION_SIZE)
        height, width = VALIDATION_SIZE
        masks = self.mask[..., :height, :width].expand(len(images), *images.shape[1:])
        return self._measured_by(masks, images, 0, device)

    def _check_mask(self, name: str, size: Size, advice: str) -> None:
        if self.mask.shape[-2] < size[0] or self.mask.shape[-1] < size[1]:
            raise ValueError(
                f"{name}: the mask has {self.mask.shape[-2]}x{self.mask.shape[-1]} pixels, training takes "
                f"{size[0]}x{size[1]} of them; {advice}"
            )

    def _window(self, size: Size, random: np.random.Generator) -> Tensor:
        top = random.integers(self.mask.shape[-2] - size[0] + 1)
        left = random.integers(self.mask.shape[-1] - size[1] + 1)
        window = self.mask[..., top : top + size[0], left : left + size[1]]
        turned = window.flip([axis for axis in (-2, -1) if random.integers(2)])
        return turned.expand(len(CASSI_WAVELENGTHS), *size)

    def _measured_by(self, masks: Tensor, images: Tensor, index: int, device: torch.device) -> Sample:
        camera = CASSI(masks, self.bands, self.step, noise=self._noise(index, device)).to(device)
        return Sample(images.to(device), camera)

    def _noise(self, index: int, device: torch.device) -> nn.Module | None:
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + index)
        if self.noise == "gaussian":
            return GaussianNoise(self.sigma, generator)
        if self.noise == "shot":
            return ShotNoise(full_well=len(CASSI_WAVELENGTHS) / REAL_GAIN, generator=generator)
        return None
