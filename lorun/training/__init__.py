"""Two-phase training (Algorithm 1)."""

from lorun.training.config import Phase, TrainConfig
from lorun.training.recipe import load_recipe
from lorun.training.run import train

__all__ = ["Phase", "TrainConfig", "load_recipe", "train"]
