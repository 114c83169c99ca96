"""Unfolding networks in the field's usual style, with the weights of one of LoRun's networks.

They are contiguous NCHW throughout, have a whole denoiser per stage, and use the data steps of published
code. They start where LoRun's networks do, for CASSI by LoRun's own `physics.start`; both spend its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.cassi_rolls import STEP, RollStep, pad
from lorun.denoisers import UNet
from lorun.networks import build_network
from lorun.physics import CASSI, BlockCS
from lorun.tasks.task import NetworkSettings
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import ConvAct, FusedLoRAConv2d

Step = Callable[[Tensor, Tensor], Tensor]
"""step(x, scale): a data step."""


class FieldNetwork(nn.Module):
    """`net` in the field's style: the same parameters, and one denoiser per stage with the adapter merged in.

    Args:
        net: with a `UNet`, and with the physics of its measurements.
        data: stands for the physics of net: data.begin(y) returns where the network starts and its data step.
    """

    def __init__(self, net: UnfoldingNetwork, data: nn.Module) -> None:
        super().__init__()
        self.data, self.algorithm = data, net.algorithm
        self.raw_step, self.raw_lambda = net.raw_step, net.raw_lambda
        self.denoisers = nn.ModuleList(merged(net.stage_denoiser(k), FieldUNet) for k in range(net.stages))

    def forward(self, y: Tensor) -> Tensor:
        scales, lams = F.softplus(self.raw_step), F.softplus(self.raw_lambda)
        levels = (lams / scales if self.algorithm == "hqs" else lams * scales).sqrt()
        x, step = self.data.begin(y)
        for denoiser, scale, level in zip(self.denoisers, scales, levels, strict=True):
            z = step(x, scale)
            x = denoiser(z, level, z - x) if denoiser.takes_correction else denoiser(z, level)
        return self.data.crop(x)


class BlockConvolutions(nn.Module):
    """Block compressive sensing by convolutions: Phi with the stride of a block, Phi^T and a pixel shuffle.

    Written after the published code of ISTA-Net++ (jianzhangcs/ISTA-Netpp), which many later networks share.
    """

    def __init__(self, physics: BlockCS, algorithm: str) -> None:
        super().__init__()
        if algorithm != "pgd":
            raise ValueError(f'algorithm: expected "pgd", got {algorithm!r}')
        self.phi, self.block = physics.phi, physics.block

    def begin(self, y: Tensor) -> tuple[Tensor, Step]:
        phi = self.phi.view(-1, 1, self.block, self.block)
        transposed = self.phi.t().contiguous().unsqueeze(-1).unsqueeze(-1)

        def back_project(y: Tensor) -> Tensor:
            return F.pixel_shuffle(F.conv2d(y, transposed), self.block)

        start = back_project(y)

        def step(x: Tensor, scale: Tensor) -> Tensor:
            return x - scale * back_project(F.conv2d(x, phi, stride=self.block)) + scale * start

        return start, step

    def crop(self, x: Tensor) -> Tensor:
        return x


class CroppedRolls(nn.Module):
    """CASSI by per-band rolls, cropped before each denoiser and padded after it: the same result as LoRun's.

    MFMLP (WangYiren99/MFMLP) does this; nearly all other code keeps padded columns (`PaddedRolls`).

    Args:
        physics: with an (H, W) mask and STEP columns between bands.
        algorithm: "pgd" or "hqs".
    """

    def __init__(self, physics: CASSI, algorithm: str) -> None:
        super().__init__()
        if physics.step != STEP or physics.mask.dim() != 2:
            raise ValueError(f"physics: expected an (H, W) mask and a step of {STEP}")
        self.physics, self.width = physics, physics.mask.shape[-1]
        self.rolls = RollStep(physics.mask, physics.bands, algorithm == "hqs")

    def begin(self, y: Tensor) -> tuple[Tensor, Step]:
        def step(x: Tensor, scale: Tensor) -> Tensor:
            return self.crop(self.rolls(pad(x), y, scale, torch.is_grad_enabled()))

        return self.physics.start(y).contiguous(), step

    def crop(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


class PaddedRolls(CroppedRolls):
    """CASSI by per-band rolls on cubes that keep W + step * (C - 1) columns, also through the denoisers.

    Written after the published code of GAP-Net (mengziyi64/GAP-net), ADMM-Net and DAUHST
    (caiyuanhao1998/MST), PADUT (MyuLi/PADUT) and RDLUF-MixS2 (ShawnDong98/RDLUF_MixS2): only the result is
    cropped. It differs from LoRun's towards the right border.
    """

    def begin(self, y: Tensor) -> tuple[Tensor, Step]:
        def step(x: Tensor, scale: Tensor) -> Tensor:
            # Rolls work in place, and the correction needs the input: hence a clone, as in PADUT.
            return self.rolls(x.clone(), y, scale, torch.is_grad_enabled())

        return pad(self.physics.start(y).contiguous()), step


class FieldUNet(UNet):
    """The U-Net with weights and images in contiguous NCHW."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for conv in _convs(self):
            # Not .contiguous(): a 1x1 weight is contiguous in both layouts, and may keep the other's strides.
            conv.weight = nn.Parameter(torch.empty(conv.weight.shape))

    def _denoise(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        level = torch.as_tensor(noise_level, dtype=x.dtype, device=x.device)
        level_map = level.reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])
        h1 = self.encoder1(torch.cat([x, level_map], 1))
        h2 = self.encoder2(F.avg_pool2d(h1, 2))
        h = self.bottom(F.avg_pool2d(h2, 2))
        h = self.decoder2(F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False), h2)
        h = self.decoder1(F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False), h1)
        return x[:, : self.channels] + self.last(h)


@torch.no_grad()
def merged(denoiser: UNet, kind: type[UNet] = UNet) -> UNet:
    """A `kind` with the weights of a denoiser, adapters merged in."""
    plain = kind(denoiser.channels, denoiser.width, denoiser.takes_correction)
    for source, conv in zip(_convs(denoiser), _convs(plain), strict=True):
        adapted = isinstance(source, FusedLoRAConv2d)
        conv.weight.copy_(source.merged_weight() if adapted else source.weight)
        conv.bias.copy_(source.bias)
    return plain.to(denoiser.last.weight.device)


def merged_network(net: UnfoldingNetwork) -> UnfoldingNetwork:
    """`net` as LoRun's own Block-K, with the adapters merged in."""
    block = UnfoldingNetwork(net.physics, merged(net.denoiser), net.stages, "block", net.algorithm)
    block.raw_step, block.raw_lambda = net.raw_step, net.raw_lambda
    block.denoisers = nn.ModuleList(merged(net.stage_denoiser(k)) for k in range(net.stages))
    return block


@torch.no_grad()
def random_shared(config: NetworkSettings) -> UnfoldingNetwork:
    """The Shared-K of a config with a U-Net: untrained, but no parameter is zero."""
    shared = build_network(replace(config, variant="shared"))
    nn.init.normal_(shared.denoiser.last.weight, std=0.02)
    for name, parameter in shared.named_parameters():
        if name.endswith("bias") or name.startswith("raw"):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return shared


@torch.no_grad()
def random_lorun(shared: UnfoldingNetwork) -> UnfoldingNetwork:
    """A LoRun-K on the weights of a Shared-K, with adapters that are not zero."""
    lorun = UnfoldingNetwork.from_shared(shared)
    for name, parameter in lorun.named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter, std=0.02)
    return lorun


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, ConvAct | FusedLoRAConv2d)]
