"""A trained network of K separate denoisers, as one base and K adapters, without training."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorun.adapters.adapter_set import LayerAdapter
from lorun.adapters.align import ChannelGroup, align_channels
from lorun.adapters.low_rank import allocate_ranks, alternating_base, singular_energies, truncated
from lorun.adapters.moments import input_moments
from lorun.adapters.plan import ADAPTER, COMMON, FULL, OWN, Decision, Rules, decide
from lorun.adapters.share import Sharing, apply_sharing, base_values, listed, parameter_in, parameter_like
from lorun.adapters.stages import Stages, check_alike, find_stages
from lorun_kernels import FORMS, Adapter, adapted_weights, factor_shapes, groups_of

BASES = ("mean", "alternating")
# Rounds of the alternating base, whose error falls in each.
ROUNDS = 10

Weights = dict[tuple[str, str], LayerAdapter]


@torch.no_grad()
def compress(
    model: nn.Module,
    stages: Stages = None,
    *,
    gamma: float = 10,
    parameters: int | None = None,
    energy: float | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    form: str = "reshape",
    base: str = "mean",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    own: Sequence[str] | None = None,
    tied: Sequence[str] | None = None,
    align: Sequence[ChannelGroup] | None = None,
    inputs: Iterable[Sequence[Any]] | None = None,
) -> nn.Module:
    """Turn a trained network with K separate denoisers into one base and K adapters, in place.

    The base of a weight is the mean of the stages; the adapter of a stage is the truncated singular value
    decomposition of what the stage adds to it. Nothing is trained: how much that costs depends on how alike
    the stages are, and a short training of the adapters afterwards returns most of it (docs/adapters.md).
    `lorun.report(model)` lists rank and energy kept for every layer and stage.

    Args:
        model: the network; it is changed, and returned. What becomes of each parameter, `stages`, `gamma`,
            `rank_pattern`, `form`, `include`, `exclude`, `own` and `tied` are those of `lorun.share_stages`;
            a gamma of 100 keeps everything.
        parameters: let all stages together have at most this many parameters, base included, and spend them
            on the factors of those layers and stages where they keep most energy (squared singular values),
            in place of one rank per layer by gamma. Every layer gets rank 1 at least.
        energy: reach this share of the energy, in (0, 1], with as few parameters as possible.
        base: "mean"; or "alternating", the base that fits best together with the adapters: the mean of what
            the adapters leave, in turn with new adapters, ten times.
        align: groups of hidden channels that the stages may have in different orders; they are brought into
            the order of the first stage before (`lorun.adapters.align`). For stages that were initialised
            independently.
        inputs: a few calls' arguments, a tuple for each: adapters then minimise the error of each layer's
            output on these inputs rather than of its weight, for nn.Conv2d and nn.Linear.

    Raises:
        ValueError: as `share_stages`; both of parameters and energy, or fewer parameters than rank 1 needs;
            weights with NaN or Inf.
    """
    if form not in FORMS or base not in BASES:
        raise ValueError(f"form, base: expected one of {FORMS} and one of {BASES}, got {form!r} and {base!r}")
    found = find_stages(model, stages)
    check_alike(found)
    _check_finite(found)
    if parameters is not None and energy is not None:
        raise ValueError(f"parameters, energy: expected one of them, got {parameters} and {energy}")
    rules = Rules(gamma, None, rank_pattern, form, *map(listed, (include, exclude, own, tied)))
    modules = list(found.values())
    decisions = decide(modules, rules)
    if align is not None:
        align_channels(modules, align)
    moments = {} if inputs is None else input_moments(model, found, inputs)
    bases = base_values(modules, decisions, "mean")
    if gamma == 100 and not rank_pattern:
        decisions = [_whole(decision) for decision in decisions]
    adapted = [d for d in decisions if d.kind in (ADAPTER, FULL)]
    if parameters is not None or energy is not None:
        adapted = [_low_rank(decision, form) for decision in adapted]
    budget = None if parameters is None else parameters - _beside_factors(decisions, len(found))
    ranks = _ranks(found, adapted, bases, form, moments, budget, energy)
    if base == "alternating":
        _alternate(found, adapted, bases, form, ranks)
    made = {
        (stage, d.name): _fitted(found[stage], stage, d, bases[d.name], form, ranks, moments)
        for stage in found
        for d in adapted
    }
    kept = {
        f"{stage}.{d.name}": _kept(made[stage, d.name], module, d, bases)
        for stage, module in found.items()
        for d in adapted
    }
    adapters = [{d.name: _adapter(made[stage, d.name]) for d in adapted} for stage in found]
    shared = {d.name: bases[d.name] for d in decisions if d.kind not in (OWN, COMMON)}
    by_name = {d.name: d for d in adapted}
    sharing = Sharing(tuple(found), tuple(by_name.get(d.name, d) for d in decisions), kept)
    apply_sharing(model, sharing, shared, adapters, freeze=True)
    _fill(model, made)
    return model


def _whole(decision: Decision) -> Decision:
    """What keeps everything, where Eq. 12 at 100 % leaves out what kernels add to the channels' rank."""
    if decision.kind != ADAPTER:
        return decision
    return dataclasses.replace(decision, kind=FULL, rank=None, why="all of it, by gamma 100")


