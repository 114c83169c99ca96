import dataclasses

import pytest

from lorun.training import Phase, TrainConfig


def test_segments_follow_one_another():
    phase = Phase(steps=(60, 40), stages=(3, 9), batch=(8, 8), crop=(32, 64), crop_width=(96, 64))
    assert phase.total_steps == 100
    assert [phase.segment(step) for step in (0, 59, 60, 99)] == [0, 0, 1, 1]
    assert [phase.size(segment) for segment in (0, 1)] == [(32, 96), (64, 64)]
    assert Phase(crop=(32,)).size(0) == (32, 32)
    with pytest.raises(IndexError, match="step 100"):
        phase.segment(100)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"steps": (1, 2)}, "expected as many steps as stages"),
        ({"crop_width": (1, 2)}, "expected as many steps as stages"),
        ({"batch": (0,)}, "every entry of batch must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("inf")}, "lr must be above 0"),
        ({"phi_lr": -0.1}, "phi_lr must be at least 0"),
    ],
)
def test_phases_that_cannot_run(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(Phase(), **changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss": "l2"}, "loss, precision: expected one of l1, psnr"),
        ({"precision": "float16"}, "got 'l1' and 'float16'"),
        ({"save_every": 0}, "save_every: expected at least 1 step"),
    ],
)
def test_runs_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)
