"""What the command line takes for CASSI alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from lorun.tasks.task import EvalOptions, RestoreOptions

OptionalPath = Annotated[Path | None, arg(metavar="PATH")]
OptionalText = Annotated[str | None, arg(metavar="NAME")]
OptionalLayout = Annotated[Literal["hwc", "chw"] | None, arg(metavar="{hwc,chw}")]


@dataclass(frozen=True)
class SpectralFiles:
    """How spectral files are to be read, if they do not say it themselves."""

    mask: OptionalPath = None
    """File of the coded-aperture mask: .mat, .npz, .npy or .h5."""
    mask_key: OptionalText = None
    """Name of the mask in its file."""
    mask_layout: OptionalLayout = None
    """Order of the axes of a mask with bands."""
    key: OptionalText = None
    """Name of the cube or snapshot in its file."""
    layout: OptionalLayout = None
    """Order of a cube's axes in its file."""
    range: Annotated[float | None, arg(metavar="FLOAT")] = None
    """The value that means 1 in the file; integers need it."""
    wavelengths: tuple[float, ...] = ()
    """Wavelengths of a cube's bands in nm, or the first and the last of evenly spaced ones."""


@dataclass(frozen=True)
class CASSIRestore(RestoreOptions):
    """`lorun restore --task cassi`."""

    meas: OptionalPath = None
    """A snapshot (H, W + step * (bands - 1)), in place of a cube whose snapshot is simulated."""
    scale: Literal["auto", "sum", "real"] = "auto"
    """Of --meas: a "sum" of coded bands, or of a "real" camera; "auto" is "real" for the key meas_real."""
    files: Annotated[SpectralFiles, arg(name="")] = field(default_factory=SpectralFiles)


@dataclass(frozen=True)
class CASSIEval(EvalOptions):
    """`lorun eval --task cassi`."""

    protocol: Literal["cassi-mst", "cassi-matlab", "cassi-float"] = "cassi-mst"
    """What PSNR and SSIM mean for cubes."""
    result: OptionalPath = None
    """Write the first model's cubes and the truth, `pred` and `truth`, to this .mat or .npz."""
    files: Annotated[SpectralFiles, arg(name="")] = field(default_factory=SpectralFiles)
