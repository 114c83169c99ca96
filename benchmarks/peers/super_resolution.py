"""The closed-form data steps of super-resolution as published code writes them: whole complex spectra.

A peer is made for a kernel (kh, kw), or (B, kh, kw), one for each image, and a scale; a step takes the image,
the measurement and rho or mu, and is one stage of a network. deepinv's takes one kernel for all images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.packages import package


class Published:
    """USRNet's step (Zhang et al. 2020, Eq. 10; Zhao et al. 2016), with every term anew in each stage."""

    def __init__(self, kernel: Tensor, scale: int) -> None:
        self.kernel, self.scale = kernel.reshape(-1, 1, *kernel.shape[-2:]), scale

    def hqs_step(self, w: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        blur = self._transfer(w)
        conjugate, power = blur.conj(), blur.abs().square()
        right = conjugate * torch.fft.fft2(self._set_apart(y)) + torch.fft.fft2(mu * w)
        ratio = self._mean_of_aliases(blur * right) / (self._mean_of_aliases(power) + mu)
        return torch.fft.ifft2((right - conjugate * self._repeated(ratio)) / mu).real

    def pgd_step(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        blur = self._transfer(x)
        blurred = torch.fft.ifft2(blur * torch.fft.fft2(x)).real
        residual = self._set_apart(blurred[..., :: self.scale, :: self.scale] - y)
        return x - rho * torch.fft.ifft2(blur.conj() * torch.fft.fft2(residual)).real

    def _transfer(self, x: Tensor) -> Tensor:
        """The kernel's whole spectrum, its centre moved to the upper-left pixel."""
        height, width = self.kernel.shape[-2:]
        padded = x.new_zeros(len(self.kernel), 1, *x.shape[-2:])
        padded[..., :height, :width] = self.kernel
        return torch.fft.fft2(padded.roll((-(height // 2), -(width // 2)), (-2, -1)))

    def _set_apart(self, y: Tensor) -> Tensor:
        apart = y.new_zeros(*y.shape[:2], y.shape[2] * self.scale, y.shape[3] * self.scale)
        apart[..., :: self.scale, :: self.scale] = y
        return apart

    def _mean_of_aliases(self, spectrum: Tensor) -> Tensor:
        blocks = torch.stack(spectrum.chunk(self.scale, 2), 4)
        return torch.cat(blocks.chunk(self.scale, 3), 4).mean(-1)

    def _repeated(self, spectrum: Tensor) -> Tensor:
        return spectrum.repeat(1, 1, self.scale, self.scale)


class TermsOnce(Published):
    """The same with the spectra of kernel and measurement computed in the first stage and kept."""

    def __init__(self, kernel: Tensor, scale: int) -> None:
        super().__init__(kernel, scale)
        self.kept: dict[str, Tensor] = {}

    def hqs_step(self, w: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        if self.kept.get("y") is not y:
            blur = self._transfer(w)
            back = blur.conj() * torch.fft.fft2(self._set_apart(y))
            self.kept = {"y": y, "blur": blur, "back": back}
            self.kept["gram"] = self._mean_of_aliases(blur.abs().square())
        blur, right = self.kept["blur"], self.kept["back"] + torch.fft.fft2(mu * w)
        ratio = self._mean_of_aliases(blur * right) / (self.kept["gram"] + mu)
        return torch.fft.ifft2((right - blur.conj() * self._repeated(ratio)) / mu).real


class Deepinv:
    """deepinv's `Downsampling`: `prox_l2` in closed form, with the kernel's spectrum computed before.

    Raises:
        ImportError: if deepinv cannot be imported.
    """

    def __init__(self, kernel: Tensor, scale: int, size: tuple[int, int], channels: int = 3) -> None:
        self.physics = package("deepinv").physics.Downsampling(
            img_size=(channels, *size), filter=kernel[None, None], factor=scale, device=kernel.device
        )

    def hqs_step(self, w: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        return self.physics.prox_l2(w, y, 1 / mu)

    def pgd_step(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        return x - rho * self.physics.A_adjoint(self.physics.A(x) - y)
