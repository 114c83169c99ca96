"""The network inside torch's wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from lorun_kernels import FusedLoRAConv2d, adapted_weights, is_merged, merge, to_plain, unmerge, unwrapped


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layer = FusedLoRAConv2d(3, 4, 3, rank=1)
    nn.init.normal_(layer.lora_up)
    return nn.Sequential(layer, nn.ReLU())


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "alone": lambda model: model,
    "compiled": compiled,
    "parallel": DataParallel,
    "compiled in parallel": lambda model: DataParallel(compiled(model)),
    "parallel compiled": lambda model: compiled(DataParallel(model)),
    "twice compiled": lambda model: compiled(DataParallel(compiled(model))),
}

every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
def test_the_network_inside_is_found(wrap):
    model = network()
    assert unwrapped(wrap(model)) is model


def test_a_network_that_holds_one_called_module_is_not_opened():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = network()

    holder = Holder()
    assert unwrapped(holder) is holder


@every_wrapper
def test_names_of_adapted_weights_are_those_of_the_network(wrap):
    assert list(adapted_weights(wrap(network()))) == ["0.weight"]


def test_a_compiled_part_has_the_name_that_it_had():
    model = network()
    model[0] = compiled(model[0])
    assert list(adapted_weights(model)) == ["0.weight"]


@every_wrapper
def test_merging_reaches_the_network_inside(wrap):
    model = network().eval()
    wrapped, image = wrap(model), torch.randn(1, 3, 5, 6)
    expected = model(image)
    assert merge(wrapped) is wrapped and is_merged(model)
    torch.testing.assert_close(model(image), expected)
    unmerge(wrapped)
    assert not is_merged(model) and torch.equal(model(image), expected)
    plain = to_plain(wrapped)
    assert [type(m) for m in plain] == [nn.Conv2d, nn.ReLU]
    torch.testing.assert_close(plain(image), expected)
