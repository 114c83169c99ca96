"""The record of a network's stages."""

import json

import pytest
import torch

import lorun
from lorun.adapters.record import recorded, share_as_recorded, sharing_of
from lorun_kernels import adapted_weights
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import made, result, shared, small_network


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_record_makes_the_same_of_a_network_as_its_code_builds_it(name):
    source = shared(name, form="factored")
    record = json.loads(json.dumps(recorded(source)))
    target = made(name)
    share_as_recorded(target, record)
    assert list(target.state_dict()) == list(source.state_dict())
    for weight, other in zip(adapted_weights(target).values(), adapted_weights(source).values(), strict=True):
        assert weight.adapter == other.adapter
    assert torch.equal(result(target, name), result(source, name))


def test_only_networks_that_were_shared_have_a_record():
    assert recorded(small_network()) is None and sharing_of(small_network()) == ()
    twice = small_network(4)
    lorun.share_stages(twice, ["stages.0", "stages.1"])
    lorun.share_stages(twice, ["stages.2", "stages.3"])
    with pytest.raises(ValueError, match="shared in one call"):
        recorded(twice)


def test_records_of_other_networks_and_damaged_ones_are_refused():
    record = recorded(lorun.share_stages(small_network(), "stages"))
    damaged = [
        {},
        record | {"stages": ["stages.0", "nowhere"]},
        record | {"parameters": {"first.weight": "adapter"}},
        record | {"parameters": record["parameters"] | {"step": "melted"}},
        record | {"adapters": {}},
        record | {"adapters": {"stages.0.first.weight": {"form": "low", "rank": 1}}},
    ]
    for bad in damaged:
        model = small_network()
        with pytest.raises(ValueError, match="record:|stages:"):
            share_as_recorded(model, bad)
        assert not adapted_weights(model)
