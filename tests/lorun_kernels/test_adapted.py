"""What every adapted layer has: a rank, a start, and a state dict that can be that of a plain layer."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lorun_kernels import (
    AdaptedWeight,
    Adapter,
    FusedLoRAConv2d,
    FusedLoRALinear,
    StageWeights,
    adapted_weights,
    add_adapter,
    choose_rank,
    grow_rank,
    tensor_name,
)
from lorun_kernels.adapted import drop_ranks, merge_parts
from lorun_kernels.lent_weights import lent_weight
from tests.lorun_kernels.adaptable_modules import CASES, flat, trained


def adapted(**options) -> FusedLoRAConv2d:
    """A layer whose adapter is not zero."""
    layer = FusedLoRAConv2d(4, 6, 3, padding=1, rank=2, **options)
    nn.init.normal_(layer.lora_up)
    return layer


@pytest.mark.parametrize(
    "in_channels, out_channels, groups, gamma, rank",
    [
        (28, 28, 1, 10, 3),
        (30, 30, 1, 10, 3),
        (2, 28, 1, 10, 1),
        (112, 112, 1, 10, 12),
        (64, 64, 1, 12.5, 8),
        (1000, 1000, 1, 1.1, 11),
        (8, 8, 4, 100, 8),
    ],
)
def test_eq_12_sets_the_rank(in_channels, out_channels, groups, gamma, rank):
    layer = FusedLoRAConv2d(in_channels, out_channels, 3, groups=groups, gamma=gamma, form="factored")
    assert layer.rank == rank


def test_adapter_starts_at_zero_up_and_gaussian_down():
    torch.manual_seed(0)
    layer = FusedLoRAConv2d(64, 64, 3)
    assert not layer.lora_up.any()
    values = layer.lora_down.detach().flatten()
    std = (64 * 3) ** -0.5
    assert abs(values.std().item() / std - 1) < 0.05
    assert 0.60 < (values.abs() < std).float().mean() < 0.76
    assert values.abs().max() > 3 * std


@pytest.mark.parametrize("strict", [True, False])
def test_loads_a_conv2d_state_dict_without_renaming(strict):
    conv, layer = nn.Conv2d(4, 6, 3, padding=1), FusedLoRAConv2d(4, 6, 3, padding=1, rank=2)
    down = layer.lora_down.detach().clone()
    assert not any(layer.load_state_dict(conv.state_dict(), strict=strict))
    image = torch.randn(1, 4, 8, 8)
    assert torch.equal(layer(image), conv(image))
    assert torch.equal(layer.lora_down, down)


@pytest.mark.parametrize("strict", [True, False])
def test_a_conv2d_state_dict_leaves_a_trained_adapter_as_it_is(strict):
    conv, layer = nn.Conv2d(4, 6, 3, padding=1), adapted(scaling=0.5)
    added = 0.5 * (layer.lora_up @ layer.lora_down).detach().view(6, 4, 3, 3)
    layer.load_state_dict(conv.state_dict(), strict=strict)
    image = torch.randn(1, 4, 8, 8)
    expected = nn.functional.conv2d(image, conv.weight + added, conv.bias, padding=1)
    torch.testing.assert_close(layer(image), expected)


def test_half_an_adapter_is_a_missing_key():
    state = adapted().state_dict()
    del state["lora_down"]
    with pytest.raises(RuntimeError, match="lora_down"):
        adapted().load_state_dict(state)


def test_state_dict_deepcopy_and_pickle_round_trips():
    layer, image = adapted(scaling=0.5), torch.randn(1, 4, 8, 8)
    expected = layer(image)
    loaded = adapted(scaling=0.5)
    loaded.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = [
        loaded,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
        copy.deepcopy(layer).to(memory_format=torch.channels_last),
    ]
    for other in copies:
        torch.testing.assert_close(other(image), expected)


def test_meta_device_materialises():
    layer = FusedLoRAConv2d(4, 6, 3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    layer.reset_adapter()
    assert layer(torch.randn(1, 4, 8, 8)).isfinite().all()


SOME = (
    "Conv1d",
    "Conv2d",
    "Conv2d depthwise",
    "ConvTranspose2d",
    "Linear",
    "attention in",
    "dictionary",
    "GRU",
)
some_cases = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=SOME)


@some_cases
@pytest.mark.parametrize("form", ["reshape", "full"])
def test_setting_a_weight_sets_what_is_applied(case, form):
    inputs, owner = case.inputs(), None
    for module in (case.adapted(form=form), case.trained(form=form, scaling=0.5)):
        plain, owner = case.module().eval(), case.owner(module.eval())
        adapter = {name: p.clone() for name, p in owner.named_parameters() if "lora_" in name}
        target = torch.randn_like(owner._parameters[case.name])
        setattr(case.owner(plain), case.name, nn.Parameter(target.clone()))
        setattr(owner, case.name, nn.Parameter(target.clone(), requires_grad=False))
        torch.testing.assert_close(getattr(owner, case.name), target)
        assert not owner._parameters[case.name].requires_grad
        assert all(torch.equal(value, owner._parameters[name]) for name, value in adapter.items())
        expected = plain(*inputs)
        for value, definition in zip(flat(module(*inputs)), flat(expected), strict=True):
            torch.testing.assert_close(value, definition, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_set_with_an_adapter_of_zero_is_the_parameter_itself():
    layer = add_adapter(nn.ConvTranspose2d(3, 4, 3))
    parameter = nn.Parameter(torch.randn(3, 4, 3, 3))
    layer.weight = parameter
    assert layer._base_weight is parameter


@some_cases
@pytest.mark.parametrize("form", ["reshape", "full"])
def test_reset_lets_an_adapter_add_nothing(case, form):
    module = case.trained(form=form).eval()
    plain, owner = case.module().eval(), case.owner(module)
    owner.reset_adapter()
    for value, expected in zip(flat(module(*case.inputs())), flat(plain(*case.inputs())), strict=True):
        assert torch.equal(value, expected)
    (weight,) = owner.adapted_weights()
    assert (
        (weight.delta is None) == (form == "reshape") == bool(weight.down is not None and weight.down.any())
    )


@pytest.mark.parametrize("case", [CASES[name] for name in SOME if name != "Conv2d depthwise"])
def test_a_larger_rank_adds_what_the_smaller_did(case):
    module = case.trained(scaling=0.5).eval()
    (weight,) = adapted_weights(module).values()
    expected, old = module(*case.inputs()), (weight.up.clone(), weight.down.clone())
    inner = weight.up.shape[1]
    weight.up.requires_grad_(False)
    grow_rank(weight, 3)
    (grown,) = adapted_weights(module).values()
    assert grown.adapter == Adapter(weight.adapter.form, 3, 0.5, weight.adapter.groups)
    assert grown.up.shape[1] == grown.down.shape[0] == 3 * inner
    assert torch.equal(grown.up[:, :inner], old[0]) and torch.equal(grown.down[:inner], old[1])
    assert not grown.up[:, inner:].any() and not grown.down[inner:].any()
    assert not grown.up.requires_grad and grown.down.requires_grad
    for value, definition in zip(flat(module(*case.inputs())), flat(expected), strict=True):
        torch.testing.assert_close(value, definition)


@some_cases
@pytest.mark.parametrize("order", [("base", "adapter"), ("adapter", "base")])
@pytest.mark.parametrize("form", ["reshape", "full"])
def test_base_and_adapter_load_in_either_order(case, order, form):
    source = case.trained(form=form).eval()
    parts = {
        "base": {name: value + 0.25 for name, value in case.module().state_dict().items()},
        "adapter": {name: value for name, value in source.state_dict().items() if "lora_" in name},
    }
    source.load_state_dict(parts["base"] | parts["adapter"])
    module = case.adapted(form=form).eval()
    for part in order:
        assert not module.load_state_dict(parts[part], strict=False).unexpected_keys
    for value, expected in zip(flat(module(*case.inputs())), flat(source(*case.inputs())), strict=True):
        assert torch.equal(value, expected)


def test_loading_a_base_says_that_nothing_is_missing_and_an_adapter_names_the_base():
    layer, source = adapted(), adapted()
    assert not layer.load_state_dict(nn.Conv2d(4, 6, 3).state_dict(), strict=True).missing_keys
    only = {name: value for name, value in source.state_dict().items() if "lora" in name}
    assert layer.load_state_dict(only, strict=False).missing_keys == ["weight", "bias"]
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict(only)


DROPPING = {
    "conv": lambda **options: FusedLoRAConv2d(4, 5, 3, rank=3, **options),
    "linear": lambda **options: FusedLoRALinear(6, 5, rank=3, **options),
    "conv in bfloat16": lambda **options: add_adapter(
        nn.Conv2d(4, 5, 3).bfloat16(), rank=3, dtype=torch.float32, **options
    ),
    "transposed": lambda **options: add_adapter(nn.ConvTranspose2d(4, 5, 3), rank=3, **options),
}

every_dropping = pytest.mark.parametrize("make", DROPPING.values(), ids=DROPPING)


def image_of(layer: nn.Module) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    base = layer._parameters["weight"]
    return torch.randn((3, 6) if base.dim() == 2 else (1, 4, 5, 6), generator=random).to(base.dtype)


@every_dropping
def test_ranks_are_left_out_in_training_only(make):
    torch.manual_seed(0)
    layer, plain = trained(make(rank_dropout=0.5)), trained(make())
    plain.load_state_dict(layer.state_dict())
    image = image_of(layer)
    expected = plain(image)
    assert len(torch.stack([layer(image) for _ in range(30)]).flatten(1).unique(dim=0)) > 4
    assert len(torch.stack([layer.eval()(image) for _ in range(5)]).flatten(1).unique(dim=0)) == 1
    assert torch.equal(layer(image), expected)
    layer.train()(image).sum().backward()
    assert layer.lora_down.grad is not None


@every_dropping
def test_on_average_a_dropped_adapter_adds_what_the_whole_one_does(make):
    torch.manual_seed(0)
    layer = trained(make(rank_dropout=0.25)).to(torch.float64)
    image = image_of(layer)
    expected = layer.eval()(image)
    with torch.no_grad():
        found = torch.stack([layer.train()(image) for _ in range(300)])
    spread = found.std(0) / 300**0.5
    assert ((found.mean(0) - expected).abs() < 5 * spread + 1e-9).all() and spread.max() > 0.001


VALUES = {0.0, torch.tensor(4 / 3).item()}


def test_a_rank_is_dropped_whole():
    torch.manual_seed(0)
    up, seen = torch.ones(7, 6), set()
    for _ in range(60):
        dropped = drop_ranks(up, 3, 0.25)
        assert torch.equal(dropped, dropped[:1].expand(7, 6))
        pairs = dropped[0].view(3, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1]) and set(pairs.unique().tolist()) <= VALUES
        seen.add(tuple((pairs[:, 0] > 0).tolist()))
    assert len(seen) >= 6


def test_a_lent_weight_is_not_used_where_ranks_are_dropped():
    torch.manual_seed(0)
    conv, image = nn.Conv2d(3, 3, 3), torch.randn(1, 3, 5, 6)
    stages = [nn.Sequential(FusedLoRAConv2d.from_conv(conv, rank=2, rank_dropout=0.5)) for _ in range(2)]
    for stage in stages:
        trained(stage)
    weights, whole = StageWeights(stages), stages[0].eval()(image)
    with weights.stage(0):
        assert lent_weight(stages[0][0], image) is not None
        assert torch.equal(stages[0](image), whole)
        stages[0].train()
        found = torch.stack([stages[0](image) for _ in range(30)])
    assert 3 <= len(found.flatten(1).unique(dim=0)) <= 4


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_probabilities_outside_their_range_are_refused(probability):
    for make in (*DROPPING.values(), lambda rank_dropout: Adapter("reshape", 1, rank_dropout=rank_dropout)):
        with pytest.raises(ValueError, match=r"rank_dropout must be a probability in \[0, 1\)"):
            make(rank_dropout=probability)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("base, factors", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("scaling", [1.0, -0.5])
def test_parts_merge_to_the_dtype_and_layout_of_the_base(base, factors, scaling, layout):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3).to(base, memory_format=layout)
    up, down = torch.randn(12, 6).to(factors), torch.randn(6, 9).to(factors)
    with torch.autocast("cpu", torch.bfloat16):
        merged = merge_parts(weight, up, down, None, scaling)
    expected = weight.double() + scaling * (up.double() @ down.double()).reshape(4, 3, 3, 3)
    assert merged.dtype == base and merged.stride() == weight.stride()
    torch.testing.assert_close(
        merged, expected.to(base), rtol=1e-2 if base == torch.bfloat16 else 1e-6, atol=1e-5
    )


def test_names_of_an_adapters_tensors():
    assert tensor_name("lora_up", "weight") == "lora_up"
    assert tensor_name("lora_down", "in_proj_weight") == "lora_down_in_proj_weight"


def test_an_adapted_weight_has_its_parts():
    layer = adapted()
    (weight,) = layer.adapted_weights()
    assert weight == AdaptedWeight(layer, "weight", Adapter("reshape", 2))
    assert weight.base is layer.base_weight and weight.tensors == (layer.lora_up, layer.lora_down)
    assert weight.delta is None and torch.equal(weight.merged(), layer.weight)


@pytest.mark.parametrize("rank", [0, 5, -1, 2.0, True, "2"])
def test_ranks_outside_their_range_are_refused(rank):
    with pytest.raises(ValueError, match="mine: rank must be an int between 1 and 4 for this layer"):
        choose_rank("mine", 8, 8, 4, rank, 10)
    assert choose_rank("mine", 8, 8, 4, None, 100) == 4 and choose_rank("mine", 8, 8, 4, 3, 10) == 3


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 3), nn.Linear(5, 6), nn.ConvTranspose2d(4, 8, 3)])
def test_a_replica_of_data_parallel_computes_with_its_own_tensors(layer):
    """As torch.nn.parallel.replicate makes it, which needs GPUs: tensors set by name."""
    add_adapter(layer)
    nn.init.normal_(layer.lora_up)
    replica = layer._replicate_for_data_parallel()
    copies = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    for name in layer._parameters:
        if name in copies:
            setattr(replica, name, copies[name])
        else:
            replica._parameters[name] = None
    x = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(replica(x), layer(x))
    replica(x).sum().backward()
    assert copies["lora_up"].grad is not None and layer.lora_up.grad is None
