"""The stages of anybody's unfolding network: which modules they are, and whether they are alike."""

import re
import warnings
from collections.abc import Sequence

from torch import nn

# The names of stages, or how to find them; None finds them.
Stages = str | Sequence[str] | nn.ModuleList | None

# How many differences between two stages an error lists.
MOST_DIFFERENCES = 12


def find_stages(model: nn.Module, stages: Stages) -> dict[str, nn.Module]:
    """The stages of a model by their names, in order.

    Args:
        stages: the name of a container of stages (an nn.ModuleList, nn.Sequential or nn.ModuleDict), such as
            "body.stages"; or a list of the stages' names; or a regular expression that matches the whole name
            of each; or the container itself; or None: the largest group of alike modules that are in one
            container, or have names that differ in a number only. A warning then says which these are.

    Raises:
        ValueError: no such modules, fewer than two, or one inside another.
    """
    if isinstance(stages, nn.Module):
        stages = _name_of(model, stages)
    if stages is None:
        found = _guess(model)
    elif isinstance(stages, str):
        found = _by_name(model, stages)
    else:
        found = [_known(model, name) for name in stages]
    if len(set(found)) < 2 or len(set(found)) < len(found):
        raise ValueError(f"stages: expected two or more different stages, got {found}")
    for name in found:
        inside = [other for other in found if other.startswith(f"{name}.")]
        if inside:
            raise ValueError(f"stages: {inside[0]!r} lies inside {name!r}; name modules beside each other")
    return {name: model.get_submodule(name) for name in found}


def _name_of(model: nn.Module, container: nn.Module) -> str:
    for name, module in model.named_modules():
        if module is container:
            return name
    raise ValueError("stages: this container is no part of the model; give its name, such as 'stages'")


def _known(model: nn.Module, name: str) -> str:
    if not isinstance(name, str) or name not in _names(model):
        close = ", ".join(repr(other) for other in _names(model)[:8])
        raise ValueError(f"stages: the model has no module {name!r}; its modules are {close}, ...")
    return name


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name]


def _by_name(model: nn.Module, stages: str) -> list[str]:
    if stages in _names(model):
        container = model.get_submodule(stages)
        if not isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            raise ValueError(
                f"stages: {stages!r} is a {type(container).__name__}, which holds no stages; name an "
                "nn.ModuleList, or list the names of the stages"
            )
        return [f"{stages}.{child}" for child in container._modules]
    try:
        pattern = re.compile(stages)
    except re.error as error:
        raise ValueError(
            f"stages: {stages!r} is neither a module nor a regular expression: {error}"
        ) from None
    found = [name for name in _names(model) if pattern.fullmatch(name)]
    if not found:
        close = ", ".join(repr(name) for name in _names(model)[:8])
        raise ValueError(f"stages: nothing in the model is called {stages!r}; its modules are {close}, ...")
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts stage2 before stage10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _guess(model: nn.Module) -> list[str]:
    families: dict[str, list[str]] = {}
    for name in _names(model):
        family, number = re.subn(r"\d+$", "#", name)
        if number:
            families.setdefault(family, []).append(name)
    sizes = {
        family: sum(p.numel() for name in names for p in model.get_submodule(name).parameters())
        for family, names in families.items()
        if len(names) > 1 and _all_alike(model, names)
    }
    if not any(sizes.values()):
        raise ValueError(
            "stages: found no two alike modules with numbered names; name them, such as stages='denoisers'"
        )
    found = sorted(families[max(sizes, key=lambda family: sizes[family])], key=_natural)
    warnings.warn(f"stages: taken to be {', '.join(found)}; name them to be sure", stacklevel=4)
    return found


def _all_alike(model: nn.Module, names: Sequence[str]) -> bool:
    first, *others = (model.get_submodule(name) for name in names)
    return all(not differences(first, other) for other in others)


def check_alike(stages: dict[str, nn.Module]) -> None:
    """Raise unless all stages have the same layers, of the same shapes and settings.

    Raises:
        ValueError: with what differs, layer by layer.
    """
    (first_name, first), *others = stages.items()
    for name, stage in others:
        found = differences(first, stage)
        if found:
            more = [f"and {len(found) - MOST_DIFFERENCES} more"] if len(found) > MOST_DIFFERENCES else []
            listed = "\n  ".join(found[:MOST_DIFFERENCES] + more)
            raise ValueError(
                f"stages: {name} is not like {first_name}, so they cannot share a base; leave it out of "
                f"`stages`. What differs:\n  {listed}"
            )


def differences(first: nn.Module, other: nn.Module) -> list[str]:
    """What two modules have that is not alike, a line for each layer."""
    if first is other:
        return []
    ours, theirs = _layers(first), _layers(other)
    lines = [f"{name or 'the stage'}: missing" for name in ours if name not in theirs]
    lines += [f"{name or 'the stage'}: only there" for name in theirs if name not in ours]
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            lines.append(f"{name or 'the stage'}: {theirs[name]} against {ours[name]}")
    return lines


def _layers(stage: nn.Module) -> dict[str, str]:
    """For each module of a stage, all that must be alike."""
    return {name: _description(module) for name, module in stage.named_modules(remove_duplicate=False)}


def _description(module: nn.Module) -> str:
    tensors = module._parameters | module._buffers
    shapes = ", ".join(
        f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
        for name, t in tensors.items()
        if t is not None
    )
    # What a user's module prints of itself may be its number; torch's modules print their settings.
    settings = module.extra_repr() if type(module).__module__.startswith("torch.") else ""
    return f"{type(module).__name__}({settings}) {shapes}".strip()
