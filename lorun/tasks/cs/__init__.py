"""Compressive sensing of photographs: y = Phi x on blocks of a grey image."""

from lorun.tasks.cs.restorer import Measurement, Restorer
from lorun.tasks.cs.task import CompressiveSensing

__all__ = ["CompressiveSensing", "Measurement", "Restorer"]
