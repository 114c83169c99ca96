"""Ratios of times that were taken in the same rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.timing import Seconds

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

    @classmethod
    def of(cls, record: dict) -> Ratio:
        """From what `record` wrote."""
        return cls(record["speed_up"], *record["interval"], record["rounds"])


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


def geometric_mean(ratios: list[Ratio]) -> Ratio:
    """The mean of independent ratios; its interval combines theirs on a logarithmic scale."""
    logs = np.log([(one.low, one.median, one.high) for one in ratios])
    low, middle, high = logs.T
    below, above = (float(np.linalg.norm(side)) / len(ratios) for side in (middle - low, high - middle))
    mean = float(middle.mean())
    rounds = min(one.rounds for one in ratios)
    return Ratio(math.exp(mean), math.exp(mean - below), math.exp(mean + above), rounds)
