import pytest

from lorun.training import Phase
from lorun.training.schedule import learning_rate


def test_the_learning_rate_warms_up_and_falls():
    phase = Phase(steps=(60, 40), stages=(3, 9), batch=(8, 8), crop=(32, 32), lr=1.0)
    rates = [learning_rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rates[-1] == pytest.approx(0.01, abs=0.001)
    assert [phase.segment(step) for step in (0, 59, 60, 99)] == [0, 0, 1, 1]
