"""Step sizes that depend on how an image was measured: on its noise level, say."""

import torch
from torch import Tensor, nn

HIDDEN = 64


class StepPredictor(nn.Module):
    """What conditions add to every stage's step size and lambda, before the softplus that keeps them
    positive.

    Three layers, as the hyper-parameter module of USRNet has (Zhang et al. 2020, Fig. 2). It starts at zero
    and computes in float32, also under autocast, because small differences of a step size matter.

    Args:
        conditions: how many numbers say how an image was measured, at least 1.
        stages: K.
    """

    def __init__(self, conditions: int, stages: int):
        super().__init__()
        self.stages = stages
        self.hidden = nn.Sequential(
            nn.Linear(conditions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.last = nn.Linear(HIDDEN, 2 * stages)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, conditions) -> what is added to the raw step size and to the raw lambda, (K, B) each."""
        with torch.autocast(condition.device.type, enabled=False):
            added = self.last(self.hidden(condition.to(self.last.weight.dtype)))
        step, lam = added.T.unflatten(0, (2, self.stages))
        return step, lam

    @torch.no_grad()
    def copy_stage(self, source: int, start: int, stop: int) -> None:
        """Give the stages from `start` up to `stop` what stage `source` adds."""
        for parameter in (self.last.weight, self.last.bias):
            by_stage = parameter.data.unflatten(0, (2, self.stages))
            by_stage[:, start:stop] = by_stage[:, source : source + 1]
