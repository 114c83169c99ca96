"""The tasks. A new one is a folder here, and one line below; the first is the default."""

from lorun.tasks.cassi import SnapshotSpectralImaging
from lorun.tasks.cs import CompressiveSensing
from lorun.tasks.sr import SingleImageSuperResolution
from lorun.tasks.task import Task

TASKS: dict[str, Task] = {
    "cs": CompressiveSensing(),
    "cassi": SnapshotSpectralImaging(),
    "sr": SingleImageSuperResolution(),
}
DEFAULT_TASK = next(iter(TASKS))
