"""Readers and data sets that no single task owns."""

from lorun.data.cubes import Cube, read_cube, save_cube
from lorun.data.masks import read_mask
from lorun.data.photos import (
    PhotoCrops,
    list_photos,
    principal_phi,
    read_colour,
    read_grey,
    save_photo,
    to_grey,
)
from lorun.data.snapshots import read_snapshot
from lorun.data.spectra import CASSI_WAVELENGTHS, interpolate_bands, lift_rgb
from lorun.data.spectral_crops import SpectralCrops

__all__ = [
    "CASSI_WAVELENGTHS",
    "Cube",
    "PhotoCrops",
    "SpectralCrops",
    "interpolate_bands",
    "lift_rgb",
    "list_photos",
    "principal_phi",
    "read_colour",
    "read_cube",
    "read_grey",
    "read_mask",
    "read_snapshot",
    "save_cube",
    "save_photo",
    "to_grey",
]
