"""Adapters merged into their weights: for inference and back, and for good."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from lorun_kernels import (
    ConvAct,
    FusedLoRAConv2d,
    FusedLoRALinear,
    add_adapter,
    is_merged,
    merge,
    merge_all,
    share_parameter,
    to_plain,
    unmerge,
)
from tests.lorun_kernels.adaptable_modules import CASES, flat, trained

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvAct(3, 5, 3, padding=1, activation="leaky_relu", negative_slope=0.2)
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.back = nn.ConvTranspose2d(5, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(1, 3))
        self.linear = nn.Linear(7, 7)

    def forward(self, x):
        x = self.back(self.norm(self.depthwise(self.conv(x))))
        return self.linear(x * self.scale[..., None, None])


def plain_network() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Stage() for _ in range(3))


def network() -> nn.ModuleList:
    """Three stages that share their weights, and have adapters that add something."""
    stages = plain_network()
    for path, name in (
        ("conv", "weight"),
        ("depthwise", "weight"),
        ("back", "weight"),
        ("linear", "weight"),
        ("", "scale"),
    ):
        owners = [stage.get_submodule(path) for stage in stages]
        shared = owners[0]._parameters[name].requires_grad_(False)
        share_parameter([(owner, name) for owner in owners], shared)
        for owner in owners:
            if name != "scale":  # which is shared as it is
                add_adapter(owner, name, rank=1, scaling=0.5)
    return trained(stages)


def run(stages: nn.ModuleList, **options) -> torch.Tensor:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(**options)
    for stage in stages:
        x = x + stage(x)
    return x


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_merged_it_computes_the_same_without_merging(monkeypatch):
    stages = network().eval()
    expected = run(stages)
    assert not is_merged(stages) and merge(stages) is stages and is_merged(stages)
    monkeypatch.setattr("lorun_kernels.adapted.merge_parts", None)
    monkeypatch.setattr("lorun_kernels.lora_conv_layer.lent_weight", lambda *args: None)
    assert (run(stages) - expected).abs().max() < 1e-6 * expected.abs().max()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_module_merges_and_unmerges(case, dtype):
    module, inputs = case.trained(dtype, scaling=-0.5).eval(), case.inputs(dtype)
    before = values(module)
    with torch.no_grad():
        expected = flat(module(*inputs))
        merge(module)
        for value, definition in zip(flat(module(*inputs)), expected, strict=True):
            assert (value - definition).abs().max() <= 1e-6 * definition.abs().max()
        assert values(module).keys() == before.keys()
        unmerge(module)
        for value, definition in zip(flat(module(*inputs)), expected, strict=True):
            assert torch.equal(value, definition)
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_gives_back_every_bit(dtype):
    stages = network().to(dtype).eval()
    before, parameters = values(stages), [id(p) for p in stages.parameters()]
    with torch.no_grad():
        expected = run(stages, dtype=dtype)
        for _ in range(3):
            merge(stages)
            run(stages, dtype=dtype)
            unmerge(stages)
        assert torch.equal(run(stages, dtype=dtype), expected)
    assert [id(p) for p in stages.parameters()] == parameters and not is_merged(stages)
    assert all(torch.equal(value, before[name]) for name, value in values(stages).items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_before_anything_changes(bad):
    stages = network().eval()
    with torch.no_grad():
        stages[2].back.lora_up[0, 0] = bad
    for make in (merge, to_plain, merge_all):
        with pytest.raises(ValueError, match=r"2\.back\.weight: base and adapter together hold NaN or Inf"):
            make(stages)
    assert not is_merged(stages) and not any(name.startswith("_merged") for name, _ in stages.named_buffers())


@pytest.mark.parametrize(
    "name", ["Conv2d", "Conv2d depthwise", "Linear", "ConvTranspose2d", "dictionary", "GRU"]
)
def test_merged_it_does_not_train(name):
    case = CASES[name]
    module = merge(case.trained()).train()
    with pytest.raises(RuntimeError, match=r"call lorun_kernels\.unmerge\(model\) before training"):
        module(*case.inputs())
    with torch.no_grad():
        module(*case.inputs())
    module.eval()(*case.inputs())
    unmerge(module).train()(*case.inputs())


@pytest.mark.parametrize("name", ["Conv2d", "Linear", "ConvTranspose2d", "dictionary", "GRU"])
def test_merged_it_takes_no_other_weights(name):
    case = CASES[name]
    module = merge(case.trained().eval())
    before = values(module)
    other = {key: value + 1 for key, value in before.items()}
    with pytest.raises(RuntimeError, match=r"merged; call lorun_kernels\.unmerge\(model\) first"):
        module.load_state_dict(other)
    with pytest.raises(RuntimeError, match="cannot be set while the adapters are merged"):
        setattr(module, case.name, nn.Parameter(torch.zeros_like(before[case.name])))
    assert all(torch.equal(value, before[key]) for key, value in values(module).items())
    unmerge(module).load_state_dict(other)


def test_merged_it_moves_and_is_copied():
    stages = network().eval()
    expected = run(stages)
    merge(stages)
    for twin in (copy.deepcopy(stages), pickle.loads(pickle.dumps(stages))):
        assert is_merged(twin) and torch.equal(run(twin), run(stages))
        assert torch.equal(run(unmerge(twin)), expected) and is_merged(stages)
    wide = copy.deepcopy(stages).double()
    torch.testing.assert_close(run(wide, dtype=torch.float64), expected.double(), rtol=1e-4, atol=1e-5)
    half = merge(network().eval()).bfloat16()
    assert run(half, dtype=torch.bfloat16).dtype == torch.bfloat16
    own = stages[1].back.weight
    assert torch.equal(half[1].back.weight, own.bfloat16())


def test_stages_have_weights_of_their_own_while_merged():
    stages = merge(network().eval())
    first, second = stages[0].back, stages[1].back
    assert not torch.equal(first.weight, second.weight)
    assert first._parameters["weight"] is second._parameters["weight"]


def test_as_plain_modules_the_network_is_what_it_was_made_of():
    stages = network()
    stages[1].conv.note = "mine"
    expected, original = run(stages.eval()), plain_network()
    plain = to_plain(stages)
    assert [type(m) for m in plain.modules()] == [type(m) for m in original.modules()]
    assert plain.state_dict().keys() == original.state_dict().keys()
    torch.testing.assert_close(run(plain), expected)
    original.load_state_dict(merge_all(stages))
    torch.testing.assert_close(run(original.eval()), expected)
    parameters = list(plain.parameters())
    assert all(p.requires_grad for name, p in plain.named_parameters() if name.endswith(".weight"))
    assert len(parameters) == len(list(original.parameters()))
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    assert not {p.data_ptr() for p in parameters} & {p.data_ptr() for p in stages.parameters()}
    assert plain[1].conv.note == "mine" and plain[0].conv.activation == "leaky_relu"
    assert not hasattr(plain[0].depthwise, "activation") and not hasattr(plain[0].back, "_adapters")
    plain.train()
    run(plain).sum().backward()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None, name


def test_plain_values_are_those_of_base_and_product():
    stages = network()
    plain = to_plain(stages)
    for stage, simple in zip(stages, plain, strict=True):
        layer = stage.back
        added = (layer.lora_up @ layer.lora_down).view(layer._base_weight.shape)
        torch.testing.assert_close(simple.back.weight, layer._base_weight + 0.5 * added)
        assert torch.equal(simple.scale, stage.scale) and simple.scale is not stage.scale


def test_the_network_stays_adapted_and_may_be_merged_when_it_becomes_plain():
    stages = network().eval()
    before, expected = values(stages), run(stages)
    merge(stages)
    torch.testing.assert_close(run(to_plain(stages)), expected)
    assert is_merged(stages) and not is_merged(to_plain(stages))
    assert all(torch.equal(value, before[name]) for name, value in values(stages).items())


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: FusedLoRAConv2d(3, 4, 3), nn.Conv2d),
        (lambda: FusedLoRAConv2d(3, 4, 3, activation="relu"), ConvAct),
        (lambda: FusedLoRAConv2d.from_conv(nn.Conv2d(3, 4, 3), activation="relu"), ConvAct),
        (lambda: FusedLoRAConv2d.from_conv(ConvAct(3, 4, 3, activation="relu")), ConvAct),
        (lambda: FusedLoRALinear(3, 4), nn.Linear),
        (lambda: add_adapter(nn.Conv2d(3, 4, 3)), nn.Conv2d),
        (lambda: FusedLoRAConv2d(3, 3, 3, groups=3), nn.Conv2d),
    ],
)
def test_layers_become_the_class_that_computes_what_they_do(make, kind):
    layer = trained(make())
    shape = (2, 3, 5, 6) if not isinstance(layer, nn.Linear) else (5, 3)
    image = torch.randn(shape)
    plain = to_plain(layer)
    assert type(plain) is kind and plain.state_dict().keys() == {"weight", "bias"}
    torch.testing.assert_close(plain(image), layer(image))


def test_no_counter_or_exporter_is_needed():
    code = "import sys, lorun_kernels as lk; from torch import nn;"
    code += "lk.to_plain(lk.add_adapter(nn.Conv3d(2, 2, 2)));"
    code += "print([name for name in ('thop', 'fvcore', 'onnx') if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.strip() == "[]"
