"""Noise of a sensor: modules that are applied to a clean measurement."""

import torch
from torch import Tensor, nn

from lorun.physics.physics import per_sample


class GaussianNoise(nn.Module):
    """y + sigma * n with standard normal n, in the shape, dtype and layout of y, and differentiable.

    Args:
        sigma: standard deviation on the scale of y, at least 0: a number, or one for each sample, (B,).
        generator: where the random numbers come from; None is torch's default.

    Raises:
        ValueError: sigma is negative or not finite; at the call, it is for another number of samples.
    """

    def __init__(self, sigma: float | Tensor, generator: torch.Generator | None = None):
        super().__init__()
        levels = torch.as_tensor(sigma)
        if not bool(((levels >= 0) & torch.isfinite(levels)).all()):
            raise ValueError(f"sigma: expected a standard deviation of at least 0, got {sigma}")
        self.sigma, self.generator = sigma, generator

    def forward(self, y: Tensor) -> Tensor:
        noise = torch.empty_like(y).normal_(generator=self.generator)
        sigma = self.sigma.to(y.device) if isinstance(self.sigma, Tensor) else self.sigma
        return y + per_sample("sigma", sigma, y) * noise


class ShotNoise(nn.Module):
    """full_well * Binomial(floor(v * 2^bits / qe), qe) / 2^bits with v = y / full_well: detected photons.

    The field's model of the real CASSI sensor (TSA-Net, Meng et al. 2020: quantum efficiency 0.4, 11 bits),
    in the shape and dtype of y. It is not differentiable: it is for measurements, which need no gradient.

    Args:
        quantum_efficiency: the share of photons that is detected, in (0, 1].
        bits: of the sensor, 1 to 16.
        full_well: the value of y, above 0, that fills a pixel's well. The field's scale for CASSI,
            y / C * 2 * 1.2, is a full well of C / 2.4.
        generator: where the random numbers come from; None is torch's default.

    Raises:
        ValueError: an argument out of its range; at the call, a y that is negative or not finite.
    """

    def __init__(
        self,
        quantum_efficiency: float = 0.4,
        bits: int = 11,
        full_well: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 0 < quantum_efficiency <= 1:
            raise ValueError(f"quantum_efficiency: expected a share in (0, 1], got {quantum_efficiency}")
        if not 1 <= bits <= 16:
            raise ValueError(f"bits: expected 1 to 16, got {bits}")
        if not 0 < full_well < float("inf"):
            raise ValueError(f"full_well: expected a value above 0, got {full_well}")
        self.quantum_efficiency, self.generator = quantum_efficiency, generator
        self.scale = 2**bits / full_well

    @torch.no_grad()
    def forward(self, y: Tensor) -> Tensor:
        photons = torch.floor(y.float() * self.scale / self.quantum_efficiency)
        # With infinitely many photons torch.binomial never returns.
        if y.numel() and not 0 <= photons.min() <= photons.max() < float("inf"):
            raise ValueError("y: shot noise needs finite values of at least 0; correct or clamp them first")
        share = torch.full_like(photons, self.quantum_efficiency)
        return (torch.binomial(photons, share, generator=self.generator) / self.scale).to(y.dtype)
