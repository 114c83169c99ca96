"""The settings of super-resolution: of a network, and of its training data."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lorun.physics.super_resolution import check_scale
from lorun.tasks.task import NetworkSettings, TrainingSettings


@dataclass(frozen=True)
class SRNetwork(NetworkSettings):
    """Describes a network for super-resolution. Kernel, scale and noise level come with each call."""

    task: Literal["sr"] = "sr"
    channels: int = 3
    """Of the photographs: 3 for colour, 1 for grey."""
    denoiser: Literal["resunet", "unet"] = "resunet"
    width: int = 16
    """Channels of the denoiser's first level."""
    algorithm: Literal["pgd", "hqs"] = "hqs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 3, for colour, or 1, for grey, got {self.channels}")


@dataclass(frozen=True)
class Degradation:
    """How training images are made smaller: a scale for each step, kernel and noise level for each image."""

    scales: tuple[int, ...] = (2, 3, 4)
    """One of these divides height and width."""
    kernel_side: int = 25
    """Side of the kernels in pixels: Gaussian ones, of motion, and of bicubic shrinking."""
    widths: tuple[float, ...] = (0.6, 3.0)
    """Least and largest standard deviation of a Gaussian kernel, in pixels."""
    motion: float = 0.35
    """Share of the kernels that are motion blur, 0 to 1."""
    bicubic: float = 0.05
    """Share of the kernels that are bicubic shrinking, 0 to 1."""
    noise: float = 0.05
    """Largest standard deviation of the noise, for images in [0, 1]."""
    noise_free: float = 0.6
    """Share of the images without noise, 0 to 1."""

    def __post_init__(self) -> None:
        for scale in self.scales:
            check_scale(scale)
        if not self.scales:
            raise ValueError("degradation.scales: expected at least one")
        if self.kernel_side < 3 or self.kernel_side % 2 == 0:
            raise ValueError(
                f"degradation.kernel_side: expected an odd number above 1, got {self.kernel_side}"
            )
        if len(self.widths) != 2 or not 0 < self.widths[0] <= self.widths[1] < math.inf:
            raise ValueError(
                f"degradation.widths: expected the least and the largest, above 0, got {self.widths}"
            )
        if not (self.motion >= 0 and self.bicubic >= 0 and self.motion + self.bicubic <= 1):
            raise ValueError(
                f"degradation: expected shares of motion and bicubic kernels that add up to 1 at most, got "
                f"{self.motion} and {self.bicubic}"
            )
        if not 0 <= self.noise_free <= 1:
            raise ValueError(f"degradation.noise_free: expected a share of 0 to 1, got {self.noise_free}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"degradation.noise: expected at least 0, got {self.noise}")


@dataclass(frozen=True)
class SRTraining(TrainingSettings):
    """How training samples are made of photographs."""

    degradation: Degradation = field(default_factory=Degradation)
