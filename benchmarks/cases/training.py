"""Training steps of whole networks: time, memory kept for backward, peak memory, and all over stages."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases.tasks import BLOCK, FIELD, SHARED, TOLERANCES, candidate_of, networks_of, numbered
from benchmarks.harness.case import OURS, Candidate, Case


def training_step(
    device: str,
    task: str,
    size: int,
    stages: int = 9,
    batch: int = 1,
    width: int = 28,
    bands: int | None = None,
    peak: bool = True,
) -> Case:
    """Forward and backward on `batch` crops. Everything has a gradient except LoRun's frozen base."""
    made = networks_of(task, device, size, batch, stages, width, bands)
    case = Case(
        f"{made.shape}, {stages} stages", images=batch, tolerance=TOLERANCES[device], grad=True, peak=peak
    )
    for form in (OURS, SHARED, BLOCK, FIELD):
        case.candidates[numbered(form, stages)] = _candidate(form, made.forms[form], made.x, made.y)
    return case


def over_stages(device: str, stages: int, **arguments) -> Case:
    """The same, with names that do not depend on the stages, so that a plot joins them by lines."""
    case = training_step(device, stages=stages, **arguments)
    case.candidates = {name.removesuffix(f"-{stages}"): one for name, one in case.candidates.items()}
    case.axis = ("stages", stages)
    return case


def _candidate(form: str, net: nn.Module, x: Tensor, y: Tensor) -> Candidate:
    def forward(i: int) -> Tensor:
        return F.mse_loss(net(y), x)

    def step(i: int) -> list[Tensor]:
        """The loss, and the gradients that networks of every form have."""
        loss = forward(i)
        loss.backward()
        results = [loss, net.raw_step.grad, net.raw_lambda.grad]
        net.zero_grad()  # only at the end, so that the peak includes the gradients
        return results

    return candidate_of(form, net, step, forward)
