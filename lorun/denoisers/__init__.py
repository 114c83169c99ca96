"""Denoisers: modules called as denoiser(x, noise_level) that return an image like x."""

from torch import nn

from lorun.denoisers.resunet import ResUNet
from lorun.denoisers.transformer import SpectralTransformer
from lorun.denoisers.unet import UNet

# Made as DENOISERS[name](channels, width).
DENOISERS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "transformer": SpectralTransformer,
    "resunet": ResUNet,
}

__all__ = ["DENOISERS", "ResUNet", "SpectralTransformer", "UNet"]
