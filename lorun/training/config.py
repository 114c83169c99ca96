"""What a training run is: read from a TOML recipe, changed by flags, written beside its results."""

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lorun.networks import NetworkConfig

RECIPES = Path(__file__).parent / "recipes"
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
    """Crops a step in each segment."""
    crop: tuple[int, ...] = (96,)
    """Side of the square crops, in pixels, in each segment; their height where there are widths."""
    crop_width: tuple[int, ...] = ()
    """Width of the crops in each segment; none means square ones. CASSI couples pixels along rows only."""
    lr: float = 1e-3
    """Peak learning rate; warmed up over 5 % of the phase, then a cosine down to 1 % of it."""
    phi_lr: float = 0.1
    """Learning rate of a full Phi, as a share of lr: its entries are small beside the network's."""

    def __post_init__(self):
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
        return sum(self.steps)

    def size(self, segment: int) -> tuple[int, int]:
        """Height and width of the crops of a segment."""
        return self.crop[segment], (self.crop_width or self.crop)[segment]

    def segment(self, step: int) -> int:
        """Index of the segment that a step, counted from 0, belongs to."""
        for index in range(len(self.steps)):
            if step < sum(self.steps[: index + 1]):
                return index
        raise IndexError(f"step {step} lies behind the phase's {self.total_steps}")


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

    def __post_init__(self):
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
class TrainConfig:
    """A training run by Algorithm 1: phase 1 trains Shared-K, phase 2 freezes it and trains adapters."""

    name: str = "model"
    """What the model files are called after: NAME-lorun9.safetensors and NAME-shared9.safetensors."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network that phase 2 ends with; variant "shared" or "block" trains that one through both phases."""
    phase1: Phase = field(default_factory=Phase)
    phase2: Phase = field(default_factory=Phase)
    data: tuple[str, ...] = ()
    """Folders of photographs, for CASSI cubes and folders of cubes; relative ones lie under $LORUN_DATA."""
    spectral: SpectralData = field(default_factory=SpectralData)
    phi_start: Literal["principal", "random"] = "principal"
    """Where a learned Phi starts: principal components of the training photographs, or random rows."""
    loss: Literal["l1", "psnr"] = "l1"
    """Mean absolute error, or minus the mean PSNR: easy and hard crops then count alike."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What convolutions compute in while training: bfloat16 is autocast."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto."""
    save_every: int = 100
    """Steps between checkpoints; a stopped run goes on from the last one."""

    def __post_init__(self):
        if self.phi_start not in ("principal", "random"):
            raise ValueError(f'phi_start: expected "principal" or "random", got {self.phi_start!r}')
        if self.loss not in LOSSES or self.precision not in PRECISIONS:
            raise ValueError(
                f"loss, precision: expected one of {', '.join(LOSSES)} and one of {', '.join(PRECISIONS)}, "
                f"got {self.loss!r} and {self.precision!r}"
            )
        if self.network.task == "cs" and self.spectral != SpectralData():
            raise ValueError("spectral: is for task cassi, and the network is for cs; leave it out")
        if self.save_every < 1:
            raise ValueError(f"save_every: expected at least 1 step, got {self.save_every}")

    def data_folders(self) -> list[Path]:
        """The training folders, each checked to be there."""
        paths = self.data_paths()
        for path in paths:
            if not path.is_dir():
                raise ValueError(f"{path}: expected a folder of training photographs, got a file")
        return paths

    def data_paths(self) -> list[Path]:
        """The training files and folders, each checked to be there."""
        if not self.data:
            raise ValueError("data: name at least one folder of training data")
        return self.resolve(self.data)

    @staticmethod
    def resolve(names: tuple[str, ...], flag: str = "--data") -> list[Path]:
        """Paths under $LORUN_DATA, each checked to be there; `flag` sets them on the command line."""
        paths = [Path(os.environ.get("LORUN_DATA", ".")) / name for name in names]
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(
                    f"{path}: no such training data; set LORUN_DATA to the folder that holds it, or pass "
                    f"{flag}"
                )
        return paths


def load_recipe(name: str | Path) -> TrainConfig:
    """Read a recipe: a TOML file, or the name of one that ships with the package, such as cs25-unet."""
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"{name}: no such recipe; give a .toml file or one of {shipped}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return _from_dict(TrainConfig, values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_dict(kind: type, values: dict[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; expected one of {', '.join(known)}")
    arguments = {}
    for name, value in values.items():
        arguments[name] = _checked(name, known[name].type, value)
    return kind(**arguments)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value of a recipe as its setting's type; raises where it is of another."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name}: expected a table, [{name}], got {value!r}")
        return _from_dict(kind, value)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list) or not all(isinstance(entry, item) for entry in value):
            raise ValueError(f"{name}: expected a list of {item.__name__}, got {value!r}")
        return tuple(value)
    allowed = (int, float) if kind is float else kind
    if isinstance(kind, type) and (not isinstance(value, allowed) or isinstance(value, bool)):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
