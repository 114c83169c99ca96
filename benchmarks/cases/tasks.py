"""The networks of a task that cases compare, and the table by which another task joins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.harness.case import OURS, Call, Candidate
from benchmarks.peers.field_network import (
    BlockConvolutions,
    CroppedRolls,
    FieldNetwork,
    PaddedRolls,
    merged_network,
    random_lorun,
    random_shared,
)
from lorun.networks import network_config
from lorun.physics import CASSI
from lorun.tasks.task import NetworkSettings

SHARED, BLOCK = "Shared", "Block"
OWN_CODE = (SHARED, BLOCK)
"""Peers that are networks of LoRun too."""

# The name says that both spend the same time on the start.
FIELD = "field's style, same start"
PADDED = f"{FIELD}, padded columns"
UNLIKE = {SHARED: "other weights", PADDED: "denoisers see the padded columns"}
# On a GPU cuDNN rounds the factors of float32 convolutions to TF32.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}


@dataclass(frozen=True)
class Blueprint:
    """The networks of a task, and how the field writes its data steps.

    Args:
        config: of LoRun's networks; cases choose stages, width and bands.
        physics: from a network's own physics and the side of an image to the physics that measures it.
        field: the field's data steps, by the name of the candidate.
    """

    config: NetworkSettings
    physics: Callable[[nn.Module, int], nn.Module]
    field: dict[str, type[nn.Module]]


NETWORKS = {
    "cs": Blueprint(
        network_config("cs", ratio=0.25), lambda physics, size: physics, {FIELD: BlockConvolutions}
    ),
    "cassi": Blueprint(
        network_config("cassi", algorithm="hqs"),
        lambda physics, size: CASSI(torch.rand(size, size), physics.bands),
        {FIELD: CroppedRolls, PADDED: PaddedRolls},
    ),
}


@dataclass(frozen=True)
class Networks:
    """One network in several forms, and what it restores.

    Args:
        forms: by name. LoRun's comes first; Shared is its base without adapters, which computes something
            else; Block has the adapters merged in, with as many denoisers as stages.
        x, y: images and their measurements.
    """

    forms: dict[str, nn.Module]
    x: Tensor
    y: Tensor

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.x.shape))


def networks_of(
    task: str,
    device: str,
    size: int,
    batch: int = 1,
    stages: int = 9,
    width: int = 28,
    bands: int | None = None,
) -> Networks:
    """Untrained networks in which no weight is zero; only a spectral task has `bands`."""
    blueprint = NETWORKS[task]
    spectral = {} if bands is None else {"bands": bands}
    shared = random_shared(replace(blueprint.config, stages=stages, width=width, **spectral))
    shared.physics = blueprint.physics(shared.physics, size)
    lorun = random_lorun(shared.to(device))
    forms = {OURS: lorun, SHARED: shared, BLOCK: merged_network(lorun)}
    for name, data in blueprint.field.items():
        forms[name] = FieldNetwork(lorun, data(lorun.physics, lorun.algorithm))
    x = torch.rand(batch, lorun.physics.channels, size, size, device=device)
    with torch.no_grad():
        return Networks(forms, x, lorun.physics.A(x))


def numbered(name: str, stages: int) -> str:
    """The name that tables in papers give to a network, such as LoRun-9."""
    return f"{name}-{stages}" if name in (OURS, *OWN_CODE) else name


def candidate_of(form: str, net: nn.Module, call: Call, forward: Call | None = None) -> Candidate:
    """A candidate that calls a network in one of the forms."""
    return Candidate(
        call,
        ours=form == OURS,
        own_code=form in OWN_CODE,
        unlike=UNLIKE.get(form),
        forward=forward,
        parameters=denoiser_bytes(net),
    )


def denoiser_bytes(network: nn.Module) -> int:
    """Bytes of all denoisers and adapters of a network; what stages share counts once."""
    parts = [part for name, part in network.named_children() if name.startswith("denoiser")]
    tensors = {tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    return sum(tensor.nbytes for tensor in tensors)
