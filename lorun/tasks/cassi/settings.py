"""The settings of CASSI: of a network, and of its training data."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lorun.physics.cassi import check_step
from lorun.tasks.task import NetworkSettings, TrainingSettings


@dataclass(frozen=True)
class CASSINetwork(NetworkSettings):
    """Describes an unfolding network for CASSI. It holds no mask: a camera's mask comes with each call."""

    task: Literal["cassi"] = "cassi"
    bands: int = 28
    """Bands of a cube."""
    step: int = 2
    """Columns that the camera shifts each band further than the one before."""
    denoiser: Literal["unet", "transformer"] = "unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step(self.step, self.bands)


@dataclass(frozen=True)
class SpectralData:
    """What training on spectral cubes takes beside the cubes."""

    mask: str = "cassi/mask/tsa_sim_mask_256.mat"
    """File of the coded-aperture mask; relative ones lie under $LORUN_DATA."""
    synthetic: tuple[str, ...] = ()
    """Folders of RGB photographs that are lifted to spectra: synthetic cubes."""
    synthetic_share: float = 0.3
    """How many of the crops are synthetic, 0 to 1."""
    noise: Literal["none", "gaussian", "shot"] = "none"
    """Noise of the simulated measurement; "shot" is the field's model of the real camera."""
    sigma: float = 0.0
    """Standard deviation of Gaussian noise, on the scale of y."""

    def __post_init__(self) -> None:
        if self.noise not in ("none", "gaussian", "shot"):
            raise ValueError(f'noise: expected "none", "gaussian" or "shot", got {self.noise!r}')
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma: expected at least 0, got {self.sigma}")
        if (self.noise == "gaussian") != (self.sigma > 0):
            raise ValueError(
                f'sigma: goes with noise "gaussian", and that with a sigma above 0; got {self.noise!r} and '
                f"{self.sigma}"
            )


@dataclass(frozen=True)
class CASSITraining(TrainingSettings):
    """How training samples are made of spectral cubes."""

    spectral: SpectralData = field(default_factory=SpectralData)
