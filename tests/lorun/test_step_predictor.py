import pytest
import torch

from lorun.denoisers import UNet
from lorun.physics import SuperResolution
from lorun.step_predictor import StepPredictor
from lorun.unfolding import UnfoldingNetwork


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
    assert all(part.dtype == torch.float32 for part in under)
    assert all(map(torch.equal, under, predictor(condition)))


def test_stages_are_copied_with_everything_they_add(predictor):
    before = [part.detach().clone() for part in predictor(torch.ones(1, 2))]
    predictor.copy_stage(1, 2, 4)
    for part, old in zip(predictor(torch.ones(1, 2)), before, strict=True):
        torch.testing.assert_close(part, old[[0, 1, 1, 1]])


@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_it_learns_in_a_network_from_the_start(algorithm):
    denoiser = UNet(1, 4)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    net = UnfoldingNetwork(SuperResolution(torch.ones(3, 3) / 9, 2, 1), denoiser, 2, "shared", algorithm)
    y = torch.rand(2, 1, 8, 8)
    for last_is_zero in (True, False):
        net.zero_grad()
        net(y).square().sum().backward()
        assert all(p.grad.all() for p in net.predictor.last.parameters() if p.ndim == 1)
        hidden = [p.grad for p in net.predictor.hidden.parameters()]
        assert all(grad.any().item() is not last_is_zero for grad in hidden)
        torch.nn.init.normal_(net.predictor.last.weight)
