"""The networks that the tests of share_stages convert are what those tests take them for."""

import copy
from itertools import combinations

import pytest
import torch
from torch import nn

from tests.lorun.adapters.architectures import ARCHITECTURES, STEPS

NORMS = (nn.LayerNorm, nn.BatchNorm2d)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture
def model(architecture):
    torch.manual_seed(0)
    return architecture.make().eval()


def output(model, architecture):
    with torch.no_grad():
        return model(*architecture.inputs())


def test_it_runs_the_same_every_time(model, architecture):
    first = output(model, architecture)
    y, mask = architecture.inputs()
    assert first.shape == (len(y), *mask.shape[1:]) and first.isfinite().all()
    assert torch.equal(first, output(model, architecture))


def test_it_computes_alike_with_and_without_gradients(model, architecture):
    torch.testing.assert_close(model(*architecture.inputs()).detach(), output(model, architecture))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_every_parameter(model, architecture, training):
    model.train(training)(*architecture.inputs()).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_every_parameter_matters_to_the_output(model, architecture):
    """So that a test that compares outputs notices a parameter that came from another stage."""
    before = output(model, architecture)
    for name, p in model.named_parameters():
        with torch.no_grad():
            kept = p.clone()
            p.mul_(1 + 0.5 * torch.rand_like(p))
        assert not torch.allclose(output(model, architecture), before, rtol=0, atol=1e-6), name
        p.data.copy_(kept)


def test_a_deep_copy_computes_alike_and_shares_nothing(model, architecture):
    before, twin = output(model, architecture), copy.deepcopy(model)
    assert torch.equal(output(twin, architecture), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    assert torch.equal(output(model, architecture), before)
    assert not torch.allclose(output(twin, architecture), before)


def test_its_state_dict_makes_another_the_same(model, architecture):
    other = architecture.make().eval()
    assert not torch.allclose(output(other, architecture), output(model, architecture))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(other, architecture), output(model, architecture))


def test_its_stages_are_alike_in_structure(model, architecture):
    stages = architecture.stages_of(model)
    assert len(stages) == len(STEPS)
    first, *others = ({name: value.shape for name, value in stage.state_dict().items()} for stage in stages)
    assert all(other == first for other in others)
    kinds = [[(name, type(m).__name__) for name, m in stage.named_modules()] for stage in stages]
    assert kinds[1:] == kinds[:-1]


def test_its_stages_have_no_value_in_common(model, architecture):
    for one, another in combinations(architecture.stages_of(model), 2):
        for (name, p), q in zip(one.named_parameters(), another.parameters(), strict=True):
            assert p is not q and not torch.equal(p, q), name


def test_its_per_stage_names_are_steps_thresholds_biases_and_norms(model, architecture):
    stage = architecture.stages_of(model)[0]
    in_norms = {
        f"{path}.{name}"
        for path, module in stage.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters()
    }
    names = {name for name, _ in stage.named_parameters()}
    expected = {name for name in names if name.endswith(("step", "threshold", "bias"))} | in_norms
    assert set(architecture.per_stage) == expected
    assert len(set(architecture.per_stage)) == len(architecture.per_stage)


def test_it_says_whether_its_norms_have_buffers(model, architecture):
    found = any(name.endswith("running_mean") for name, _ in model.named_buffers())
    assert architecture.has_norm_buffers == found


def test_its_step_sizes_differ(model, architecture):
    stages = architecture.stages_of(model)
    steps = model.mu if hasattr(model, "mu") else torch.stack([stage.step.squeeze() for stage in stages])
    torch.testing.assert_close(steps.detach(), torch.tensor(STEPS))


def test_the_hook_of_the_recurrent_network_limits_something():
    torch.manual_seed(0)
    architecture = ARCHITECTURES["recurrent"]
    model = architecture.make().eval()
    before = output(model, architecture)
    for cell in architecture.stages_of(model):
        assert cell.before is cell.after and len(cell.read._forward_hooks) == 1
        cell.read._forward_hooks.clear()
    assert not torch.allclose(output(model, architecture), before)
