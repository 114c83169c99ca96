"""A CASSI unfolding network in the field's usual style, with the weights of one of LoRun's.

Contiguous NCHW throughout, a whole denoiser per stage, and data steps of per-band rolls on cubes that carry
W + step * (C - 1) columns. Written after the published code of GAP-Net (mengziyi64/GAP-net), ADMM-Net and
DAUHST (caiyuanhao1998/MST), PADUT (MyuLi/PADUT) and RDLUF-MixS2 (ShawnDong98/RDLUF_MixS2). All of them keep
the padded cube between stages: shift, data step, shift back, and a denoiser that works on all of its columns;
only the result is cropped. MFMLP (WangYiren99/MFMLP) crops before each denoiser and pads after it: less work,
and what LoRun computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cassi_peers import STEP, RollStep, pad
from lorun.denoisers import UNet
from lorun.denoisers.conv import ConvAct
from lorun.physics import CASSI
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import FusedLoRAConv2d


class FieldNetwork(nn.Module):
    """`net` in the field's style, for one camera.

    Args:
        net: with a UNet that takes corrections.
        physics: with an (H, W) mask and STEP columns between bands; the network starts where LoRun's does.
        padded: whether denoisers see the padded columns, as in all of the codes above but MFMLP's. The result
            then differs from that of `net` towards the right border; otherwise it is the same.
    """

    def __init__(self, net: UnfoldingNetwork, physics: CASSI, padded: bool) -> None:
        super().__init__()
        if physics.step != STEP or physics.mask.dim() != 2:
            raise ValueError(f"physics: expected an (H, W) mask and a step of {STEP}")
        hqs = net.algorithm == "hqs"
        self.physics, self.padded = physics, padded
        self.data_step = RollStep(physics.mask, physics.bands, hqs)
        self.steps = net.step.detach()
        self.levels = (net.lam / net.step if hqs else net.lam * net.step).sqrt().detach()
        self.denoisers = nn.ModuleList(merged(net.stage_denoiser(k), FieldUNet) for k in range(net.stages))

    def forward(self, y: Tensor) -> Tensor:
        x = self.physics.start(y).contiguous()
        width = x.shape[-1]
        x = pad(x) if self.padded else x
        for denoiser, step, level in zip(self.denoisers, self.steps, self.levels, strict=True):
            # Rolls are in place, and the correction needs what came in: a clone, as in PADUT.
            z = self.data_step(x.clone() if self.padded else pad(x), y, step)
            z = z if self.padded else z[..., :width]
            x = denoiser(z, level, z - x)
        return x[..., :width]


class FieldUNet(UNet):
    """The U-Net with weights and images in contiguous NCHW."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for conv in _convs(self):
            # Not .contiguous(): a 1x1 weight is that in both layouts, and its strides would choose the other.
            conv.weight = nn.Parameter(torch.empty(conv.weight.shape))

    def _denoise(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        level = torch.as_tensor(noise_level, dtype=x.dtype)
        level_map = level.reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])
        h1 = self.encoder1(torch.cat([x, level_map], 1))
        h2 = self.encoder2(F.avg_pool2d(h1, 2))
        h = self.bottom(F.avg_pool2d(h2, 2))
        h = self.decoder2(F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False), h2)
        h = self.decoder1(F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False), h1)
        return x[:, : self.channels] + self.last(h)


@torch.no_grad()
def merged(denoiser: UNet, kind: type[UNet] = UNet) -> UNet:
    """A `kind` with the weights of a denoiser, its adapters merged in."""
    plain = kind(denoiser.channels, denoiser.width, denoiser.takes_correction)
    for source, conv in zip(_convs(denoiser), _convs(plain), strict=True):
        adapted = isinstance(source, FusedLoRAConv2d)
        conv.weight.copy_(source.merged_weight() if adapted else source.weight)
        conv.bias.copy_(source.bias)
    return plain


def merged_network(net: UnfoldingNetwork) -> UnfoldingNetwork:
    """`net` as LoRun's own Block-K, adapters merged in."""
    block = UnfoldingNetwork(net.physics, merged(net.denoiser), net.stages, "block", net.algorithm)
    block.raw_step, block.raw_lambda = net.raw_step, net.raw_lambda
    block.denoisers = nn.ModuleList(merged(net.stage_denoiser(k)) for k in range(net.stages))
    return block


@torch.no_grad()
def random_networks(
    bands: int, width: int, stages: int, algorithm: str = "hqs"
) -> tuple[UnfoldingNetwork, UnfoldingNetwork]:
    """Shared-K and LoRun-K on its weights: untrained, but nothing in them is zero."""
    denoiser = UNet(bands, width, takes_correction=True)
    nn.init.normal_(denoiser.last.weight, std=0.02)
    shared = UnfoldingNetwork(CASSI(bands=bands, step=STEP), denoiser, stages, "shared", algorithm)
    for name, parameter in shared.named_parameters():
        if name.endswith("bias") or name.startswith("raw"):
            parameter.add_(0.05 * torch.randn_like(parameter))
    lorun = UnfoldingNetwork.from_shared(shared)
    for name, parameter in lorun.named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter, std=0.02)
    return shared, lorun


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, ConvAct | FusedLoRAConv2d)]
