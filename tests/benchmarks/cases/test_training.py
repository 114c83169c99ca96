"""Training steps as cases: what is trained and measured, and names over stages."""

from benchmarks.cases import training
from benchmarks.cases.tasks import BLOCK, FIELD, SHARED
from benchmarks.harness.case import OURS


def own_code(case):
    return [name for name, one in case.candidates.items() if one.own_code]


def test_a_training_step_trains_what_is_said(tiny, measured):
    case = training.training_step("cpu", **tiny)
    record = measured(case)
    assert list(record["candidates"]) == ["LoRun-3", "Shared-3", "Block-3", FIELD]
    assert own_code(case) == ["Shared-3", "Block-3"]
    assert case.grad and case.peak
    for name, one in case.candidates.items():
        loss, *gradients = one.call(0)
        assert loss.shape == () and all(gradient.shape == (3,) for gradient in gradients)
        assert record["candidates"][name]["kept_bytes"] > 0


def test_stages_are_an_axis_with_names_that_join(tiny):
    case = training.over_stages("cpu", **tiny)
    assert case.axis == ("stages", 3)
    assert list(case.candidates) == [OURS, SHARED, BLOCK, FIELD]
    assert own_code(case) == [SHARED, BLOCK]
