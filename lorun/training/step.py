"""One optimiser step, and the watching of quality between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lorun.tasks.task import Sample
from lorun.training.config import TrainConfig
from lorun.unfolding import UnfoldingNetwork

GRADIENT_NORM = 1.0
# A PSNR of 60 dB counts as perfect.
LEAST_MSE = 1e-6


def train_step(
    net: UnfoldingNetwork,
    optimizer: torch.optim.Optimizer,
    sample: Sample,
    stages: int,
    lr: float,
    config: TrainConfig,
) -> float:
    """One optimiser step; returns the loss.

    Raises:
        FloatingPointError: the loss is not finite; nothing has been changed.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    y = measure(net, sample)
    with torch.autocast(sample.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        restored = net(y, physics=sample.physics, size=sample.size, stages=stages)
    loss = loss_between(restored.float(), sample.images, config.loss)
    if not torch.isfinite(loss):
        raise FloatingPointError(
            "the training loss is not finite; continue from the last checkpoint with a lower learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def measure(net: UnfoldingNetwork, sample: Sample) -> Tensor:
    """The measurement of a sample by its own physics, or by the network's, which may learn from it."""
    physics = net.physics if sample.physics is None else sample.physics
    return physics(sample.images)


def loss_between(restored: Tensor, images: Tensor, loss: str) -> Tensor:
    """ "l1" is the mean absolute error, "psnr" minus the mean PSNR in units of 10 dB."""
    if loss == "l1":
        return F.l1_loss(restored, images)
    mse = (restored - images).square().mean((1, 2, 3))
    return (mse + LEAST_MSE).log10().mean()


@torch.no_grad()
def validation_psnr(net: UnfoldingNetwork, sample: Sample, stages: int) -> float:
    """Mean PSNR in dB over what the task keeps from training."""
    net.eval()
    restored = net(measure(net, sample), physics=sample.physics, size=sample.size, stages=stages)
    net.train()
    mse = (restored.clamp(0, 1) - sample.images).square().mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()
