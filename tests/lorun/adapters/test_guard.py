"""load_state_dict of networks with a shared base."""

import copy

import pytest
import torch

import lorun
from lorun_kernels import retie, shared_groups
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import (
    IMAGE,
    made,
    result,
    shared,
    small_network,
    train_adapters,
)

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


@EVERY
@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_separate_stages_is_refused_and_changes_nothing(name, strict):
    model = train_adapters(shared(name), 0.02)
    expected = result(model, name)
    with pytest.raises(RuntimeError, match=r"differ, but the stages .* share one base(.|\n)*lorun.compress"):
        model.load_state_dict(made(name).state_dict(), strict=strict)
    assert torch.equal(result(model, name), expected)


@EVERY
@pytest.mark.parametrize("assign", [False, True])
def test_its_own_state_loads_and_stays_shared(name, assign):
    source, target = train_adapters(shared(name), 0.02), shared(name)
    target.load_state_dict(copy.deepcopy(source.state_dict()), assign=assign)
    assert torch.equal(result(target, name), result(source, name))
    assert sum(p.numel() for p in target.parameters()) == sum(p.numel() for p in source.parameters())


@EVERY
def test_base_and_adapters_load_in_either_order(name):
    source = train_adapters(shared(name), 0.02)
    state = source.state_dict()
    adapters = {key: value for key, value in state.items() if "lora_" in key}
    rest = {key: value for key, value in state.items() if "lora_" not in key}
    for parts in ((rest, adapters), (adapters, rest)):
        target = shared(name)
        for part in parts:
            target.load_state_dict(part, strict=False)
        assert torch.equal(result(target, name), result(source, name))


def test_to_empty_and_retie_keep_the_stages_together():
    source = train_adapters(lorun.share_stages(small_network(), "stages"))
    empty = copy.deepcopy(source).to("meta").to_empty(device="cpu")
    retie(empty)
    assert all(
        len({id(m._parameters[n]) for _, m, n in owners}) == 1 for owners in shared_groups(empty).values()
    )
    empty.load_state_dict(source.state_dict())
    assert torch.equal(empty(IMAGE), source(IMAGE))


def test_a_base_that_has_come_apart_is_an_error_that_says_how_to_mend_it():
    model = lorun.share_stages(small_network(), "stages")
    first = model.stages[1].first
    first._parameters["weight"] = torch.nn.Parameter(first.base_weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"lorun_kernels.retie\(model\)"):
        model(IMAGE)
    retie(model)(IMAGE)


def test_an_unfolding_network_refuses_and_follows_too():
    def network(variant):
        torch.manual_seed(0)
        denoiser = lorun.create_model("cs25-unet-lorun9", pretrained=False).denoiser.__class__(1, 4)
        return lorun.UnfoldingNetwork(lorun.physics.BlockCS(0.25, block=8), denoiser, 2, variant)

    block, net = network("block"), network("lorun")
    torch.nn.init.normal_(block.denoisers[1].last.weight)
    state = {name: value for name, value in block.state_dict().items() if name.startswith("denoisers")}
    with pytest.raises(RuntimeError, match="lorun.compress"):
        net.load_state_dict(state, strict=False)
    count = len(list(net.parameters()))
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    assert len(list(net.parameters())) == count
    assert len(list(net.to("meta").to_empty(device="cpu").parameters())) == count
