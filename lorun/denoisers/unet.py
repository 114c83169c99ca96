"""The U-Net denoiser: three levels, three convolutions a level, the noise level as an input."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.denoisers.layers import conv, double, zero, zero_bias

# About 1 / sqrt(E[gelu(x)^2]) for a normal x.
GELU_GAIN = 1.5
# A correction is about this much smaller than an image.
CORRECTION_GAIN = 4.0


class UNetLevel(nn.Module):
    """One convolution to `out_channels`, then a residual block of two; all 3x3 with GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.entry = conv(in_channels, out_channels, 3, "gelu")
        self.first = conv(out_channels, out_channels, 3, "gelu")
        self.second = conv(out_channels, out_channels, 3)

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
        takes_correction: whether forward also takes what the data step before it changed, which shows where
            the image disagreed with its measurement. 28 bands then make 559,328 parameters: Block-9 4.80 Mi,
            as in Table IV.
    """

    downscale = 4

    def __init__(self, channels: int = 1, width: int = 28, takes_correction: bool = False):
        super().__init__()
        if channels < 1 or width < 1:
            raise ValueError(f"UNet: expected channels and width of at least 1, got {channels} and {width}")
        self.channels, self.width, self.takes_correction = channels, width, takes_correction
        images = 2 if takes_correction else 1
        self.encoder1 = UNetLevel(images * channels + 1, width)
        self.encoder2 = UNetLevel(width, 2 * width)
        self.bottom = UNetLevel(2 * width, 4 * width)
        self.decoder2 = UNetLevel(4 * width + 2 * width, 2 * width)
        self.decoder1 = UNetLevel(2 * width + width, width)
        self.last = conv(width, channels, 1)
        zero(self.last)
        if takes_correction:
            self._keep_variance()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, noise_level: Tensor | float, correction: Tensor | None = None) -> Tensor:
        """`noise_level`: standard deviation on the scale of x, one number or one per sample.

        `correction`: like x, if the denoiser takes one: the data step's result x minus what it started from.
        """
        if (correction is not None) != self.takes_correction:
            raise ValueError(
                f"correction: this denoiser takes {'one' if self.takes_correction else 'none'}, "
                f"got {'one' if correction is not None else 'none'}"
            )
        height, width = x.shape[-2:]
        image = x if correction is None else torch.cat([x, CORRECTION_GAIN * correction], 1)
        padding = (0, -width % self.downscale, 0, -height % self.downscale)
        image = F.pad(image, padding, mode="replicate") if any(padding) else image
        return self._denoise(image, noise_level)[..., :height, :width]

    def _denoise(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        level = torch.as_tensor(noise_level, dtype=x.dtype, device=x.device)
        level_map = level.reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])
        h1 = self.encoder1(torch.cat([x, level_map], 1).contiguous(memory_format=torch.channels_last))
        h2 = self.encoder2(F.avg_pool2d(h1, 2))
        h = self.bottom(F.avg_pool2d(h2, 2))
        h = self.decoder2(double(h), h2)
        h = self.decoder1(double(h), h1)
        # Added in the image's own precision, also under autocast.
        return x[:, : self.channels] + self.last(h)

    def _keep_variance(self) -> None:
        """Start the levels so that neither a signal nor its gradient fades on the way through them."""
        for level in (self.encoder1, self.encoder2, self.bottom, self.decoder2, self.decoder1):
            for layer, gain in ((level.entry, 1), (level.first, 1), (level.second, 0.5)):
                nn.init.normal_(layer.weight, std=gain * GELU_GAIN / math.sqrt(layer.weight[0].numel()))
                zero_bias(layer)
