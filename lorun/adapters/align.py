"""Permutation of hidden channels, so that stages trained apart can share a base."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from lorun.denoisers import UNet

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Use:
    """An axis of a parameter that hidden channels index, from `offset` on.

    Attributes:
        parameter: its name inside a stage, such as "encoder1.entry.weight"; a buffer may be named as well.
        axis: at least 0.
        offset: where the channels begin on the axis, as the second input of a concatenation does.
    """

    parameter: str
    axis: int
    offset: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Hidden channels that may change places: `size` of them, and everything that they index.

    The function of a stage stays the same only if `uses` is complete. Shapes cannot show that one is missing.
    """

    size: int
    uses: tuple[Use, ...]


@torch.no_grad()
def align_channels(
    stages: Sequence[nn.Module], groups: Sequence[ChannelGroup], iterations: int = 20, seed: int = 0
) -> None:
    """Permute, in place, the hidden channels of each stage after the first towards the stages before it.

    Each stage computes the same function as before, but for the order of sums. This is weight matching
    (Ainsworth et al. 2022, "Git Re-Basin", arXiv 2209.04836, Algorithm 1): one group after the other, in
    random order, gets the permutation with the largest inner product between its parameters and the target's,
    given the permutations of the other groups. The distance to the target never increases; the end may be a
    local optimum. The target is the mean of the stages that are aligned already: with the first stage as the
    target of all, they ended as far from their mean or farther.

    Args:
        stages: modules of one architecture that share no parameters with each other.
        groups: of their hidden channels, such as `unet_channel_groups` gives.
        iterations: the most sweeps over all groups for a stage, at least 0; it ends when one changes nothing.
        seed: of the order of groups.

    Raises:
        ValueError: a group that does not fit the parameters, groups that overlap, stages of different shapes
            or with common parameters. No stage is changed then.
    """
    if iterations < 0:
        raise ValueError(f"iterations: expected at least 0, got {iterations}")
    own = [stage.state_dict(keep_vars=True) for stage in stages]
    names = sorted({use.parameter for group in groups for use in group.uses})
    for index, tensors in enumerate(own):
        _check_groups(index, tensors, groups)
    _check_stages(own, names)
    generator = torch.Generator().manual_seed(seed)
    total: Parameters = {}
    for count, tensors in enumerate(own):
        values = {name: tensors[name].double() for name in names}
        if count:
            target = {name: total[name] / count for name in names}
            _match(values, target, groups, iterations, generator)
            for name in names:
                tensors[name].copy_(values[name])
        total = {name: values[name] + total.get(name, 0) for name in names}


def unet_channel_groups(denoiser: UNet) -> list[ChannelGroup]:
    """The hidden channels of a U-Net, from its input to its output: two groups for each of its five levels.

    `entry` and `second` of a level have common output channels, because of the residual. The input's channels
    and those of the image at the end keep their places.
    """
    width = denoiser.width
    levels = {
        "encoder1": (width, [Use("encoder2.entry.weight", 1), Use("decoder1.entry.weight", 1, 2 * width)]),
        "encoder2": (2 * width, [Use("bottom.entry.weight", 1), Use("decoder2.entry.weight", 1, 4 * width)]),
        "bottom": (4 * width, [Use("decoder2.entry.weight", 1)]),
        "decoder2": (2 * width, [Use("decoder1.entry.weight", 1)]),
        "decoder1": (width, [Use("last.weight", 1)]),
    }
    groups = []
    for name, (size, consumers) in levels.items():
        output = [*_outputs(f"{name}.entry"), Use(f"{name}.first.weight", 1), *_outputs(f"{name}.second")]
        groups.append(ChannelGroup(size, (*output, *consumers)))
        groups.append(ChannelGroup(size, (*_outputs(f"{name}.first"), Use(f"{name}.second.weight", 1))))
    return groups


def _outputs(layer: str) -> tuple[Use, Use]:
    return Use(f"{layer}.weight", 0), Use(f"{layer}.bias", 0)


