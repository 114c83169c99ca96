import pytest
import torch

from lorun.step_predictor import StepPredictor


@pytest.fixture
def predictor():
    predictor = StepPredictor(2, 4)
    for parameter in predictor.last.parameters():
        torch.nn.init.normal_(parameter)
    return predictor


def test_it_starts_at_zero_with_a_value_for_each_stage_and_sample():
    step, lam = StepPredictor(3, 5)(torch.rand(7, 3))
    assert step.shape == lam.shape == (5, 7) and not step.any() and not lam.any()


def test_its_parameters_are_those_of_three_layers():
    assert sum(p.numel() for p in StepPredictor(2, 9).parameters()) == 3 * 64 + 65 * 64 + 65 * 18


def test_samples_do_not_depend_on_each_other_and_conditions_count(predictor):
    conditions = torch.rand(3, 2)
    both = torch.stack(predictor(conditions))
    for sample in range(3):
        torch.testing.assert_close(
            both[..., sample : sample + 1], torch.stack(predictor(conditions[sample : sample + 1]))
        )
    assert not torch.allclose(both[..., 0], both[..., 1])


def test_autocast_leaves_it_in_float32(predictor):
    condition = torch.rand(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        under = predictor(condition)
    assert all(map(torch.equal, under, predictor(condition)))


def test_stages_are_copied_with_everything_they_add(predictor):
    before = [part.detach().clone() for part in predictor(torch.ones(1, 2))]
    predictor.copy_stage(1, 2, 4)
    for part, old in zip(predictor(torch.ones(1, 2)), before, strict=True):
        torch.testing.assert_close(part, old[[0, 1, 1, 1]])
