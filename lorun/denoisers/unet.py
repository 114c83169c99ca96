"""The U-Net denoiser: three levels, three convolutions a level, the noise level as an input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.denoisers.conv import ConvAct


class UNetLevel(nn.Module):
    """One convolution to `out_channels`, then a residual block of two; all 3x3 with GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.entry = ConvAct(in_channels, out_channels, 3, "gelu")
        self.first = ConvAct(out_channels, out_channels, 3, "gelu")
        self.second = ConvAct(out_channels, out_channels, 3)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """`skip` counts as further channels of x."""
        h = self.entry(x, skip)
        return self.second(self.first(h), residual=h)


class UNet(nn.Module):
    """Removes noise of a known level: (B, C, H, W) and a level -> (B, C, H, W).

    At width 28 and one channel it has 544,685 parameters, so that nine of them are the paper's Block-9
    (4.67 Mi against 4.65, Table II of arXiv 2602.18697). It computes in channels_last, starts as the
    identity, and pads any H, W to a multiple of 4 inside.

    Args:
        channels: C of the image.
        width: channels of the first level; each further level doubles them.
    """

    downscale = 4

    def __init__(self, channels: int = 1, width: int = 28):
        super().__init__()
        if channels < 1 or width < 1:
            raise ValueError(f"UNet: expected channels and width of at least 1, got {channels} and {width}")
        self.channels, self.width = channels, width
        self.encoder1 = UNetLevel(channels + 1, width)
        self.encoder2 = UNetLevel(width, 2 * width)
        self.bottom = UNetLevel(2 * width, 4 * width)
        self.decoder2 = UNetLevel(4 * width + 2 * width, 2 * width)
        self.decoder1 = UNetLevel(2 * width + width, width)
        self.last = ConvAct(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        """`noise_level`: standard deviation on the scale of x, one number or one per sample."""
        height, width = x.shape[-2:]
        padding = (0, -width % self.downscale, 0, -height % self.downscale)
        image = F.pad(x, padding, mode="replicate") if any(padding) else x
        return self._denoise(image, noise_level)[..., :height, :width]

    def _denoise(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        level = torch.as_tensor(noise_level, dtype=x.dtype, device=x.device)
        level_map = level.reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])
        h1 = self.encoder1(torch.cat([x, level_map], 1).contiguous(memory_format=torch.channels_last))
        h2 = self.encoder2(F.avg_pool2d(h1, 2))
        h = self.bottom(F.avg_pool2d(h2, 2))
        h = self.decoder2(_double(h), h2)
        h = self.decoder1(_double(h), h1)
        # Added in the image's own precision, also under autocast.
        return x + self.last(h)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
