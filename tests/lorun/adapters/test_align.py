"""Alignment of hidden channels: a permuted copy is found again, and no function changes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lorun.adapters.align import ChannelGroup, Use, align_channels, unet_channel_groups
from lorun.denoisers import UNet


def unet(seed: int, width: int = 4, takes_correction: bool = False) -> UNet:
    """A U-Net that does something: its last layer starts at zero."""
    torch.manual_seed(seed)
    net = UNet(2, width, takes_correction)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=max(parameter[0].numel(), 4) ** -0.5)
    return net


@torch.no_grad()
def permute(stage: nn.Module, groups: list[ChannelGroup], seed: int) -> None:
    """Permute the channels of each group at random, along the definition of a group."""
    generator, parameters = torch.Generator().manual_seed(seed), stage.state_dict()
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        for use in group.uses:
            part = parameters[use.parameter].narrow(use.axis, use.offset, group.size)
            part.copy_(part.index_select(use.axis, order))


def vector(stage: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in stage.state_dict().values()])


def to_the_mean(stages) -> float:
    """The sum of squared distances of the stages' parameters to their mean."""
    flat = torch.stack([vector(stage) for stage in stages]).double()
    return (flat - flat.mean(0)).square().sum().item()


def outputs(net: UNet) -> Tensor:
    x = torch.rand(2, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net(x, 0.1, x.flip(-1)) if net.takes_correction else net(x, 0.1)


def assert_equal(stage: nn.Module, expected: nn.Module) -> None:
    for (name, value), other in zip(stage.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("takes_correction", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_copy_is_found_again_exactly(seed, takes_correction):
    net = unet(seed, takes_correction=takes_correction)
    groups = unet_channel_groups(net)
    moved = copy.deepcopy(net)
    permute(moved, groups, seed)
    torch.testing.assert_close(outputs(moved), outputs(net))
    assert to_the_mean([net, moved]) > 1
    align_channels([net, moved], groups)
    assert_equal(moved, net)
    assert torch.equal(outputs(moved), outputs(net))
    assert moved.encoder1.entry.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_groups_hold_every_axis_of_hidden_channels():
    """All axes of channels but the inputs of the first layer and the outputs of the last, once each."""
    net = unet(0)
    covered = {(name, axis): 0 for name, p in net.named_parameters() for axis in range(min(p.ndim, 2))}
    for group in unet_channel_groups(net):
        for use in group.uses:
            covered[use.parameter, use.axis] += group.size
    free = {("encoder1.entry.weight", 1), ("last.weight", 0), ("last.bias", 0)}
    sizes = dict(net.named_parameters())
    expected = {key: 0 if key in free else sizes[key[0]].shape[key[1]] for key in covered}
    assert covered == expected


def test_independent_stages_compute_as_before_and_come_closer_to_their_mean():
    stages = [unet(seed) for seed in range(4)]
    before, distance, first = (
        [outputs(stage) for stage in stages],
        to_the_mean(stages),
        copy.deepcopy(stages[0]),
    )
    align_channels(stages, unet_channel_groups(stages[0]))
    assert to_the_mean(stages) < 0.95 * distance
    for stage, expected in zip(stages, before, strict=True):
        torch.testing.assert_close(outputs(stage), expected, rtol=1e-4, atol=1e-5)
    assert_equal(stages[0], first)


def test_the_mean_of_aligned_stages_is_a_better_target_than_the_first_stage():
    stages, to_first = [unet(seed, 8) for seed in range(6)], [unet(seed, 8) for seed in range(6)]
    groups = unet_channel_groups(stages[0])
    align_channels(stages, groups)
    for stage in to_first[1:]:
        align_channels([to_first[0], stage], groups)
    assert to_the_mean(stages) < 0.99 * to_the_mean(to_first)


def test_noisy_permuted_copies_come_as_close_as_their_noise():
    net = unet(0)
    stages = [copy.deepcopy(net) for _ in range(4)]
    for seed, stage in enumerate(stages):
        torch.manual_seed(seed)
        for parameter in stage.parameters():
            parameter.data.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    noise = to_the_mean(stages)
    for seed, stage in enumerate(stages):
        permute(stage, unet_channel_groups(net), seed)
    assert to_the_mean(stages) > 10 * noise
    align_channels(stages, unet_channel_groups(net))
    assert to_the_mean(stages) == pytest.approx(noise, rel=1e-5)


def test_more_sweeps_come_closer_and_none_change_nothing():
    distances = []
    for iterations in (0, 1, 20):
        stages = [unet(seed) for seed in range(2)]
        align_channels(stages, unet_channel_groups(stages[0]), iterations)
        distances.append(to_the_mean(stages))
    assert distances[0] == to_the_mean([unet(0), unet(1)])
    assert distances[2] < distances[1] < distances[0]


def test_the_seed_decides_the_result():
    def aligned(seed: int) -> Tensor:
        stages = [unet(0), unet(1)]
        align_channels(stages, unet_channel_groups(stages[0]), seed=seed)
        return vector(stages[1])

    assert torch.equal(aligned(0), aligned(0))
    assert any(not torch.equal(aligned(0), aligned(seed)) for seed in range(1, 6))


class Recurrent(nn.Module):
    """h + f(h) on hidden channels: both axes of `middle` are of one group, and `scale` is a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 7), nn.Linear(7, 7), nn.Linear(7, 2)
        self.register_buffer("scale", torch.rand(7))
        nn.init.normal_(self.middle.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.scale * self.first(x)
        return self.last(hidden + self.middle(hidden))


RECURRENT = ChannelGroup(
    7,
    (
        *(Use(name, 0) for name in ("first.weight", "first.bias", "middle.weight", "middle.bias", "scale")),
        Use("middle.weight", 1),
        Use("last.weight", 1),
    ),
)


def test_a_group_on_both_axes_of_a_parameter_and_on_a_buffer_never_moves_away():
    closer = []
    for seed in range(10):
        torch.manual_seed(seed)
        stages, x = [Recurrent(), Recurrent()], torch.randn(5, 3)
        before, expected = to_the_mean(stages), stages[1](x).detach()
        align_channels(stages, [RECURRENT])
        torch.testing.assert_close(stages[1](x).detach(), expected)
        closer.append(before - to_the_mean(stages))
    assert min(closer) >= 0 and sum(gain > 0 for gain in closer) > 5


def net_of(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)))


HIDDEN = (Use("0.weight", 0), Use("0.bias", 0), Use("1.weight", 1))


NO_SUCH = Use("2.weight", 0)


@pytest.mark.parametrize(
    "size, uses, message",
    [
        (4, (*HIDDEN, NO_SUCH), r"groups\[0\]: .* '2.weight': expected a parameter .* as '0.weight'"),
        (4, (Use("0.weight", 2),), r"axis 2 of '0.weight': expected an axis of its shape \(4, 3\)"),
        (4, (Use("0.weight", -1),), "axis -1 of '0.weight': expected an axis"),
        (5, HIDDEN, r"channels 0 to 4 of axis 0 of '0.weight': expected channels inside .* \(4, 3\)"),
        (3, (Use("0.bias", 0, 2),), "channels 2 to 4 of axis 0 of '0.bias': expected channels inside"),
        (3, (Use("0.bias", 0, -1),), "'0.bias': expected channels inside"),
        (4, (*HIDDEN, Use("0.bias", 0)), "'0.bias': expected other channels than those of a use"),
        (0, HIDDEN, r"groups\[0\]: expected a size of at least 1, got 0"),
    ],
)
def test_a_wrong_group_is_refused_by_name_and_nothing_moves(size, uses, message):
    stages = [net_of(3, 4, 2), net_of(3, 4, 2)]
    before = copy.deepcopy(stages[1])
    with pytest.raises(ValueError, match=message):
        align_channels(stages, [ChannelGroup(size, uses)])
    assert_equal(stages[1], before)


def test_groups_that_overlap_are_refused():
    stages = [net_of(3, 4, 2), net_of(3, 4, 2)]
    with pytest.raises(
        ValueError, match=r"groups\[1\]: channels 1 to 2 .* '0.bias': expected other channels"
    ):
        align_channels(
            stages, [ChannelGroup(2, (Use("0.bias", 0),)), ChannelGroup(2, (Use("0.bias", 0, 1),))]
        )


def test_stages_of_other_shapes_and_stages_that_share_are_refused():
    group = ChannelGroup(4, HIDDEN)
    with pytest.raises(ValueError, match=r"stages\[1\]: expected '0.weight' of \(4, 3\), .* got \(4, 5\)"):
        align_channels([net_of(3, 4, 2), net_of(5, 4, 2)], [group])
    stages = [net_of(3, 4, 2), net_of(3, 4, 2), net_of(3, 4, 2)]
    stages[2][1] = stages[1][1]
    with pytest.raises(ValueError, match=r"stages\[2\]: .* '1.weight' is also that of stages\[1\]"):
        align_channels(stages, [group])
    with pytest.raises(ValueError, match="iterations: expected at least 0, got -1"):
        align_channels(stages[:2], [group], iterations=-1)
