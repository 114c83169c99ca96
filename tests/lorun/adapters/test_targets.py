"""targets_of: the layers of a network as exchange needs them."""

import torch
from torch import nn

import lorun
from lorun.adapters import Target, targets_of


def network() -> nn.Sequential:
    conv = nn.Conv2d(4, 6, (3, 5), groups=2, dilation=(1, 2), padding_mode="reflect", padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Sequential(nn.Linear(5, 7)), nn.ConvTranspose2d(6, 2, 2), conv)


def test_convolutions_and_linear_layers_are_listed_once_with_their_settings():
    assert targets_of(network()) == {
        "0.weight": Target((6, 2, 3, 5), groups=2, dilation=(1, 2), padding_mode="reflect"),
        "2.0.weight": Target((7, 5)),
    }


def test_a_network_with_adapters_has_the_targets_that_it_had_without():
    stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(4, 4)) for _ in range(2)))
    before = targets_of(stages)
    shared = lorun.share_stages(stages, ["0", "1"])
    assert targets_of(shared) == before
    assert targets_of(torch.compile(shared, backend="eager")) == before
