"""What a training run is."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from lorun.networks import network_config
from lorun.tasks import TASKS
from lorun.tasks.task import NetworkSettings, TrainingSettings

LOSSES = ("l1", "psnr")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Phase:
    """One phase of Algorithm 1. Entry i of every tuple describes segment i, run one after another."""

    steps: tuple[int, ...] = (1000,)
    """Optimiser steps of each segment."""
    stages: tuple[int, ...] = (9,)
    """How many stages run in each segment: a network may grow while it learns."""
    batch: tuple[int, ...] = (8,)
    """Crops per step in each segment."""
    crop: tuple[int, ...] = (96,)
    """Side of the square crops, in pixels, in each segment; their height if crop_width gives the width."""
    crop_width: tuple[int, ...] = ()
    """Width of the crops in each segment; none means square ones."""
    lr: float = 1e-3
    """Peak learning rate; warmed up over 5 % of the phase, then a cosine down to 1 % of it."""
    phi_lr: float = 0.1
    """Learning rate of a full Phi, as a share of lr: its entries are small compared with the network's."""

    def __post_init__(self) -> None:
        names = ("steps", "stages", "batch", "crop", *(["crop_width"] if self.crop_width else []))
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) != 1 or not self.steps:
            raise ValueError(f"phase: expected as many steps as stages, batches and crops, got {lengths}")
        for name in lengths:
            if min(getattr(self, name)) < 1:
                raise ValueError(
                    f"phase: every entry of {name} must be at least 1, got {getattr(self, name)}"
                )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"phase: lr must be above 0, got {self.lr}")
        if not (self.phi_lr >= 0 and math.isfinite(self.phi_lr)):
            raise ValueError(f"phase: phi_lr must be at least 0, got {self.phi_lr}")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all segments."""
        return sum(self.steps)

    def size(self, segment: int) -> tuple[int, int]:
        """Height and width of the crops of a segment."""
        return self.crop[segment], (self.crop_width or self.crop)[segment]

    def segment(self, step: int) -> int:
        """Index of the segment that a step, counted from 0, belongs to."""
        for index in range(len(self.steps)):
            if step < sum(self.steps[: index + 1]):
                return index
        raise IndexError(f"step {step} lies beyond the phase's {self.total_steps}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run by Algorithm 1: phase 1 trains Shared-K, phase 2 freezes it and trains adapters."""

    name: str = "model"
    """What the model files are called after: NAME-lorun9.safetensors and NAME-shared9.safetensors."""
    network: NetworkSettings = field(default_factory=network_config)
    """The network that phase 2 ends with; variant "shared" or "block" trains that one through both phases."""
    phase1: Phase = field(default_factory=Phase)
    phase2: Phase = field(default_factory=Phase)
    data: tuple[str, ...] = ()
    """Files and folders of training data; relative ones lie under $LORUN_DATA."""
    task_settings: Annotated[TrainingSettings, arg(name="")] = field(default_factory=TrainingSettings)
    """The settings of the network's task, which files list beside the others; by default that task's."""
    loss: Literal["l1", "psnr"] = "l1"
    """Mean absolute error, or minus the mean PSNR: easy and hard crops then count alike."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What convolutions compute in during training: bfloat16 is autocast."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto."""
    save_every: int = 100
    """Steps between checkpoints; a stopped run continues from the last one."""

    def __post_init__(self) -> None:
        wanted = TASKS[self.network.task].training
        if type(self.task_settings) is TrainingSettings:
            object.__setattr__(self, "task_settings", wanted())
        if type(self.task_settings) is not wanted:
            raise ValueError(
                f"task_settings: task {self.network.task} takes {wanted.__name__}, got "
                f"{type(self.task_settings).__name__}"
            )
        if self.loss not in LOSSES or self.precision not in PRECISIONS:
            raise ValueError(
                f"loss, precision: expected one of {', '.join(LOSSES)} and one of {', '.join(PRECISIONS)}, "
                f"got {self.loss!r} and {self.precision!r}"
            )
        if self.save_every < 1:
            raise ValueError(f"save_every: expected at least 1 step, got {self.save_every}")
