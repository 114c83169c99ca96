"""One base, many adapters, for the K stages of anybody's network."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorun.adapters.exchange import scaling_of
from lorun.adapters.guard import guard_loading
from lorun.adapters.plan import ADAPTER, COMMON, FULL, OWN, Decision, Rules, decide, stage_parameters
from lorun.adapters.stages import Stages, check_alike, find_stages
from lorun_kernels import (
    Adapter,
    add_adapter,
    check_form,
    keep_no_merged_weight,
    share_adapter,
    share_parameter,
)

ATTRIBUTE = "_lorun_sharing"

Base = str | Mapping[str, Tensor] | nn.Module


@dataclass(frozen=True)
class Sharing:
    """What became of the parameters of a model's stages: it stays with the model, for `lorun.report`.

    Attributes:
        stages: their names in the model.
        decisions: one for each parameter of a stage.
        kept: after `lorun.compress`, the share of its energy that each adapter keeps of what it stands for.
    """

    stages: tuple[str, ...]
    decisions: tuple[Decision, ...]
    kept: Mapping[str, float] = field(default_factory=dict)


def share_stages(
    model: nn.Module,
    stages: Stages = None,
    *,
    gamma: float = 10,
    rank: int | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    form: str = "reshape",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    own: Sequence[str] | None = None,
    tied: Sequence[str] | None = None,
    base: Base = "first",
    freeze: bool = True,
    alpha: float | None = None,
    rslora: bool = False,
    rank_dropout: float = 0.0,
) -> nn.Module:
    """Give K alike stages of any network one base, and each stage an adapter; in place.

    Every weight of two or more dimensions becomes one Parameter that all stages share, frozen, beside which
    each stage has an adapter of its own: in convolutions of every kind, linear layers, attention, recurrent
    cells, Parameters that a module uses by itself, and normalised weights
    (:func:`lorun_kernels.add_adapter`). Beside a base of half precision the adapters are in float32. What is
    small stays each stage's own, with its value, and trains as before: step sizes, biases, norms, every
    vector. Buffers stay each stage's own too. The stages remain the modules that they were, with their
    forward, hooks and names, so that the training script does not change: give its optimiser the parameters
    that require gradients. Until the adapters are trained, every stage computes what it computes with the
    weights of the base.

    `lorun.report(model)` lists what each parameter became, and why.

    Args:
        model: the network; it is changed, and returned.
        stages: where its stages are: the name of a container, a list of names, a regular expression or a
            container itself; None finds and names them (`lorun.adapters.stages.find_stages`). One module
            that stands at several places becomes as many.
        gamma: rank in percent of a layer's channels, in (0, 100] (Eq. 12 of arXiv 2602.18697).
        rank: the rank itself, in place of gamma.
        rank_pattern: ranks by pattern; the first that fits counts, before `rank` and `gamma`.
        form: "reshape" (Eq. 4 of that paper), "factored" or "full". A weight whose factors would be no
            smaller than itself, as in layers of one or a few channels and in depthwise ones, gets an
            additive weight, a full delta.
        include: patterns of the weights that get adapters; None means all. Others are shared as they are.
        exclude: patterns of weights that get none, and are shared as they are.
        own: patterns of parameters that each stage keeps, however large.
        tied: patterns of parameters that the stages share without adapters, however small.
        base: "first" for the weights of the first stage, "mean" for the mean of all, or those of a stage as a
            module or a state dict, such as a trained one.
        freeze: whether shared Parameters stop training.
        alpha, rslora: the adapters are scaled by ``alpha / rank``, or with rslora by ``alpha / sqrt(rank)``
            (arXiv 2312.03732); None scales them by 1.
        rank_dropout: the probability with which each rank is left out of a training step, in [0, 1).

    Patterns are names within a stage, with * and ?; the name of a module stands for all that is inside it.

    Raises:
        ValueError: no such stages, stages that are not alike (with the differences layer by layer), patterns
            that fit nothing, a rank above a layer's, or no weight that would get an adapter.
        TypeError: a weight that can have no adapter.
    """
    check_form(form)
    rules = Rules(
        gamma, rank, rank_pattern, form, listed(include), listed(exclude), listed(own), listed(tied)
    )
    found = find_stages(model, stages)
    check_alike(found)
    decisions = decide(list(_one_each(found).values()), rules)
    values = base_values(list(found.values()), decisions, base)
    _refuse_references(found, decisions)
    shared = {d.name: values[d.name] for d in decisions if d.kind not in (OWN, COMMON)}
    adapters = {
        d.name: Adapter(
            form="full" if d.kind == FULL else form,
            rank=d.rank,
            scaling=1.0 if alpha is None or d.rank is None else scaling_of(d.rank, alpha, rslora),
            rank_dropout=rank_dropout,
        )
        for d in decisions
        if d.kind in (ADAPTER, FULL)
    }
    apply_sharing(model, Sharing(tuple(found), tuple(decisions)), shared, [adapters] * len(found), freeze)
    return model


def apply_sharing(
    model: nn.Module,
    sharing: Sharing,
    base: Mapping[str, nn.Parameter],
    adapters: Sequence[Mapping[str, Adapter]],
    freeze: bool,
) -> None:
    """Let the stages share the Parameters of a base, and add the adapters of each stage, all by name.

    Args:
        base: the shared Parameters, by their names within a stage.
        adapters: for every stage, how each weight is adapted, by its name within the stage.
    """
    for name, copied in _copies_needed(
        {name: model.get_submodule(name) for name in sharing.stages}, base
    ).items():
        model.set_submodule(name, copied)
    stages = [model.get_submodule(name) for name in sharing.stages]
    for name, parameter in base.items():
        path, _, own_name = name.rpartition(".")
        share_parameter([(stage.get_submodule(path), own_name) for stage in stages], parameter)
        if freeze:
            parameter.requires_grad_(False)
    for stage, own in zip(stages, adapters, strict=True):
        _adapt_stage(stage, own)
        keep_no_merged_weight(stage)
    before = model.__dict__.get(ATTRIBUTE, ())
    model.__dict__[ATTRIBUTE] = (*before, sharing)
    if not before:
        guard_loading(model)


def _adapt_stage(stage: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    adapted: dict[int, tuple[nn.Module, str]] = {}
    for full_name, module, name in list(stage_parameters(stage)):
        adapter = adapters.get(full_name)
        if adapter is None:
            continue
        base = id(module._parameters[name])
        add_adapter(
            module,
            name,
            rank=adapter.rank,
            form=adapter.form,
            scaling=adapter.scaling,
            rank_dropout=adapter.rank_dropout,
            dtype=_adapter_dtype(module._parameters[name]),
        )
        # One weight of two modules, such as a dictionary and its transpose, has one adapter.
        first, first_name = adapted.setdefault(base, (module, name))
        share_adapter(module, name, first, first_name)


def _adapter_dtype(base: Tensor | None) -> torch.dtype | None:
    """float32 beside a base of half precision, in which an optimiser's small steps would be lost."""
    half = base is not None and base.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half else None