def _match(
    stage: Parameters,
    target: Parameters,
    groups: Sequence[ChannelGroup],
    iterations: int,
    generator: torch.Generator,
) -> None:
    """Permute the channels of `stage` until no single group can come closer to `target`."""
    for _ in range(iterations):
        order = torch.randperm(len(groups), generator=generator).tolist()
        # A list, since every group has its turn also after one that moved.
        if not any([_match_group(stage, target, groups[index]) for index in order]):
            return


def _match_group(stage: Parameters, target: Parameters, group: ChannelGroup) -> bool:
    """Permute one group of `stage` by the best assignment to `target`; whether that brought it closer."""
    from scipy.optimize import linear_sum_assignment

    scores = sum(_rows(target, use, group.size) @ _rows(stage, use, group.size).mT for use in group.uses)
    assert isinstance(scores, Tensor)
    order = torch.from_numpy(linear_sum_assignment(scores.cpu().numpy(), maximize=True)[1]).to(scores.device)
    moved = {use.parameter: stage[use.parameter].clone() for use in group.uses}
    for use in group.uses:
        part = moved[use.parameter].narrow(use.axis, use.offset, group.size)
        part.copy_(part.index_select(use.axis, order))
    # Compared in full: the scores are not exact if both axes of one parameter are of this group.
    gains = [target[name] * (moved[name] - stage[name]) for name in moved]
    gain, magnitude = sum(float(g.sum()) for g in gains), sum(float(g.abs().sum()) for g in gains)
    if gain <= 1e-12 * magnitude:
        return False
    stage.update(moved)
    return True


def _rows(parameters: Parameters, use: Use, size: int) -> Tensor:
    """(size, -1): what belongs to each channel."""
    return parameters[use.parameter].narrow(use.axis, use.offset, size).movedim(use.axis, 0).reshape(size, -1)


def _check_groups(stage: int, tensors: Parameters, groups: Sequence[ChannelGroup]) -> None:
    """Refuse groups that a stage's parameters do not have, and channels that are in two places of them."""
    taken: dict[tuple[str, int], set[int]] = {}
    for index, group in enumerate(groups):
        if group.size < 1:
            raise ValueError(f"groups[{index}]: expected a size of at least 1, got {group.size}")
        for use in group.uses:
            problem = _problem(tensors, use, group.size)
            channels = set(range(use.offset, use.offset + group.size))
            if problem is None and taken.setdefault((use.parameter, use.axis), set()) & channels:
                problem = "other channels than those of a use before it"
            if problem is not None:
                last = use.offset + group.size - 1
                raise ValueError(
                    f"groups[{index}]: channels {use.offset} to {last} of axis {use.axis} "
                    f"of {use.parameter!r}: expected {problem}, in stage {stage}; correct the use or the size"
                )
            taken[use.parameter, use.axis] |= channels


def _problem(tensors: Parameters, use: Use, size: int) -> str | None:
    """What a use expects of a stage and does not find there."""
    if use.parameter not in tensors:
        return f"a parameter of the stage, such as {', '.join(map(repr, list(tensors)[:3]))}"
    shape = tuple(tensors[use.parameter].shape)
    if not 0 <= use.axis < len(shape):
        return f"an axis of its shape {shape}, counted from 0"
    if use.offset < 0 or use.offset + size > shape[use.axis]:
        return f"channels inside of its shape {shape}"
    return None


def _check_stages(own: Sequence[Parameters], names: Sequence[str]) -> None:
    """Refuse stages that differ in shape, and those where permuting one would change another."""
    for index, name in product(range(1, len(own)), names):
        expected, shape = tuple(own[0][name].shape), tuple(own[index][name].shape)
        if shape != expected:
            raise ValueError(
                f"stages[{index}]: expected {name!r} of {expected}, as in stages[0], got {shape}"
            )
        earlier = [
            other for other in range(index) if own[other][name].data_ptr() == own[index][name].data_ptr()
        ]
        if earlier:
            raise ValueError(
                f"stages[{index}]: expected parameters of its own, but {name!r} is also that of "
                f"stages[{earlier[0]}]; give one of them a copy"
            )
