"""compress: a trained network of separate stages as base and adapters."""

import copy

import pytest
import torch
from torch import nn

import lorun
from lorun.adapters import unet_channel_groups
from lorun.adapters.record import sharing_of
from lorun.denoisers import UNet
from lorun_kernels import adapted_weights, factor_shapes, shared_groups
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import IMAGE, made, result, small_network

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


@EVERY
@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_all_of_it_is_the_network_itself(name, form):
    model = lorun.compress(made(name), ARCHITECTURES[name].stages, gamma=100, form=form)
    torch.testing.assert_close(result(model, name), result(made(name), name), atol=1e-5, rtol=1e-5)
    assert len(shared_groups(model)) > 0


@EVERY
def test_what_each_stage_keeps_has_its_values(name):
    model, original = lorun.compress(made(name), ARCHITECTURES[name].stages), made(name)
    stages = ARCHITECTURES[name].stages_of(original)
    plain = ARCHITECTURES[name].stages_of(lorun.to_plain(model))
    for stage, other in zip(stages, plain, strict=True):
        for own in ARCHITECTURES[name].per_stage:
            assert torch.equal(stage.get_parameter(own), other.get_parameter(own))


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_base_is_the_mean_and_the_error_that_of_the_left_out_singular_values(form):
    original = small_network(4)
    model = lorun.compress(copy.deepcopy(original), "stages", rank_pattern={"first": 1}, form=form)
    weights = torch.stack([stage.first.weight.detach().double() for stage in original.stages])
    mean = weights.mean(0)
    torch.testing.assert_close(model.stages[2].first.base_weight.double(), mean, atol=1e-6, rtol=1e-6)
    for k, stage in enumerate(model.stages):
        # Eq. 4 sees (8, 4, 3, 3) as 24 x 12, of which a rank is 3 singular values; factored as 8 x 36.
        rows, values = (24, 3) if form == "reshape" else (8, 1)
        residual = weights[k] - mean
        singular = torch.linalg.svdvals(residual.reshape(rows, -1))
        error = (stage.first.weight.double() - weights[k]).square().sum()
        torch.testing.assert_close(error, singular[values:].square().sum(), atol=1e-8, rtol=1e-4)
        kept = sharing_of(model)[0].kept[f"stages.{k}.first.weight"]
        assert kept == pytest.approx(1 - (error / residual.square().sum()).item(), abs=1e-5)


def factors(model):
    return sum(t.numel() for weight in adapted_weights(model).values() for t in weight.tensors)


def test_a_number_of_parameters_is_spent_where_it_keeps_most():
    original = small_network(4)
    with torch.no_grad():
        original.stages[3].second.weight.mul_(20)
    whole = sum(p.numel() for p in original.parameters())
    model = lorun.compress(copy.deepcopy(original), "stages", parameters=1500, form="factored")
    assert sum(p.numel() for p in model.parameters()) <= 1500 < whole
    cheapest = sum(a * b for a, b in factor_shapes((8, 4, 3, 3), "factored", 1))
    assert sum(p.numel() for p in model.parameters()) > 1500 - 2 * cheapest
    report = lorun.report(model)
    ranks = {
        name: weight.adapter.rank or 99
        for name, weight in adapted_weights(model).items()
        if name.endswith("second.weight")
    }
    assert max(ranks, key=ranks.get) == "stages.3.second.weight" and min(ranks.values()) >= 1
    assert report.in_stages + report.rest == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_a_share_of_the_energy_is_reached_with_few_parameters(energy):
    original = small_network(4)
    model = lorun.compress(copy.deepcopy(original), "stages", energy=energy, form="factored")
    kept = whole = 0.0
    plain = lorun.to_plain(model)
    for layer in ("first", "second"):
        weights = torch.stack([getattr(s, layer).weight.detach() for s in original.stages])
        found = torch.stack([getattr(s, layer).weight.detach() for s in plain.stages])
        total = (weights - weights.mean(0)).square().sum().item()
        whole += total
        kept += total - (weights - found).square().sum().item()
    assert energy <= kept / whole + 1e-6 and kept / whole < energy + 0.05


def test_the_alternating_base_fits_better():
    errors = {}
    for base in ("mean", "alternating"):
        original = small_network(4)
        plain = lorun.to_plain(lorun.compress(copy.deepcopy(original), "stages", gamma=25, base=base))
        errors[base] = sum(
            (s.second.weight - o.second.weight).square().sum().item()
            for s, o in zip(plain.stages, original.stages, strict=True)
        )
    assert errors["alternating"] < 0.98 * errors["mean"]


def test_stages_whose_channels_are_only_reordered_lose_nothing_once_aligned():
    torch.manual_seed(0)
    denoiser = UNet(width=4)
    nn.init.normal_(denoiser.last.weight)
    stages = nn.ModuleList(copy.deepcopy(denoiser) for _ in range(3))
    for stage in stages[1:]:
        order = torch.randperm(4)
        with torch.no_grad():
            stage.encoder1.first.weight.copy_(stage.encoder1.first.weight[order])
            stage.encoder1.first.bias.copy_(stage.encoder1.first.bias[order])
            stage.encoder1.second.weight.copy_(stage.encoder1.second.weight[:, order])
    x, errors = torch.rand(1, 1, 8, 8), {}
    expected = denoiser(x, 0.1)
    for align in (None, unet_channel_groups(denoiser)):
        model = nn.Module()
        model.stages = copy.deepcopy(stages)
        lorun.compress(model, "stages", gamma=10, align=align)
        errors[align is None] = max((s(x, 0.1) - expected).abs().max().item() for s in model.stages)
    assert errors[False] < 1e-5 < 10 * errors[True]


def test_with_inputs_the_error_of_the_output_is_smaller():
    torch.manual_seed(0)
    stages = nn.Sequential(*(nn.Sequential(nn.Linear(24, 16)) for _ in range(3)))
    mixing = torch.randn(24, 24) * torch.logspace(0, -3, 24)

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(copy.deepcopy(stages))

        def forward(self, x):
            return torch.stack([stage(x) for stage in self.stages])

    x, original = torch.randn(200, 24) @ mixing, Parallel()
    errors = []
    for inputs in (None, [(x[:100],), (x[100:],)]):
        model = lorun.compress(copy.deepcopy(original), "stages", gamma=20, inputs=inputs)
        errors.append((model(x) - original(x)).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "median"}, "form, base: expected one of"),
        ({"form": "low"}, "form, base: expected one of"),
        ({"parameters": 5000, "energy": 0.5}, "expected one of them"),
        ({"parameters": 100}, "expected at least"),
        ({"energy": 1.5}, "energy"),
        ({"gamma": 0}, "gamma"),
        ({"include": ["nothing"]}, "include: 'nothing' fits no parameter"),
    ],
)
def test_what_is_refused_leaves_the_network_alone(options, words):
    model = small_network()
    expected = model(IMAGE)
    with pytest.raises(ValueError, match=words):
        lorun.compress(model, "stages", **options)
    assert torch.equal(model(IMAGE), expected) and not adapted_weights(model)


def test_weights_with_nan_and_stages_that_differ_are_refused():
    model = small_network()
    with torch.no_grad():
        model.stages[1].first.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="first.weight: holds NaN or Inf"):
        lorun.compress(model, "stages")
    model.stages[1].first = nn.Conv2d(4, 9, 3)
    with pytest.raises(ValueError, match=r"stages.1 is not like stages.0(.|\n)*first"):
        lorun.compress(model, "stages")
