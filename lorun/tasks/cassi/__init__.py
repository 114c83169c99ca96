"""Coded-aperture snapshot spectral imaging (CASSI): a spectral cube from one snapshot."""

from lorun.tasks.cassi.restorer import SpectralRestorer
from lorun.tasks.cassi.task import SnapshotSpectralImaging

__all__ = ["SnapshotSpectralImaging", "SpectralRestorer"]