def listed(patterns: Sequence[str] | None) -> tuple[str, ...] | None:
    """Patterns as a tuple; one pattern may be given as a string."""
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _one_each(stages: Mapping[str, nn.Module]) -> dict[int, nn.Module]:
    """The stages, of which one module that stands at all places counts as different ones."""
    distinct = {id(stage): stage for stage in stages.values()}
    return distinct if len(distinct) > 1 else {0: stages[next(iter(stages))], 1: nn.Module()}


def _copies_needed(stages: Mapping[str, nn.Module], base: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """A copy for every further place at which a stage stands; what the stages will share is not copied."""
    seen: set[int] = set()
    copies = {}
    for name, stage in stages.items():
        if id(stage) in seen:
            shared = (parameter_in(stage, own_name) for own_name in base)
            copies[name] = copy.deepcopy(stage, memo={id(parameter): parameter for parameter in shared})
        seen.add(id(stage))
    return copies


def base_values(
    stages: Sequence[nn.Module], decisions: Sequence[Decision], base: Base
) -> dict[str, nn.Parameter]:
    """The Parameters of the base, by their names within a stage."""
    if isinstance(base, str) and base not in ("first", "mean"):
        raise ValueError(f'base: expected "first", "mean", a module or a state dict, got {base!r}')
    given = base.state_dict() if isinstance(base, nn.Module) else base
    values = {}
    for decision in decisions:
        parameters = [parameter_in(stage, decision.name) for stage in stages]
        if base == "first":
            values[decision.name] = parameters[0]
        elif base == "mean":
            mean = torch.stack([p.detach() for p in parameters]).mean(0)
            values[decision.name] = parameter_like(mean, parameters[0])
        elif decision.kind not in (OWN, COMMON):
            assert isinstance(given, Mapping)
            values[decision.name] = _given(given, decision, parameters[0])
    return values


def parameter_like(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    """A Parameter of these values, in the dtype and layout of another."""
    # In the layout that it had: convolutions in channels_last stay in it.
    return nn.Parameter(torch.empty_like(like).copy_(value).detach(), requires_grad=like.requires_grad)


def _given(given: Mapping[str, Tensor], decision: Decision, like: nn.Parameter) -> nn.Parameter:
    value = given.get(decision.name)
    if value is None or tuple(value.shape) != decision.shape:
        came = "nothing" if value is None else tuple(value.shape)
        raise ValueError(
            f"base: expected {decision.name!r} of shape {decision.shape}, as in a stage, got {came}; give "
            "the weights of one stage under their names within it"
        )
    return parameter_like(value, like)


def parameter_in(stage: nn.Module, name: str) -> nn.Parameter:
    """The Parameter of that full name in a stage."""
    path, _, own_name = name.rpartition(".")
    parameter = stage.get_submodule(path)._parameters[own_name]
    assert parameter is not None
    return parameter


def _refuse_references(stages: Mapping[str, nn.Module], decisions: Sequence[Decision]) -> None:
    """Refuse a module that holds a shared Parameter in a list as well, which would keep the old one."""
    touched = {d.name for d in decisions if d.kind not in (OWN, COMMON)}
    for stage in stages.values():
        parameters = {id(parameter_in(stage, name)): name for name in touched}
        for path, module in stage.named_modules():
            if isinstance(module, nn.RNNBase):
                continue  # its list follows its parameters
            for attribute, value in module.__dict__.items():
                if isinstance(value, list | tuple | dict) and not attribute.startswith("_"):
                    held = value.values() if isinstance(value, dict) else value
                    names = [parameters[id(item)] for item in held if id(item) in parameters]
                    if names:
                        raise ValueError(
                            f"{names[0]}: {path or 'the stage'}.{attribute} holds this Parameter too, and "
                            "would go on using it without an adapter; read it by its name there, or name it "
                            "in `own`"
                        )
