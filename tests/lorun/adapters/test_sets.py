"""Named sets of adapters on one base."""

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import lorun
from lorun.adapters import (
    active_adapters,
    adapter_names,
    add_adapters,
    delete_adapters,
    get_adapters,
)
from lorun.adapters.adapter_set import LayerAdapter
from lorun_kernels import adapted_weights
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import IMAGE, result, shared, small_network, train_adapters

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


def network(seed=1, **options):
    return train_adapters(lorun.share_stages(small_network(), "stages", **options), 0.3, seed)


@EVERY
def test_switching_there_and_back_keeps_what_was_trained(name):
    model, other = train_adapters(shared(name), 0.02, seed=1), train_adapters(shared(name), 0.02, seed=2)
    expected, expected_other = result(model, name), result(other, name)
    assert not torch.equal(expected, expected_other)
    add_adapters(model, "other", get_adapters(other))
    lorun.set_adapters(model, "other")
    assert torch.equal(result(model, name), expected_other) and active_adapters(model) == "other"
    train_adapters(model, 0.02, seed=3)
    trained = result(model, name)
    lorun.set_adapters(model, "default")
    assert torch.equal(result(model, name), expected)
    lorun.set_adapters(model, "other")
    assert torch.equal(result(model, name), trained) and adapter_names(model) == ["other", "default"]


def test_what_each_stage_keeps_belongs_to_the_set():
    model, other = network(), network(2)
    with torch.no_grad():
        other.stages[1].step.fill_(0.25)
        other.stages[0].first.bias.fill_(0.5)
    add_adapters(model, "other", get_adapters(other))
    lorun.set_adapters(model, "other")
    assert model.stages[1].step == 0.25 and (model.stages[0].first.bias == 0.5).all()
    torch.testing.assert_close(model(IMAGE), other(IMAGE))


@pytest.mark.parametrize("scaling", [{}, {"alpha": 7.0}])
@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_sets_of_other_ranks_and_scalings_compute_as_in_their_own_network(form, scaling):
    image = IMAGE.double()

    def networks():
        return network(1, rank=1, form=form).double(), network(2, rank=2, form=form, **scaling).double()

    expected = [model(image) for model in networks()]
    for own, other in ((0, 1), (1, 0)):
        model = networks()[own]
        add_adapters(model, "other", get_adapters(networks()[other]))
        torch.testing.assert_close(model(image), expected[own])
        lorun.set_adapters(model, "other")
        torch.testing.assert_close(model(image), expected[other])
        lorun.set_adapters(model, "default")
        torch.testing.assert_close(model(image), expected[own])


def test_a_full_delta_and_factors_take_each_others_place():
    low, full = network(1, rank=1), network(2, form="full")
    expected_low, expected_full = low(IMAGE), full(IMAGE)
    add_adapters(low, "full", get_adapters(full))
    torch.testing.assert_close(low(IMAGE), expected_low)
    lorun.set_adapters(low, "full")
    torch.testing.assert_close(low(IMAGE), expected_full)
    add_adapters(full, "low", get_adapters(network(1, rank=1)))
    lorun.set_adapters(full, "low")
    torch.testing.assert_close(full(IMAGE), expected_low)


def test_an_adapter_that_two_modules_share_stays_shared_as_it_grows():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(9, 8, bias=False), nn.Linear(9, 8, bias=False)
            self.up.weight = self.down.weight

        def forward(self, x):
            return self.down(x) + self.up(x)

    def stages(rank):
        torch.manual_seed(0)
        model = nn.Sequential(Stage(), Stage())
        return train_adapters(lorun.share_stages(model, ["0", "1"], rank=rank), seed=rank)

    model, large = stages(1), stages(3)
    add_adapters(model, "large", get_adapters(large))
    lorun.set_adapters(model, "large")
    x = torch.randn(2, 9)
    assert model[1].down.lora_up is model[1].up.lora_up
    torch.testing.assert_close(model[1](x), large[1](x))


