"""Ratios of times that were taken in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.timing import Seconds

DRAWS = 4000


@dataclass(frozen=True)
class Ratio:
    """The median over rounds, and a bootstrap interval of that median."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def record(self) -> dict:
        return {"speed_up": self.median, "interval": [self.low, self.high], "rounds": self.rounds}


def medians_of_draws(ratios: np.ndarray, seed: int = 0) -> np.ndarray:
    """Medians of bootstrap samples of the rounds."""
    rows = np.random.default_rng(seed).integers(len(ratios), size=(DRAWS, len(ratios)))
    return np.median(ratios[rows], axis=1)


def speed_up(seconds: Seconds, others: Seconds, level: float = 0.95) -> Ratio:
    """How many times as long `others` take in the same rounds, with a bootstrap interval of that level."""
    ratios = np.divide(others, seconds)
    tail = (1 - level) / 2
    low, high = np.quantile(medians_of_draws(ratios), [tail, 1 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))
