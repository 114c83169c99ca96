"""One Parameter in several modules: it falls apart with a word, and becomes one again."""

from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
from torch import nn

from lorun_kernels import (
    FusedLoRAConv2d,
    FusedLoRALinear,
    add_adapter,
    retie,
    share_parameter,
    share_with,
    shared_groups,
)
from lorun_kernels.sharing import leave
from tests.lorun_kernels.adaptable_modules import trained


def fused_stages(device: str | None = None) -> nn.ModuleList:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 4, 3, device=device), nn.Linear(5, 3, device=device)
    stages = nn.ModuleList(
        nn.Sequential(FusedLoRAConv2d.from_conv(conv, rank=1), FusedLoRALinear.from_linear(linear, rank=2))
        for _ in range(3)
    )
    return trained(stages)


def stages_of_any_module(device: str | None = None) -> nn.ModuleList:
    torch.manual_seed(0)
    stages = nn.ModuleList(
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3, device=device), nn.Linear(7, 3, device=device))
        for _ in range(3)
    )
    for number in range(2):
        layers = [stage[number] for stage in stages]
        share_parameter([(layer, "weight") for layer in layers], layers[0].weight)
        for layer in layers:
            add_adapter(layer, rank=1)
    return trained(stages)


NETWORKS = {"fused": (fused_stages, (2, 3, 6, 7)), "any module": (stages_of_any_module, (2, 3, 4, 5))}
every_network = pytest.mark.parametrize("make, shape", NETWORKS.values(), ids=NETWORKS)


def run(stages: nn.ModuleList, shape: tuple[int, ...], **options) -> torch.Tensor:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(**options)
    return torch.stack([stage(image) for stage in stages])


def bases(stages: nn.ModuleList) -> list[set[int]]:
    return [{id(stage[number]._parameters["weight"]) for stage in stages} for number in range(2)]


def is_shared(stages: nn.ModuleList) -> bool:
    return all(len(parameters) == 1 for parameters in bases(stages))


@every_network
def test_loading_with_assign_comes_apart_with_a_word_and_is_retied(make, shape):
    stages, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    state = copy.deepcopy(other.state_dict())
    for number in (1, 2):  # as a file does, which holds a tensor for each name
        for name in ("0.weight", "1.weight"):
            state[f"{number}.{name}"] = state[f"0.{name}"].clone()
    stages.load_state_dict(state, assign=True)
    assert not is_shared(stages)
    with pytest.raises(RuntimeError, match=r"call lorun_kernels\.retie\(model\)"):
        run(stages, shape)
    assert retie(stages) is stages and is_shared(stages)
    assert torch.equal(run(stages, shape), run(other, shape))


@every_network
def test_to_empty_from_meta_is_retied_before_values_come(make, shape):
    stages, other = make("meta").to_empty(device="cpu"), make()
    retie(stages)
    assert is_shared(stages)
    stages.load_state_dict(other.state_dict())
    assert torch.equal(run(stages, shape), run(other, shape))


@every_network
def test_a_move_of_the_whole_network_keeps_it_one(make, shape):
    stages = make()
    expected = run(stages, shape)
    stages.double()
    assert is_shared(stages)
    torch.testing.assert_close(
        run(stages, shape, dtype=torch.float64), expected.double(), rtol=1e-4, atol=1e-5
    )
    stages.to("meta").to_empty(device="cpu")
    assert is_shared(retie(stages))


@every_network
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_that_makes_new_parameters_keeps_it_one(make, shape, overwrite):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        stages = make()
        old = bases(stages)
        stages.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert is_shared(stages) and (bases(stages) != old) is overwrite
    assert run(stages, shape, dtype=torch.float64).dtype == torch.float64


@every_network
@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_that_has_a_parameter_of_its_own_says_so(make, shape, number):
    stages = make()
    layer = stages[1][number]
    layer._parameters["weight"] = nn.Parameter(layer._parameters["weight"].detach().clone())
    assert torch.equal(run(stages[:1], shape), run(make()[:1], shape))
    with pytest.raises(RuntimeError, match="no longer the one that its stages share.*retie"):
        run(stages, shape)
    retie(stages)
    assert is_shared(stages) and torch.equal(run(stages, shape), run(make(), shape))


@every_network
def test_stages_with_different_values_are_not_made_one(make, shape):
    stages = make()
    state = {name: value.clone() for name, value in stages.state_dict().items()}
    state["1.1.weight"][0, 0] += 1
    stages.load_state_dict(state, assign=True)
    with pytest.raises(ValueError, match=r"1\.weight: the stages hold different.*lorun\.compress\(model\)"):
        retie(stages)


@every_network
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_shares_inside_and_nothing_with_the_original(make, shape, how):
    stages = make()
    expected = run(stages, shape)
    twin = how(stages)
    assert is_shared(twin) and not set.union(*bases(twin)) & set.union(*bases(stages))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in stages.parameters()}
    assert torch.equal(run(twin, shape), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(run(stages, shape), expected)
    twin.double()
    assert is_shared(twin) and is_shared(stages)
    assert run(twin, shape, dtype=torch.float64).dtype == torch.float64


@every_network
def test_retie_of_what_is_one_changes_nothing(make, shape):
    stages = make()
    before, parameters = bases(stages), [id(p) for p in stages.parameters()]
    retie(stages)
    assert bases(stages) == before and [id(p) for p in stages.parameters()] == parameters


def test_a_copy_of_one_stage_is_on_its_own():
    stage = copy.deepcopy(fused_stages()[1])
    assert torch.equal(stage[0](torch.ones(1, 3, 4, 4)), fused_stages()[1][0](torch.ones(1, 3, 4, 4)))
    assert retie(stage) is stage


def test_groups_have_the_names_of_all_owners():
    groups = sorted(shared_groups(stages_of_any_module()).values())
    names = [[name for name, _, _ in owners] for owners in groups]
    assert names == [["0.0.weight", "1.0.weight", "2.0.weight"], ["0.1.weight", "1.1.weight", "2.1.weight"]]


def test_share_with_makes_another_module_share():
    first, second, third = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    share_with(second, "weight", first, "weight")
    share_with(third, "weight", second, "weight")
    assert first.weight is second.weight is third.weight
    (owners,) = shared_groups(nn.Sequential(first, second, third)).values()
    assert [name for name, _, _ in owners] == ["0.weight", "1.weight", "2.weight"]
    leave(second, "weight")
    (owners,) = shared_groups(nn.Sequential(first, second, third)).values()
    assert [name for name, _, _ in owners] == ["0.weight", "2.weight"]


def test_a_recurrent_module_uses_the_parameter_that_it_shares():
    torch.manual_seed(0)
    first, second = nn.GRU(3, 4), nn.GRU(3, 4)
    x, before = torch.randn(5, 2, 3), second(torch.ones(5, 2, 3))[0]
    for name, parameter in first.named_parameters():
        share_parameter([(first, name), (second, name)], parameter)
    assert all(map(operator.is_, second._flat_weights, first._flat_weights))
    assert torch.equal(first(x)[0], second(x)[0])
    assert not torch.equal(second(torch.ones(5, 2, 3))[0], before)
    with torch.no_grad():
        first.weight_hh_l0.add_(1)
    assert torch.equal(first(x)[0], second(x)[0])
