"""The settings of compressive sensing: of a network, and of its training data."""

from dataclasses import dataclass
from typing import Literal

from lorun.physics.block_cs import measurements_per_block
from lorun.tasks.task import NetworkSettings, TrainingSettings


@dataclass(frozen=True)
class CSNetwork(NetworkSettings):
    """Describes an unfolding network for compressive sensing."""

    task: Literal["cs"] = "cs"
    ratio: float = 0.25
    """Sampling ratio, a fraction."""
    block: int = 32
    """Side of a measured block in pixels."""
    phi_rank: int = 0
    """In variant "lorun": rank of Phi's own adapter; 0 trains Phi itself in phase 2."""
    denoiser: Literal["unet", "transformer"] = "unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"block: expected at least 1, got {self.block}")
        rows = measurements_per_block(self.ratio, self.block)
        if not 0 <= self.phi_rank <= rows:
            raise ValueError(f"phi_rank: expected 0 to {rows}, the rows of Phi, got {self.phi_rank}")


@dataclass(frozen=True)
class CSTraining(TrainingSettings):
    """How training samples are made of photographs."""

    phi_start: Literal["principal", "random"] = "principal"
    """Where a learned Phi starts: principal components of the training photographs, or random rows."""

    def __post_init__(self) -> None:
        if self.phi_start not in ("principal", "random"):
            raise ValueError(f'phi_start: expected "principal" or "random", got {self.phi_start!r}')