def test_adapters_are_disabled_for_a_while_or_until_others_are_set():
    model = network()
    base, trained = lorun.share_stages(small_network(), "stages")(IMAGE), model(IMAGE)
    with lorun.disable_adapters(model):
        assert torch.equal(model(IMAGE), base) and active_adapters(model) is None
    assert torch.equal(model(IMAGE), trained)
    with pytest.raises(ZeroDivisionError), lorun.disable_adapters(model):
        _ = 1 / 0
    assert torch.equal(model(IMAGE), trained)
    lorun.disable_adapters(model)
    lorun.disable_adapters(model)
    assert torch.equal(model(IMAGE), base)
    lorun.set_adapters(model, "default")
    assert torch.equal(model(IMAGE), trained)


def test_a_compiled_network_switches_without_compiling_again():
    model = network()
    add_adapters(model, "other", get_adapters(network(2)))
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for name in ("default", "other", "default"):
            lorun.set_adapters(compiled, name)
            torch.testing.assert_close(compiled(IMAGE), model(IMAGE))
        with lorun.disable_adapters(model):
            compiled(IMAGE)
    assert counter.frame_count == 1


def test_weights_that_a_set_lacks_get_nothing_added():
    model, held = network(), get_adapters(network(2)).adapters
    only = {name: adapter for name, adapter in held.items() if name.startswith("stages.1.first")}
    add_adapters(model, "part", only)
    lorun.set_adapters(model, "part")
    for name, weight in adapted_weights(model).items():
        assert torch.equal(weight.merged(), weight.base) is (name not in only)


def test_adding_to_the_active_name_replaces_it_and_others_can_be_deleted():
    model, other = network(), network(2)
    add_adapters(model, "default", get_adapters(other))
    torch.testing.assert_close(model(IMAGE), other(IMAGE))
    add_adapters(model, "more", {})
    delete_adapters(model, "more")
    assert adapter_names(model) == ["default"]
    for name, words in (("default", "'default' is active"), ("more", "no adapters are called 'more'")):
        with pytest.raises(ValueError, match=words):
            delete_adapters(model, name)


ONE = "stages.0.first.weight"
GOOD = LayerAdapter((8, 4, 3, 3), "reshape", torch.zeros(24, 3), torch.zeros(3, 12))


@pytest.mark.parametrize(
    ("name", "adapters", "words"),
    [
        ("", {}, "name: expected a name"),
        ("x", {"stages.7.first.weight": GOOD}, "adapts no weight called 'stages.7.first.weight'"),
        (
            "x",
            {ONE: LayerAdapter((8, 4, 5, 5), "reshape", GOOD.up, GOOD.down)},
            r"is of shape \(8, 4, 3, 3\)",
        ),
        ("x", {ONE: LayerAdapter((8, 4, 3, 3), "factored", torch.zeros(8, 1), torch.zeros(1, 36))}, "form"),
        ("x", {ONE: LayerAdapter((8, 4, 3, 3), "reshape", GOOD.up + torch.nan, GOOD.down)}, "NaN or Inf"),
    ],
)
def test_sets_that_do_not_fit_are_refused_and_change_nothing(name, adapters, words):
    model = network(rank=1)
    expected = model(IMAGE)
    with pytest.raises(ValueError, match=words):
        add_adapters(model, name, adapters)
    assert torch.equal(model(IMAGE), expected) and adapter_names(model) == ["default"]


def test_unknown_names_merged_networks_and_networks_without_adapters_are_refused():
    model = network()
    with pytest.raises(ValueError, match="no adapters are called 'night'; expected one of .'default'"):
        lorun.set_adapters(model, "night")
    lorun.merge(model)
    for call in (
        lambda: lorun.set_adapters(model, "default"),
        lambda: lorun.disable_adapters(model),
        lambda: add_adapters(model, "x", {}),
    ):
        with pytest.raises(ValueError, match=r"merged; call lorun.unmerge\(model\)"):
            call()
    with pytest.raises(ValueError, match=r"has no adapters; give its stages some with lorun.share_stages"):
        lorun.set_adapters(small_network(), "default")
