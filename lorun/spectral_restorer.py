"""Where users import the restorer of snapshots from; it lives with its task."""

from lorun.tasks.cassi.restorer import SpectralRestorer

__all__ = ["SpectralRestorer"]
