"""Whole networks: LoRun-K, its weight-shared base, one with K denoisers, and one in the field's style."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from benchmarks.cases.tasks import (
    FIELD,
    TOLERANCES,
    Networks,
    candidate_of,
    denoiser_bytes,
    networks_of,
    numbered,
)
from benchmarks.harness.case import OURS, Call, Candidate, Case, Work
from lorun.report import count_flops
from lorun.unfolding import UnfoldingNetwork

COMPILED = "denoisers compiled"


def network(
    device: str,
    task: str,
    size: int,
    stages: int = 9,
    batch: int = 1,
    width: int = 28,
    bands: int | None = None,
    compiled: bool = True,
) -> Case:
    """Restore `batch` images. Block-K is LoRun-K with its adapters merged, so its result is checked too."""
    made = networks_of(task, device, size, batch, stages, width, bands)
    lorun = made.forms[OURS]
    case = Case(
        f"{made.shape}, {stages} stages",
        images=batch,
        work=_work(lorun, made),
        tolerance=TOLERANCES[device],
    )
    for form, net in made.forms.items():
        case.candidates[numbered(form, stages)] = _candidate(form, net, made.y)
    for form in (OURS, FIELD) if compiled else ():
        name = f"{numbered(form, stages)}, {COMPILED}"
        case.candidates[name] = _candidate(form, _compiled(made.forms[form]), made.y)
    for name, call in _parts(lorun, made.y).items():
        case.candidates[name] = Candidate(call, ours=True, unlike=f"a part of {numbered(OURS, stages)}")
    return case


def _candidate(form: str, net: nn.Module, y: Tensor) -> Candidate:
    return candidate_of(form, net, lambda i: net(y))


def _compiled(net: nn.Module) -> nn.Module:
    """A copy with compiled denoisers; all stages share one graph, which takes their weights as inputs."""
    net = copy.deepcopy(net)
    for denoiser in net.denoisers:
        denoiser.compile(fullgraph=True)
    return net


def _parts(lorun: UnfoldingNetwork, y: Tensor) -> dict[str, Call]:
    """Everything but the denoisers."""
    x = lorun.physics.start(y).detach()
    step = getattr(lorun.physics, f"{lorun.algorithm}_step")
    return {
        "data steps alone": lambda i: [step(x, y, scale) for scale in lorun.step],
        "start alone": lambda i: lorun.physics.start(y),
    }


def _work(lorun: UnfoldingNetwork, made: Networks) -> Work:
    """Operations of convolutions and matrix products; bytes of measurements, weights and images."""
    batch, _, *size = made.x.shape
    return Work(
        bytes=made.x.nbytes + made.y.nbytes + denoiser_bytes(lorun),
        flops=batch * count_flops(lorun, tuple(size)),
    )
