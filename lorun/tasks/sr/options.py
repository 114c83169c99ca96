"""What the command line takes for super-resolution alone."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from lorun.tasks.task import EvalOptions, RestoreOptions

KernelName = Annotated[str, arg(metavar="KERNEL")]


@dataclass(frozen=True)
class SRRestore(RestoreOptions):
    """`lorun restore --task sr`."""

    scale: int = 2
    """How many times larger the result is; 1 only deblurs."""
    kernel: KernelName = "bicubic"
    """The blur, in pixels of the large image: a .mat, .npy or image file (kernels.mat:3 is the third of
    several), bicubic, none, gaussian:WIDTH, gaussian:WIDTH,WIDTH,DEGREES or motion:SEED."""
    noise: float = 0.0
    """Standard deviation of the photograph's noise, where white is 1."""
    simulate: bool = False
    """Blur, shrink and disturb a good photograph first, and compare the result with it."""


@dataclass(frozen=True)
class SREval(EvalOptions):
    """`lorun eval --task sr`."""

    protocol: Literal["sr-rgb", "sr-y"] = "sr-rgb"
    """What PSNR and SSIM mean."""
    scales: tuple[int, ...] = (2, 3, 4)
    """The scales, a row each."""
    kernels: tuple[str, ...] = ("gaussian:0.7", "gaussian:1.2", "gaussian:1.6", "gaussian:2.0")
    """The kernels, a column each: as `lorun restore` takes them, all of a file, or 12, the published twelve
    under $LORUN_DATA."""
    noise: float = 0.0
    """Standard deviation of simulated noise, where white is 1."""
    assumed: Annotated[str | None, arg(metavar="KERNEL")] = None
    """Restore by this kernel, whichever has blurred: what a wrong one costs."""
