"""What the parameters of a network with a shared base are: base, adapters, each stage's own, and more."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lorun.adapters.plan import ADAPTER, COMMON, FULL, Decision
from lorun.adapters.record import sharing_of
from lorun_kernels import adapted_weights, shared_groups, unwrapped


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One parameter of a stage: what it became, its ranks in all stages, and what compression kept of it."""

    decision: Decision
    ranks: tuple[int, ...]
    kept: tuple[float, ...]

    def __str__(self) -> str:
        d = self.decision
        ranks = f"rank {_range([str(rank) for rank in self.ranks])}" if self.ranks else ""
        kept = f"keeps {_range([f'{share:.1%}' for share in self.kept])}" if self.kept else ""
        said = ", ".join(part for part in (ranks, kept, d.why) if part)
        # Where ranks were allocated, all stages may keep a weight whole.
        kind = FULL if d.kind == ADAPTER and not self.ranks else d.kind
        return f"{d.name:<40} {'x'.join(map(str, d.shape)) or '1':<16} {kind:<12} {said}".rstrip()


@dataclasses.dataclass(frozen=True)
class StageReport:
    """The parameters of a network whose stages share a base.

    Attributes:
        stages: their names.
        base: shared parameters, each counted once.
        adapters: parameters of all adapters, and of full deltas.
        own: parameters that each stage keeps of its own, over all stages.
        rest: parameters outside of the stages.
        block: what the stages would have if they shared nothing.
        layers: one for each parameter of a stage.
        flops: 2 * multiply-accumulates of a call, if inputs were given.
    """

    stages: tuple[str, ...]
    base: int
    adapters: int
    own: int
    rest: int
    block: int
    layers: tuple[LayerReport, ...]
    flops: int | None = None

    @property
    def in_stages(self) -> int:
        """All parameters of the stages."""
        return self.base + self.adapters + self.own

    @property
    def factor(self) -> float:
        """How many times as many parameters the stages would have if they shared nothing."""
        return self.block / self.in_stages

    @property
    def without_adapter(self) -> tuple[LayerReport, ...]:
        """The parameters that got no adapter; each says why."""
        return tuple(layer for layer in self.layers if layer.decision.kind not in (ADAPTER, FULL))

    def __str__(self) -> str:
        rows = {
            "base, shared": self.base,
            "adapters": self.adapters,
            "each stage's own": self.own,
            "outside of the stages": self.rest,
            "all": self.in_stages + self.rest,
        }
        lines = [
            f"{len(self.stages)} stages: {', '.join(self.stages)}",
            f"{'parameters':<28}{'count':>12}{'M':>9}",
        ]
        lines += [f"{name:<28}{count:>12,}{count / 1e6:>9.3f}" for name, count in rows.items()]
        lines.append(
            f"the stages would have {self.block:,} if they shared nothing, {self.factor:.2f} times as many"
        )
        if self.flops is not None:
            lines.append(f"{self.flops / 1e9:.1f} GFLOP ({self.flops / 2e9:.1f} GMAC) a call")
        return "\n".join([*lines, "", *map(str, self.layers)])


def report_stages(model: nn.Module, inputs: Sequence[Any] | None = None) -> StageReport:
    """Count the parameters of a network that `share_stages` or `compress` made.

    Args:
        inputs: arguments of a call of the model, which is then run once to count its FLOPs.

    Raises:
        ValueError: a network whose stages share nothing through LoRun.
    """
    model = unwrapped(model)
    sharings = sharing_of(model)
    if not sharings:
        raise ValueError(
            "model: expected an UnfoldingNetwork, or a network that lorun.share_stages or lorun.compress made"
        )
    weights = adapted_weights(model)
    adapters = {id(t): t.numel() for weight in weights.values() for t in weight.tensors}
    shared = {id(s.parameter): s.parameter.numel() for s in shared_groups(model)}
    stages = tuple(name for sharing in sharings for name in sharing.stages)
    inside = {id(p): p.numel() for name in stages for p in model.get_submodule(name).parameters()}
    everything = {id(p): p.numel() for p in model.parameters()}
    apart = adapters.keys() | shared.keys()
    layers, block = [], 0
    for sharing in sharings:
        for decision in sharing.decisions:
            names = [f"{stage}.{decision.name}" for stage in sharing.stages]
            ranks = [weights[name].adapter.rank for name in names if name in weights]
            kept = tuple(sharing.kept[name] for name in names if name in sharing.kept)
            layers.append(LayerReport(decision, tuple(r for r in ranks if r is not None), kept))
            block += decision.count * (1 if decision.kind == COMMON else len(names))
    return StageReport(
        stages=stages,
        base=sum(shared.values()),
        adapters=sum(adapters.values()),
        own=sum(count for key, count in inside.items() if key not in apart),
        rest=sum(count for key, count in everything.items() if key not in inside),
        block=block,
        layers=tuple(layers),
        flops=None if inputs is None else count_call(model, inputs),
    )


@torch.no_grad()
def count_call(model: nn.Module, inputs: Sequence[Any]) -> int:
    """FLOPs, 2 * multiply-accumulates, of one call of a model, as torch's counter counts them."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters a network has, and how many of them train, each counted once."""
    parameters = list(unwrapped(model).parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    share = trained / total if total else 0
    print(f"trainable parameters: {trained:,} of {total:,} ({share:.2%})")


def _range(values: list[str]) -> str:
    distinct = sorted(set(values), key=lambda value: float(value.rstrip("%")))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"
