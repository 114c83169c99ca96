"""Super-resolution of photographs: y = (x * k) decimated + noise, for a known kernel."""

from lorun.tasks.sr.restorer import SuperResolver
from lorun.tasks.sr.task import SingleImageSuperResolution

__all__ = ["SingleImageSuperResolution", "SuperResolver"]
