"""Medians of ratios, and whether their intervals are as reliable as they claim."""

import math

import numpy as np
import pytest

from benchmarks.harness.ratios import Ratio, geometric_mean, speed_up


def test_ratios_are_of_the_same_rounds():
    one = speed_up([1.0, 2.0, 4.0], [3.0, 3.0, 6.0])
    assert (one.median, one.rounds) == (1.5, 3)
    assert one.low == 1.5 and one.high == 3.0
    assert Ratio.of(one.record) == one


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        # Times with common noise, twice as long for the peer.
        common, own, peers = draw.lognormal(0, [[0.5], [0.1], [0.1]], (3, 41))
        one = speed_up(list(common * own), list(2 * common * peers))
        held += one.low <= 2 <= one.high
    assert 0.9 <= held / 200 <= 0.99


def test_a_geometric_mean_combines_intervals():
    alone = Ratio(2.0, 1.0, 3.0, 7)
    for mean, expected in zip(vars(geometric_mean([alone])).values(), vars(alone).values(), strict=True):
        assert mean == pytest.approx(expected)
    mean = geometric_mean([Ratio(2.0, 1.8, 2.2, 9), Ratio(8.0, 7.2, 8.8, 5)])
    assert mean.median == pytest.approx(4) and mean.rounds == 5
    assert math.log(mean.high / 4) == pytest.approx(math.log(1.1) / math.sqrt(2))
    assert math.log(4 / mean.low) == pytest.approx(-math.log(0.9) / math.sqrt(2))
