"""Measurement models y = A(x) + noise, all of them a `Physics`: see there for what each can do.

`BlockCS`: block compressive sensing. `CASSI`: snapshot spectral imaging. `SuperResolution`: blurred
and decimated photographs. `Linear`: any linear operator that is given as two functions, such as those of a
deepinv physics. `GaussianNoise`, `ShotNoise`: noise for each. Blur kernels are in
`lorun.physics.blur_kernels`.
"""

from lorun.physics.block_cs import BlockCS
from lorun.physics.cassi import CASSI
from lorun.physics.linear import Linear
from lorun.physics.noise import GaussianNoise, ShotNoise
from lorun.physics.physics import Physics
from lorun.physics.super_resolution import SuperResolution

__all__ = ["CASSI", "BlockCS", "GaussianNoise", "Linear", "Physics", "ShotNoise", "SuperResolution"]
