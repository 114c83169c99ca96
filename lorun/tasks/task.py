"""What a task is: all that the shared rooms ask of compressive sensing, of CASSI, and of the next one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from lorun.physics import Physics
from lorun.unfolding import START

Size = tuple[int, int]
# Restored images (C, H, W) by the name of their method.
Images = Mapping[str, np.ndarray]
# A method without a network: measurements (B, ...) and their physics give images (B, C, H, W).
Solver = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class NetworkSettings:
    """Describes an unfolding network. A task adds the settings of its physics in a class of its own."""

    task: str = ""
    denoiser: str = "unet"
    width: int = 28
    """Channels of the denoiser's first level."""
    stages: int = 9
    variant: Literal["shared", "block", "lorun"] = "lorun"
    algorithm: Literal["pgd", "hqs"] = "pgd"
    gamma: float = 10
    """Rank of the adapters in percent of a layer's channels (Eq. 12)."""
    form: Literal["reshape", "factored"] = "reshape"

    def __post_init__(self) -> None:
        for field in fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in choices:
                expected = " or ".join(f'"{choice}"' for choice in choices)
                raise ValueError(f"{field.name}: expected {expected}, got {value!r}")
        for name in ("width", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise ValueError(f"gamma: expected a percentage above 0, got {self.gamma}")

    @property
    def label(self) -> str:
        """The name tables use, such as LoRun-9."""
        return {"shared": "Shared", "block": "Block", "lorun": "LoRun"}[self.variant] + f"-{self.stages}"


@dataclass(frozen=True)
class RestoreOptions:
    """What `lorun restore` takes for one task, beside what it takes for all."""


@dataclass(frozen=True)
class EvalOptions:
    """What `lorun eval` takes for one task, beside what it takes for all."""

    protocol: str = ""
    """What PSNR and SSIM mean."""


@dataclass(frozen=True)
class TrainingSettings:
    """What `lorun train` takes for one task, beside what it takes for all: how samples are made of data."""


@dataclass(frozen=True)
class Scene:
    """One image to restore, of which a measurement, the truth, or both are known.

    Attributes:
        name: as tables show it.
        size: (H, W) of the image.
        truth: (C, H, W) float32 in [0, 1], or None if only a measurement is known.
        y: the measurement, without a batch dimension; None simulates it from the truth.
        physics: what measured this scene; None is the restoring network's own.
        cell: (row, column) of a table that shows means over the scenes of a cell; None lists every scene.
        notes: what was done to the file on the way, for the line that says what was restored.
    """

    name: str
    size: Size
    truth: np.ndarray | None = None
    y: np.ndarray | None = None
    physics: Physics | None = None
    cell: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Training images (B, C, H, W) in [0, 1], and what measures them if it is not the network's physics."""

    images: Tensor
    physics: Physics | None = None

    @property
    def size(self) -> Size:
        return self.images.shape[-2], self.images.shape[-1]


class Samples(Protocol):
    """The training data of a task."""

    def check(self, sizes: Sequence[Size], square: bool) -> None:
        """Raise now what a later phase or segment would raise after hours.

        Args:
            sizes: height and width of the crops of every segment.
            square: whether no segment sets a width of its own.
        """

    def prepare(self, physics: Any) -> None:
        """Give the physics of an untrained network what it takes from the data."""

    def sample(self, index: int, count: int, size: Size, device: torch.device) -> Sample:
        """Sample number `index`: `count` random crops. The same index gives the same sample."""

    def held_out(self, device: torch.device) -> Sample:
        """What quality is watched on during training: never part of a sample."""


class Quality(NamedTuple):
    """How close an image is to the truth: PSNR in dB, SSIM, and for spectra the mean angle in degrees."""

    psnr: float
    ssim: float
    sam: float | None = None


class Task(ABC):
    """What is special about one task, all of it; the shared rooms know tasks by this class alone.

    A task is told its settings and never sees the run, so that it imports nothing that imports tasks. What
    only the command line, training or pictures need is imported by the method that needs it: `import lorun`
    stays about as quick as `import torch`.

    Attributes:
        name: what `--task` and model files say.
        title: what the help says.
        network: the class of its network settings.
        training: the class of its own settings of `lorun train`.
        protocols: names of its metrics in `lorun.metrics`, the default first.
        suffixes: file names of restored images may end in one of these.
        untrained: methods without a network, by name.
        start_label: how tables name the images that `start` gives.
        most_pictured: how many methods fit into one picture.
        restore_examples, eval_examples: for the help of `lorun restore` and `lorun eval`, without "lorun".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    network: ClassVar[type[NetworkSettings]]
    training: ClassVar[type[TrainingSettings]]
    protocols: ClassVar[tuple[str, ...]]
    suffixes: ClassVar[tuple[str, ...]]
    untrained: ClassVar[Mapping[str, Solver]] = {}
    start_label: ClassVar[str] = "start"
    most_pictured: ClassVar[int] = 6
    restore_examples: ClassVar[Sequence[str]] = ()
    eval_examples: ClassVar[Sequence[str]] = ()

    # From settings to a network.

    @abstractmethod
    def physics(self, settings: Any) -> Physics:
        """The measurement model of a network with these settings."""

    @abstractmethod
    def denoiser(self, settings: Any) -> nn.Module:
        """An untrained denoiser for these settings."""

    def start_step(self, settings: Any) -> float:
        """Where rho (PGD) or mu (HQS) starts; PGD wants less than 2 / max(Phi Phi^T)."""
        return START

    def adapt_physics(self, physics: Any, settings: Any) -> None:  # noqa: B027, optional
        """Freeze what phase 2 of Algorithm 1 trains by an adapter only, and add the adapter."""

    @abstractmethod
    def describe(self, settings: Any) -> str:
        """How these settings measure, in words that follow a network's label."""

    # From a file to a file: lorun restore.

    @abstractmethod
    def restore_options(self) -> RestoreOptions:
        """The defaults of its own options of `lorun restore`."""

    @abstractmethod
    def default_model(self, options: Any, shipped: Mapping[str, Any]) -> str:
        """The shipped model to use if none is named.

        Args:
            options: of `lorun restore` or `lorun eval`.
            shipped: settings of this task's shipped models, by name.
        """

    def check_models(self, settings: Mapping[str, Any]) -> None:  # noqa: B027, optional
        """Raise if models with these settings, by name, cannot restore the same scenes."""

    @abstractmethod
    def inputs(self, source: Path | None, options: Any) -> list[Path]:
        """The files that a call of `lorun restore` reads; raises if the call makes no sense."""

    @abstractmethod
    def open(self, source: Path | None, options: Any, physics: Any) -> Scene:
        """Read the scene of `lorun restore`, each file once.

        Args:
            physics: of the network that restores it, or of the default settings if none does.
        """

    @abstractmethod
    def measurement(self, scene: Any, physics: Any) -> Tensor:
        """The scene's measurement as a network takes it, (1, ...): checked, or simulated if there is none."""

    @abstractmethod
    def save(self, out: Path, image: np.ndarray, scene: Any, y: Tensor, options: Any) -> None:
        """Write a restored image (C, H, W), and what the options ask for beside it."""

    @abstractmethod
    def pictures(self, out: Path) -> tuple[Path, ...]:
        """Where `draw` writes pictures, beside the restored image `out`."""

    def check_drawable(self, scene: Any) -> None:  # noqa: B027, optional
        """Raise if the scene lacks what its pictures show: before the work, not after it."""

    @abstractmethod
    def draw(self, out: Path, scene: Any, y: Tensor, restored: Images, start: np.ndarray | None) -> None:
        """Write the pictures: images (C, H, W) by the name of their method, the most important first.

        Args:
            start: what `start` gives for the first method.
        """

    # From a folder to a table: lorun eval.

    @abstractmethod
    def eval_options(self) -> EvalOptions:
        """The defaults of its own options of `lorun eval`."""

    @abstractmethod
    def eval_inputs(self, source: Path, options: Any) -> list[Path]:
        """The files that a call of `lorun eval` reads; raises if the call makes no sense."""

    @abstractmethod
    def scenes(self, source: Path, options: Any, physics: Any) -> list[Scene]:
        """Read the scenes of `lorun eval`, all with their truth."""

    def start(self, scene: Scene, y: Tensor, physics: Any) -> np.ndarray | None:
        """The image (C, H, W) that networks start from, if tables show it."""
        return None

    @abstractmethod
    def psnr(self, image: np.ndarray, scene: Any, protocol: str) -> float:
        """Compare an image (C, H, W) with the truth of its scene; defined also for sizes that SSIM is not."""

    @abstractmethod
    def quality(self, image: np.ndarray, scene: Any, protocol: str) -> Quality:
        """Compare them by all measures that the task has."""

    def keeps_table_images(self, options: Any) -> bool:
        """Whether the options ask for the images of the table's first method."""
        return False

    def save_table_images(  # noqa: B027, optional
        self, images: Sequence[np.ndarray], scenes: Sequence[Scene], options: Any
    ) -> None:
        """Write the images of the table's first method, which `keeps_table_images` has asked for."""

    # From a folder to a model: lorun train.

    @abstractmethod
    def samples(self, network: Any, data: tuple[str, ...], settings: Any, seed: int) -> Samples:
        """The training data.

        Args:
            network: settings of the network to train.
            data: files and folders; relative ones lie under $LORUN_DATA.
            settings: of the class `training`.
            seed: a sample depends on it and on the sample's index only.
        """
