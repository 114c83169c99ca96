"""What becomes of each parameter of a stage when the stages get one base: decided before anything changes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lorun_kernels import (
    Adapted,
    check_adaptable,
    choose_rank,
    factor_shapes,
    groups_of,
    largest_rank,
    weight_channels,
)

ADAPTER = "adapter"
FULL = "full delta"
SHARED = "shared"
OWN = "own"
COMMON = "common"

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class Rules:
    """How `share_stages` was told to choose; its docstring says what each means."""

    gamma: float = 10
    rank: int | None = None
    rank_pattern: Mapping[str, int] | None = None
    form: str = "reshape"
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    own: Sequence[str] | None = None
    tied: Sequence[str] | None = None


@dataclass(frozen=True)
class Decision:
    """What becomes of one parameter, in every stage alike.

    Attributes:
        name: within a stage, such as "conv.weight".
        shape: of the parameter.
        kind: "adapter" (shared, with factors), "full delta" (shared, with an additive weight), "shared" (no
            adapter), "own" (each stage keeps its own, as it is) or "common" (it was one for all before).
        rank: of the factors, if the kind is "adapter".
        why: the reason, if the kind is not "adapter".
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    rank: int | None = None
    why: str = ""

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def decide(stages: Sequence[nn.Module], rules: Rules) -> list[Decision]:
    """A decision for every parameter of a stage, each parameter once.

    Raises:
        ValueError: a pattern that fits nothing, a rank above a layer's, or no adapter at all.
    """
    names = [name for name, _, _ in stage_parameters(stages[0])]
    for argument, patterns in _patterns(rules).items():
        for pattern in patterns:
            if not any(fits(name, [pattern]) for name in names):
                raise ValueError(
                    f"{argument}: {pattern!r} fits no parameter of a stage; they are {', '.join(names)}"
                )
    common = {id(module) for module in _in_all(stages)}
    decisions = [
        _decide(name, module, own_name, id(module) in common, rules)
        for name, module, own_name in stage_parameters(stages[0])
    ]
    ranks = [d.rank for d in decisions if d.rank is not None]
    if rules.rank is not None and not ranks and any(d.kind == FULL for d in decisions):
        raise ValueError(
            f"rank: {rules.rank} is above what any layer of a stage can use; choose a smaller one, or gamma"
        )
    if not any(d.kind in (ADAPTER, FULL) for d in decisions):
        reasons = "\n  ".join(f"{d.name}: {d.why}" for d in decisions)
        raise ValueError(
            "stages: no weight would get an adapter, so the stages could not differ; change include, exclude "
            f"or own, or name other stages:\n  {reasons}"
        )
    return decisions


def stage_parameters(stage: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter of a stage: its full name, its module and its name there.

    A module with several names comes once; a Parameter that two modules hold comes twice.
    """
    for path, module in stage.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}".removeprefix("."), module, name


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern with * and ? fits a parameter's name, or that of a module it lies in."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(candidate, pattern) for candidate in names for pattern in patterns)


def _patterns(rules: Rules) -> dict[str, Iterable[str]]:
    return {
        "include": rules.include or (),
        "exclude": rules.exclude or (),
        "own": rules.own or (),
        "tied": rules.tied or (),
        "rank_pattern": rules.rank_pattern or (),
    }


def _in_all(stages: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that are in every stage, as one object."""
    sets = [{id(module) for module in stage.modules()} for stage in stages]
    everywhere = set.intersection(*sets)
    return [module for module in stages[0].modules() if id(module) in everywhere]


def _decide(name: str, module: nn.Module, own_name: str, common: bool, rules: Rules) -> Decision:
    parameter = module._parameters[own_name]
    assert parameter is not None
    shape = tuple(parameter.shape)
    if isinstance(module, Adapted):
        raise ValueError(
            f"{name}: has an adapter already; share the stages of the network before adapting it"
        )
    if common:
        return Decision(name, shape, COMMON, why="one module for all stages before")
    if fits(name, rules.own or ()):
        return Decision(name, shape, OWN, why="asked for by own")
    if fits(name, rules.tied or ()):
        return Decision(name, shape, SHARED, why="asked for by tied")
    small = _small(module, parameter)
    by_name = parameter.dim() >= 2 and name in (rules.include or ())
    if small and not by_name:
        return Decision(name, shape, OWN, why=small)
    if fits(name, rules.exclude or ()):
        return Decision(name, shape, SHARED, why="excluded")
    if rules.include is not None and not fits(name, rules.include):
        return Decision(name, shape, SHARED, why="not included")
    check_adaptable(module, own_name)
    return _adapter(name, shape, groups_of(module, own_name), rules)


def _small(module: nn.Module, parameter: nn.Parameter) -> str:
    """Why each stage should keep a parameter of its own; "" if it should not."""
    if isinstance(module, NORMS):
        return "a norm"
    if not parameter.is_floating_point():
        return "not floating point"
    if parameter.numel() == max([1, *parameter.shape]):
        return "one number" if parameter.numel() == 1 else "a vector"
    return ""


def _adapter(name: str, shape: tuple[int, ...], groups: int, rules: Rules) -> Decision:
    largest = largest_rank(shape, rules.form, groups)
    wanted = next((rank for p, rank in (rules.rank_pattern or {}).items() if fits(name, [p])), None)
    owner = f"share_stages({name})"
    if wanted is None and rules.rank is not None:
        _check_rank(rules.rank)
        wanted = min(rules.rank, largest)
    rank = choose_rank(owner, *weight_channels(shape, groups), largest, wanted, rules.gamma)
    if rules.form == "full":
        return Decision(name, shape, FULL, why="asked for by form")
    factors = sum(math.prod(factor) for factor in factor_shapes(shape, rules.form, rank, groups))
    if factors >= math.prod(shape):
        return Decision(name, shape, FULL, why=f"factors of rank {rank} would be no smaller than the weight")
    return Decision(name, shape, ADAPTER, rank)


def _check_rank(rank: int) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank: expected an int of at least 1, got {rank!r}")
