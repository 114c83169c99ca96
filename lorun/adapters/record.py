"""What became of a model's stages, as JSON: enough to make the same of the network as its code builds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from lorun.adapters.plan import ADAPTER, COMMON, FULL, OWN, SHARED, Decision, stage_parameters
from lorun.adapters.share import ATTRIBUTE, Sharing, apply_sharing, parameter_in
from lorun.adapters.stages import check_alike, find_stages
from lorun_kernels import Adapter, adapted_weights

KINDS = (ADAPTER, FULL, SHARED, OWN, COMMON)


def sharing_of(model: nn.Module) -> tuple[Sharing, ...]:
    """What `share_stages` and `compress` did to a model, call by call; empty if nothing."""
    return model.__dict__.get(ATTRIBUTE, ())


def recorded(model: nn.Module) -> dict[str, Any] | None:
    """The record of a model's stages; None for a model that was not given a shared base by LoRun.

    Raises:
        ValueError: a model whose stages were shared in several calls, which one record cannot hold.
    """
    sharings = sharing_of(model)
    if not sharings:
        return None
    if len(sharings) > 1:
        raise ValueError("model: expected stages that were shared in one call of share_stages or compress")
    (sharing,) = sharings
    return {
        "stages": list(sharing.stages),
        "parameters": {d.name: d.kind for d in sharing.decisions},
        "adapters": {
            name: dataclasses.asdict(weight.adapter)
            for name, weight in adapted_weights(model).items()
            if name.startswith(tuple(f"{stage}." for stage in sharing.stages))
        },
    }


def share_as_recorded(model: nn.Module, record: Mapping[str, Any], freeze: bool = True) -> None:
    """Give a network that is as its code builds it the shared base and the adapters of a record, in place.

    The base is the first stage's, and the adapters add nothing, until their values are loaded.

    Raises:
        ValueError: a record that is damaged, or of another network.
    """
    try:
        stages, kinds = list(record["stages"]), dict(record["parameters"])
        adapters = {name: Adapter(**values) for name, values in dict(record["adapters"]).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"record: expected stages, parameters and adapters of a saved network: {error}"
        ) from error
    found = find_stages(model, stages)
    check_alike(found)
    first = found[stages[0]]
    names = [name for name, _, _ in stage_parameters(first)]
    if set(names) != set(kinds) or not set(kinds.values()) <= set(KINDS):
        differing = sorted(set(names) ^ set(kinds))
        raise ValueError(
            f"record: is of another network: its stages have {len(kinds)} parameters, these {len(names)}, "
            f"and they differ in {', '.join(differing[:5]) or 'what became of them'}"
        )
    decisions = tuple(
        Decision(name, tuple(parameter_in(first, name).shape), kinds[name], why="as recorded")
        for name in names
    )
    base = {d.name: parameter_in(first, d.name) for d in decisions if d.kind not in (OWN, COMMON)}
    by_stage = [
        {d.name: _of_stage(adapters, f"{stage}.{d.name}") for d in decisions if d.kind in (ADAPTER, FULL)}
        for stage in stages
    ]
    apply_sharing(model, Sharing(tuple(stages), decisions), base, by_stage, freeze)


def _of_stage(adapters: Mapping[str, Adapter], name: str) -> Adapter:
    if name not in adapters:
        raise ValueError(f"record: lacks the adapter of {name}")
    return adapters[name]
