"""Two-phase training (Algorithm 1)."""

from lorun.training.config import Phase, TrainConfig, load_recipe
from lorun.training.loop import train

__all__ = ["Phase", "TrainConfig", "load_recipe", "train"]
