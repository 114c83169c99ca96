"""Adapters: low-rank updates that turn one shared denoiser into one per stage."""

from lorun.adapters.share import adapted_view

__all__ = ["adapted_view"]
