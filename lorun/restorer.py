"""Where users import the restorer of photographs from; it lives with its task."""

from lorun.tasks.cs.restorer import Measurement, Restorer

__all__ = ["Measurement", "Restorer"]
