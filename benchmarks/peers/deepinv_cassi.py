"""deepinv's CASSI (`CompressiveSpectralImaging`, single disperser), whose bands are one column apart.

Its shear is a convolution with a kernel as large as the image, so its time grows with the square of the
number of pixels. It is right if the rows and the measured columns, W + C - 1, are odd and W >= C: with an
even number everything moves by one pixel and an edge is lost; with fewer columns than bands it raises.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.packages import package

STEP = 1


class DeepinvCASSI:
    """Phi of an (H, W) mask by deepinv, which takes the mean over the bands instead of the sum.

    Raises:
        ImportError: if deepinv cannot be imported.
    """

    def __init__(self, mask: Tensor, bands: int) -> None:
        self.bands = bands
        self.physics = package("deepinv").physics.CompressiveSpectralImaging(
            (bands, *mask.shape), mask=mask[None, None], mode="sd", shear_dir="w", device=mask.device
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.bands * self.physics.A(x).squeeze(1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(self.bands * y.unsqueeze(1))

    def pgd_step(self, x: Tensor, y: Tensor, rho: float) -> Tensor:
        return x - rho * self.adjoint(self.forward(x) - y)

    def hqs_step(self, w: Tensor, y: Tensor, mu: float) -> Tensor:
        """By LSQR, the default of its operators: CG, the default of `prox_l2`, stalls before the solution."""
        mean = y.unsqueeze(1) / self.bands
        return self.physics.prox_l2(w, mean, self.bands**2 / mu, solver="lsqr")
