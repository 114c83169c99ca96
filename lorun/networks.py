"""From a small config to a network: what a checkpoint needs to know to be rebuilt."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lorun.denoisers import SpectralTransformer, UNet
from lorun.physics import CASSI, BlockCS
from lorun.physics.block_cs import measurements_per_block
from lorun.unfolding import START, UnfoldingNetwork


@dataclass(frozen=True)
class NetworkConfig:
    """Describes an unfolding network of a task."""

    task: Literal["cs", "cassi"] = "cs"
    ratio: float = 0.25
    """Sampling ratio of compressive sensing, a fraction."""
    block: int = 32
    """Side of a measured block in pixels."""
    phi_rank: int = 0
    """In variant "lorun": rank of Phi's own adapter; 0 trains Phi itself in phase 2."""
    bands: int = 28
    """Bands of a CASSI cube."""
    step: int = 2
    """Columns that a CASSI camera shifts each band further than the one before."""
    denoiser: Literal["unet", "transformer"] = "unet"
    width: int = 28
    """Channels of the denoiser's first level."""
    stages: int = 9
    variant: Literal["shared", "block", "lorun"] = "lorun"
    algorithm: Literal["pgd", "hqs"] = "pgd"
    gamma: float = 10
    """Rank of the adapters in percent of a layer's channels (Eq. 12)."""
    form: Literal["reshape", "factored"] = "reshape"

    def __post_init__(self):
        if self.task not in ("cs", "cassi"):
            raise ValueError(f'task: expected "cs" or "cassi", got {self.task!r}')
        if self.denoiser not in ("unet", "transformer"):
            raise ValueError(f'denoiser: expected "unet" or "transformer", got {self.denoiser!r}')
        rows = measurements_per_block(self.ratio, self.block)
        for name in ("block", "width", "stages", "bands"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.task == "cassi":
            for name in ("ratio", "block", "phi_rank"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{name}: CASSI has a mask and no learned Phi; leave it out")
        if self.step < 0:
            raise ValueError(f"step: expected at least 0 columns, got {self.step}")
        if not 0 <= self.phi_rank <= rows:
            raise ValueError(f"phi_rank: expected 0 to {rows}, the rows of Phi, got {self.phi_rank}")
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise ValueError(f"gamma: expected a percentage above 0, got {self.gamma}")

    @property
    def label(self) -> str:
        """The name tables use, such as LoRun-9."""
        return {"shared": "Shared", "block": "Block", "lorun": "LoRun"}[self.variant] + f"-{self.stages}"

    @property
    def camera(self) -> str:
        """What measures, in words."""
        if self.task == "cassi":
            return f" with {self.bands} bands, {self.step} columns apart"
        return f" at ratio {self.ratio}"


def build_network(config: NetworkConfig) -> UnfoldingNetwork:
    """The untrained network that a config describes; a CASSI one gets its mask with each call."""
    return UnfoldingNetwork(
        physics=_build_physics(config),
        denoiser=_build_denoiser(config),
        stages=config.stages,
        variant=config.variant,
        algorithm=config.algorithm,
        gamma=config.gamma,
        form=config.form,
        start_step=_start_step(config),
    )


def _start_step(config: NetworkConfig) -> float:
    """0.5 as in the paper, but for PGD on CASSI, whose Phi Phi^T is at most the number of bands."""
    return 2 / config.bands if (config.task, config.algorithm) == ("cassi", "pgd") else START


def _build_physics(config: NetworkConfig) -> nn.Module:
    if config.task == "cassi":
        return CASSI(bands=config.bands, step=config.step)
    phi_rank = config.phi_rank if config.variant == "lorun" else 0
    return BlockCS(config.ratio, config.block, adapter_rank=phi_rank)


def _build_denoiser(config: NetworkConfig) -> nn.Module:
    channels = config.bands if config.task == "cassi" else BlockCS.channels
    if config.denoiser == "transformer":
        return SpectralTransformer(channels, config.width)
    return UNet(channels, config.width, takes_correction=config.task == "cassi")
