"""What a network costs: parameters by part, FLOPs, and the saving against K separate denoisers."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lorun.adapters.record import sharing_of
from lorun.stage_report import StageReport, report_stages
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import adapted_weights, unwrapped

MEBI = 2**20

Shape = list[int]


@dataclasses.dataclass(frozen=True)
class Report:
    """Parameter counts of an unfolding network, and its FLOPs at one size."""

    variant: str
    stages: int
    base: int
    adapters: int
    phi: int
    scalars: int
    block_base: int
    """Denoiser parameters that the same network as Block-K would have."""
    size: tuple[int, int]
    flops: int
    """2 * multiply-accumulates of convolutions and matrix products for one image of `size`."""
    without_adapter: tuple[str, ...] = ()
    """In variant "lorun", the parameters of the base that all stages share as they are, such as biases."""

    @property
    def denoisers(self) -> int:
        """Base and adapters, as the paper's tables count them."""
        return self.base + self.adapters

    @property
    def saving(self) -> float:
        """The share of Block-K's denoiser parameters that this network saves."""
        return 1 - self.denoisers / self.block_base

    def __str__(self) -> str:
        rows = {
            "base denoiser(s)": self.base,
            "adapters": self.adapters,
            "denoisers, as papers count": self.denoisers,
            **({"Phi": self.phi} if self.phi else {}),
            "scalars (step, lambda)": self.scalars,
            "all": self.denoisers + self.phi + self.scalars,
        }
        height, width = self.size
        lines = [f"{self.variant}, {self.stages} stages", f"{'parameters':<28}{'count':>12}{'M':>9}{'Mi':>9}"]
        lines += [f"{name:<28}{n:>12,}{n / 1e6:>9.3f}{n / MEBI:>9.3f}" for name, n in rows.items()]
        lines += [
            f"Block-{self.stages} would have {self.block_base:,} in its denoisers "
            f"({self.block_base / 1e6:.3f} M, {self.block_base / MEBI:.3f} Mi): this saves {self.saving:.1%}",
            f"at {height}x{width}: {self.flops / 1e9:.1f} GFLOP ({self.flops / 2e9:.1f} GMAC)",
        ]
        if self.without_adapter:
            some = ", ".join(self.without_adapter[:3])
            lines.append(f"{len(self.without_adapter)} parameters of the base have no adapter: {some}, ...")
        return "\n".join(lines)


def report(
    model: nn.Module, size: tuple[int, int] = (256, 256), inputs: Sequence[Any] | None = None
) -> Report | StageReport:
    """Count the parameters of a network by part, and its FLOPs.

    An `UnfoldingNetwork` is reported as papers count it, with its FLOPs for one image of `size`. Any network
    that `lorun.share_stages` or `lorun.compress` made is reported layer by layer, with what got no adapter
    and why. A network that torch.compile, DataParallel or DistributedDataParallel has wrapped counts as
    itself.

    Args:
        size: (H, W) in pixels.
        inputs: arguments of a call of the model, for the FLOPs of a network that is no UnfoldingNetwork.

    Raises:
        ValueError: a height or width below 1, or one that the network's physics cannot have; or a network
            whose stages share nothing through LoRun.
    """
    model = unwrapped(model)
    if not isinstance(model, UnfoldingNetwork):
        return report_stages(model, inputs)
    if min(size) < 1:
        raise ValueError(f"size: expected a height and a width of at least 1, got {tuple(size)}")
    if sharing_of(model):
        return dataclasses.replace(report_stages(model), flops=count_flops(model, size))
    names = {name: p.numel() for name, p in model.named_parameters()}
    phi = sum(n for name, n in names.items() if name.startswith("physics."))
    scalars = sum(n for name, n in names.items() if name.startswith(("raw_step", "raw_lambda", "predictor.")))
    adapters = (
        sum(n for name, n in names.items() if name.startswith("denoisers."))
        if model.variant == "lorun"
        else 0
    )
    one_denoiser = _count(model.denoisers[0] if model.variant == "block" else model.denoiser)
    return Report(
        variant=model.variant,
        stages=model.stages,
        base=sum(names.values()) - phi - scalars - adapters,
        adapters=adapters,
        phi=phi,
        scalars=scalars,
        block_base=one_denoiser * model.stages,
        size=size,
        flops=count_flops(model, size),
        without_adapter=_without_adapter(model),
    )


def _without_adapter(model: UnfoldingNetwork) -> tuple[str, ...]:
    if model.variant != "lorun":
        return ()
    adapted = adapted_weights(model.denoisers[0])
    return tuple(name for name, _ in model.denoiser.named_parameters() if name not in adapted)


@torch.no_grad()
def count_flops(model: UnfoldingNetwork, size: tuple[int, int]) -> int:
    """FLOPs, 2 * MAC, of restoring one image of `size`.

    Convolutions and matrix products count; data steps that are neither, HQS's solve and the merging of
    adapters do not.

    Args:
        size: (H, W) in pixels, at least 1.
    """
    image = model.raw_step.new_zeros(1, model.physics.channels, *size)
    physics = copy.deepcopy(model.physics.for_size(size)).to(image)
    y = physics.A(image)
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with counter:
        model(y, physics=physics)
    return counter.get_total_flops()


def _attention_flop(query_shape: Shape, key_shape: Shape, value_shape: Shape, *args: Any, **_: Any) -> int:
    """The FLOPs of both products of attention, as torch counts them elsewhere."""
    return sdpa_flop_count(query_shape, key_shape, value_shape)


COUNTED = {
    # torch's counter leaves the CPU's kernel out.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
