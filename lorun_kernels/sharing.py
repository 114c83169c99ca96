"""One Parameter in several modules: knowing when it has fallen apart, and making it one again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

ATTRIBUTE = "_shared_parameters"


class SharedParameter:
    """What modules that share a Parameter hold beside it, so that each can tell whether it still is that one.

    It follows a deepcopy or a pickle together with the modules.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        # The Parameter that `parameter` has just taken the place of, in some of the modules.
        self.before: nn.Parameter | None = None


def share_parameter(owners: Iterable[tuple[nn.Module, str]], parameter: nn.Parameter) -> None:
    """Let the named parameter of every owner be this one, from now on and after `retie`."""
    shared = SharedParameter(parameter)
    for module, name in owners:
        module._parameters[name] = parameter
        if isinstance(module, nn.RNNBase):
            # Its list of weights follows what is set by name.
            setattr(module, name, parameter)
        module.__dict__.setdefault(ATTRIBUTE, {})[name] = shared


def shared_with(module: nn.Module, name: str) -> SharedParameter | None:
    """What the named parameter is shared through, if it is."""
    return module.__dict__.get(ATTRIBUTE, {}).get(name)


def leave(module: nn.Module, name: str) -> None:
    """The named parameter is the module's own from now on."""
    module.__dict__.get(ATTRIBUTE, {}).pop(name, None)


def share_with(module: nn.Module, name: str, other: nn.Module, other_name: str) -> None:
    """Let a parameter of `module` be that of `other`, which is shared from now on."""
    shared = shared_with(other, other_name)
    parameter = other._parameters[other_name]
    assert parameter is not None
    if shared is None or shared.parameter is not parameter:
        share_parameter([(other, other_name)], parameter)
        shared = shared_with(other, other_name)
    module._parameters[name] = parameter
    module.__dict__.setdefault(ATTRIBUTE, {})[name] = shared


def check_shared(module: nn.Module, name: str) -> None:
    """Raise a RuntimeError if the named parameter should be shared and is no longer."""
    shared = shared_with(module, name)
    if shared is not None and module._parameters[name] is not shared.parameter:
        raise RuntimeError(
            f"{name}: this layer's base weight is no longer the one that its stages share: loading with "
            "assign=True, to_empty() or a change of device gave it one of its own; call "
            "lorun_kernels.retie(model), which makes them one again"
        )


def follow(module: nn.Module, name: str, before: nn.Parameter) -> None:
    """After a move that gives each module a Parameter of its own, let all follow the first that moved."""
    shared, moved = shared_with(module, name), module._parameters[name]
    if shared is None or moved is None or moved is before:
        return
    if shared.parameter is before:
        shared.parameter, shared.before = moved, before
    elif shared.before is before:
        module._parameters[name] = shared.parameter


def shared_groups(model: nn.Module) -> dict[SharedParameter, list[tuple[str, nn.Module, str]]]:
    """Every shared parameter in a model, with the full names, modules and names that it has."""
    groups: dict[SharedParameter, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, shared in module.__dict__.get(ATTRIBUTE, {}).items():
            groups.setdefault(shared, []).append((f"{path}.{name}" if path else name, module, name))
    return groups


@torch.no_grad()
def retie(model: nn.Module, moved: bool = False) -> nn.Module:
    """Make every base weight that stages share one Parameter again, and return the model.

    ``load_state_dict(assign=True)``, ``to_empty`` and some changes of device give each module that shares a
    Parameter one of its own. Call this afterwards; where nothing has come apart it changes nothing.

    Args:
        moved: whether what came apart was moved by one call of `to` or `to_empty`: it then holds the same
            values, or none yet, and is not compared.

    Raises:
        ValueError: stages that now hold different values for one base weight, as a checkpoint of K separate
            denoisers would give them; `lorun.compress` makes a base and adapters of such a network.
    """
    for shared, owners in shared_groups(model).items():
        distinct = list(_distinct(module._parameters[name] for _, module, name in owners))
        # What to_empty() has made of a meta tensor holds no values yet.
        compared = [] if moved or shared.parameter.is_meta else distinct[1:]
        for other in compared:
            if not _equal(distinct[0], other):
                raise ValueError(
                    f"{owners[0][0]}: the stages hold different values for this weight, which they must "
                    "share; make a base and adapters of separate stages with lorun.compress(model)"
                )
        shared.parameter, shared.before = distinct[0], None
        for _, module, name in owners:
            module._parameters[name] = distinct[0]
    return model


def _distinct(parameters: Iterable[nn.Parameter | None]) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for parameter in parameters:
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter


def _equal(first: nn.Parameter, second: nn.Parameter) -> bool:
    if first.is_meta:
        return first.shape == second.shape
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second.to(first))
