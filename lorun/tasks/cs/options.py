"""What the command line takes for compressive sensing alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from lorun.tasks.task import EvalOptions, RestoreOptions


@dataclass(frozen=True)
class CSRestore(RestoreOptions):
    """`lorun restore --task cs`."""

    ratio: float = 0.25
    """Sampling ratio, a fraction: picks the shipped model."""
    measurement: Annotated[Path | None, arg(metavar="PATH")] = None
    """Also write the simulated measurement: `y` (M, h, w) and `size` in an .npz."""


@dataclass(frozen=True)
class CSEval(EvalOptions):
    """`lorun eval --task cs`."""

    protocol: Literal["cs"] = "cs"
    """What PSNR and SSIM mean."""
