"""Readers and data sets."""

from lorun.data.photos import PhotoCrops, list_photos, principal_phi, read_grey, to_grey

__all__ = ["PhotoCrops", "list_photos", "principal_phi", "read_grey", "to_grey"]
