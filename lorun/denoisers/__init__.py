"""Denoisers: modules called as denoiser(x, noise_level) that return an image like x."""

from lorun.denoisers.transformer import SpectralTransformer
from lorun.denoisers.unet import UNet

__all__ = ["SpectralTransformer", "UNet"]
