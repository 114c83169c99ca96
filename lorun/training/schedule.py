"""The learning rate over a phase."""

import math

from lorun.training.config import Phase

WARM_UP = 0.05
FLOOR = 0.01


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then a cosine from lr down to 1 % of it."""
    warm_up = max(1, round(WARM_UP * phase.total_steps))
    if step < warm_up:
        return phase.lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, phase.total_steps - warm_up)
    return phase.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
