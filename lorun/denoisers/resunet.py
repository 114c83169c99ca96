"""The residual U-Net of USRNet, in its tiny size: four levels, bias-free, the noise level as an input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun_kernels import ConvAct

# Levels of resolution; each but the last two doubles the channels.
WIDTHS = (1, 2, 4, 4)
BLOCKS = 2
# A denoised pixel depends on pixels up to this far away.
REACH = 97
# So that residual blocks add little at the start, and a fresh network is near the identity.
RESIDUAL_GAIN = 0.1


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = conv(channels, channels, "relu")
        self.second = conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), residual=x)


class ResUNet(nn.Module):
    """Removes noise of a known level: (B, C, H, W) and a level -> (B, C, H, W).

    Four levels of `width` times 1, 2, 4 and 4 channels with two residual blocks each, 2x2 convolutions
    between them, no biases: the denoiser of USRNet-tiny (Zhang et al. 2020, "Deep unfolding network for image
    super-resolution"), which adds the image to the last convolution here. At width 16 and three channels it
    has 588,784 parameters, and 144 more for each condition: nine of them are the paper's Block-9 of 5.30 M
    (Table V of arXiv 2602.18697). It computes in channels_last, starts as the identity, and pads any H, W to
    a multiple of 8 inside.

    Args:
        channels: C of the image.
        width: channels of the first level.
        conditions: how many numbers about the measurement forward takes beside the noise level.
    """

    downscale = 8
    reach = REACH

    def __init__(self, channels: int = 3, width: int = 16, conditions: int = 0):
        super().__init__()
        if channels < 1 or width < 1:
            raise ValueError(
                f"ResUNet: expected channels and width of at least 1, got {channels} and {width}"
            )
        if conditions < 0:
            raise ValueError(f"conditions: expected at least 0, got {conditions}")
        self.channels, self.width, self.conditions = channels, width, conditions
        widths = [width * factor for factor in WIDTHS]
        between = list(zip(widths, widths[1:], strict=False))
        self.first = conv(channels + 1 + conditions, width)
        self.encoders = nn.ModuleList(blocks(fine) for fine, _ in between)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2, bias=False) for fine, coarse in between)
        self.bottom = blocks(widths[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, 2, bias=False) for fine, coarse in between
        )
        self.decoders = nn.ModuleList(blocks(fine) for fine, _ in between)
        self.last = conv(width, channels)
        nn.init.zeros_(self.last.weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, noise_level: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """`noise_level`: standard deviation on the scale of x, one number or one per sample.

        `condition`: (B, conditions), if the denoiser takes any.
        """
        given = 0 if condition is None else condition.shape[-1]
        if given != self.conditions:
            raise ValueError(f"condition: this denoiser takes {self.conditions} numbers, got {given}")
        height, width = x.shape[-2:]
        padding = (0, -width % self.downscale, 0, -height % self.downscale)
        image = F.pad(x, padding, mode="replicate") if any(padding) else x
        maps = _maps(image, noise_level, condition)
        return x + self._residual(torch.cat([image, maps], 1))[..., :height, :width]

    def _residual(self, x: Tensor) -> Tensor:
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders, self.down, strict=True):
            skips.append(h)
            h = down(encoder(h))
        skips.append(h)
        h = self.bottom(h)
        for decoder, up in zip(reversed(self.decoders), reversed(self.up), strict=True):
            h = decoder(up(h + skips.pop()))
        return self.last(h + skips.pop())


def _maps(image: Tensor, noise_level: Tensor | float, condition: Tensor | None) -> Tensor:
    """A constant map (B, 1 + conditions, H, W) for the noise level and for each condition."""
    level = torch.as_tensor(noise_level, dtype=image.dtype, device=image.device)
    numbers = level.reshape(-1, 1).expand(len(image), 1)
    if condition is not None:
        numbers = torch.cat([numbers, condition.to(image)], 1)
    return numbers[..., None, None].expand(*numbers.shape, *image.shape[-2:])


def conv(in_channels: int, out_channels: int, activation: str | None = None) -> ConvAct:
    return ConvAct(in_channels, out_channels, 3, padding=1, bias=False, activation=activation)


def blocks(channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(BLOCKS)))
