"""input_moments against patches that are taken one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorun.adapters.moments import input_moments
from lorun_kernels import ConvAct

CONVOLUTIONS = [
    {"padding": 1},
    {"stride": 2, "padding": (0, 1)},
    {"dilation": (2, 1), "padding": 2, "padding_mode": "reflect"},
    {"groups": 2, "padding": "same", "padding_mode": "circular"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolutions_moment_gives_its_outputs_mean_square(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, (3, 2), bias=False, **options)
    images = torch.randn(3, 4, 9, 8)
    moment = input_moments(nn.Sequential(conv), {"stage": nn.Sequential(conv)}, [(images,)])["stage.0.weight"]
    if conv.groups == 1:
        rows = conv.weight.flatten(1)
        torch.testing.assert_close((rows @ moment @ rows.T).diagonal(), conv(images).square().mean((0, 2, 3)))
    else:
        halves = [
            input_moments(plain, {"s": plain}, [(part,)])["s.0.weight"]
            for part, weight in zip(images.chunk(2, 1), conv.weight.chunk(2), strict=True)
            for plain in [nn.Sequential(nn.Conv2d(2, 3, (3, 2), **(options | {"groups": 1})))]
        ]
        torch.testing.assert_close(moment, sum(halves) / 2)


def test_linear_layers_two_inputs_and_several_calls():
    torch.manual_seed(0)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.join, self.linear = ConvAct(5, 4, 1), nn.Linear(4, 3, bias=False)

        def forward(self, x, skip):
            return self.linear(self.join(x, skip).flatten(2).transpose(1, 2))

    stage = Stage().train()
    calls = [(torch.randn(1, 2, 3, 5), torch.randn(1, 3, 3, 5)) for _ in range(4)]
    moments = input_moments(stage, {"s": stage}, calls)
    both = torch.cat([torch.cat(call, 1) for call in calls]).permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(moments["s.join.weight"], both.T @ both / len(both))
    tokens = torch.cat([stage.join(*call) for call in calls]).flatten(2).transpose(1, 2).reshape(-1, 4)
    torch.testing.assert_close(moments["s.linear.weight"], tokens.T @ tokens / len(tokens))
    assert stage.training and not stage.join._forward_pre_hooks
    assert not moments["s.join.weight"].requires_grad


def test_layers_with_a_forward_of_their_own_are_left_out():
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    stage = nn.Sequential(Own(2, 2, 3), nn.Conv2d(2, 2, 3))
    assert list(input_moments(stage, {"s": stage}, [(torch.randn(2, 7, 7),)])) == ["s.1.weight"]