def _low_rank(decision: Decision, form: str) -> Decision:
    """Where ranks are allocated, factors are worth it up to the weight's own size."""
    return dataclasses.replace(decision, kind=ADAPTER, rank=1, why="") if form != "full" else decision


def _beside_factors(decisions: Sequence[Decision], stages: int) -> int:
    """The parameters of all stages that are not adapters: the base, and what each stage keeps."""
    return sum(d.count * (stages if d.kind == OWN else 1) for d in decisions)


def _groups(stages: Mapping[str, nn.Module], decision: Decision) -> int:
    path, _, name = decision.name.rpartition(".")
    return groups_of(next(iter(stages.values())).get_submodule(path), name)


def _check_finite(stages: Mapping[str, nn.Module]) -> None:
    for stage, module in stages.items():
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"{stage}.{name}: holds NaN or Inf; compress a network before it diverged")


def _residual(stage: nn.Module, decision: Decision, base: Tensor) -> Tensor:
    return parameter_in(stage, decision.name) - base


def _ranks(
    stages: Mapping[str, nn.Module],
    decisions: Sequence[Decision],
    bases: Mapping[str, Tensor],
    form: str,
    moments: Mapping[str, Tensor],
    budget: int | None,
    energy: float | None,
) -> dict[tuple[str, str], int | None]:
    """The rank of every weight of every stage; None for a full delta."""
    if budget is None and energy is None:
        return {(stage, d.name): d.rank for stage in stages for d in decisions}
    energies, costs, keys = {}, {}, {}
    for stage, module in stages.items():
        for d in decisions:
            name, groups = f"{stage}.{d.name}", _groups(stages, d)
            residual = _residual(module, d, bases[d.name])
            energies[name] = singular_energies(residual, form, groups, moments.get(name))
            costs[name] = sum(math.prod(shape) for shape in factor_shapes(d.shape, form, 1, groups))
            keys[name] = (stage, d.name)
    ranks = allocate_ranks(energies, costs, parameters=budget, energy=energy, least=1)
    whole = {name: math.prod(d.shape) for name, (_, own) in keys.items() for d in decisions if d.name == own}
    return {keys[name]: None if rank * costs[name] >= whole[name] else rank for name, rank in ranks.items()}


def _alternate(
    stages: Mapping[str, nn.Module],
    decisions: Sequence[Decision],
    bases: dict[str, nn.Parameter],
    form: str,
    ranks: Mapping[tuple[str, str], int | None],
) -> None:
    for decision in decisions:
        own = [ranks[stage, decision.name] for stage in stages]
        low = [rank for rank in own if rank is not None]
        if len(low) == len(own):
            weights = [parameter_in(stage, decision.name) for stage in stages.values()]
            best = alternating_base(weights, form, low, _groups(stages, decision), iterations=ROUNDS)
            bases[decision.name] = parameter_like(best, bases[decision.name])


def _fitted(
    stage: nn.Module,
    stage_name: str,
    decision: Decision,
    base: Tensor,
    form: str,
    ranks: Mapping[tuple[str, str], int | None],
    moments: Mapping[str, Tensor],
) -> LayerAdapter:
    rank = ranks[stage_name, decision.name]
    residual = _residual(stage, decision, base)
    groups = _groups({stage_name: stage}, decision)
    if rank is None:
        return truncated(residual, "full", 1, groups)
    return truncated(residual, form, rank, groups, moments.get(f"{stage_name}.{decision.name}"))


def _kept(adapter: LayerAdapter, stage: nn.Module, decision: Decision, bases: Mapping[str, Tensor]) -> float:
    """The share of a residual's energy that its adapter holds."""
    residual = _residual(stage, decision, bases[decision.name]).double()
    whole = residual.square().sum().item()
    lost = (residual - adapter.added().double()).square().sum().item()
    return 1.0 if whole == 0 else 1 - lost / whole


def _adapter(made: LayerAdapter) -> Adapter:
    rank = None
    if made.up is not None:
        rank = _rank_of(made)
    return Adapter(made.form, rank)


def _rank_of(made: LayerAdapter) -> int:
    assert made.up is not None
    one, _ = factor_shapes(made.shape, made.form, 1, made.groups)
    return made.up.shape[1] // one[1]


def _fill(model: nn.Module, made: Weights) -> None:
    weights = adapted_weights(model)
    for (stage, name), adapter in made.items():
        # A weight that another module of the stage holds too is listed under both names.
        weight = weights[f"{stage}.{name}"]
        for tensor, value in zip(weight.tensors, adapter.tensors, strict=True):
            tensor.copy_(value)
