"""Super-resolution: an image that was blurred by a known kernel and kept only at every s-th pixel."""

from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lorun.errors import ArgumentError
from lorun.physics.bicubic import enlarge
from lorun.physics.decimated_spectra import back_project, data_step, fold, measure
from lorun.physics.noise import GaussianNoise
from lorun.physics.physics import Physics, Size, per_sample

# Networks are told the noise level divided by this, roughly the strongest noise in photographs.
NOISE_UNIT = 0.1


class PreparedMeasurement(NamedTuple):
    """What does not change from stage to stage, in the Fourier domain; made by `SuperResolution.prepare`.

    Attributes:
        y: spectrum of the measurement, (B, C, h, w // 2 + 1) complex.
        blur: spectrum of the kernel, (B or 1, 1, H, W // 2 + 1) complex.
        gram: the eigenvalues of Phi Phi^T, (B or 1, 1, h, w // 2 + 1) real.
        shape: of the images that y enlarges to, (B, C, H, W).
    """

    y: Tensor
    blur: Tensor
    gram: Tensor
    shape: tuple[int, ...]


class SuperResolution(Physics):
    """y = (x * k) decimated by `scale` + noise, as in arXiv 2602.18697 and USRNet (Zhang et al. 2020, Eq. 1).

    Images are (B, channels, H, W) in [0, 1], with H and W multiples of the scale; measurements are
    (B, channels, H / scale, W / scale). Half precision is computed in float32. `*` is a true convolution,
    which runs around the border: ``scipy.ndimage.convolve(x, k, mode="wrap")``. The centre of an n x n kernel
    is its element n // 2, counted from 0: the middle one for an odd n. Decimation keeps the upper-left pixel
    of every scale x scale. Scale 1 is deblurring.

    Both data steps are computed in the Fourier domain, where Phi Phi^T is diagonal (Zhao et al. 2016; USRNet,
    Eq. 10). They take two real FFTs; `prepare` computes what all stages have in common. Any size is exact.
    FFTs are slower where a side has large prime factors: see docs/super_resolution.md.

    Args:
        kernel: (kh, kw), or (B, kh, kw), one for each image; it should sum to 1, so that brightness stays.
            None for a network that is told the kernel at each call: then nothing can be measured.
        scale: by which height and width are divided, at least 1.
        channels: of the image: 3 for RGB, 1 for grey.
        noise_level: standard deviation of Gaussian noise in y, on the scale of y, at least 0: a number, or
            one for each image, (B,). physics(x) adds it, and a network is told it.
        generator: where the noise comes from; None is torch's default.

    Raises:
        ValueError: a kernel of another shape, without elements, or with NaN or Inf; a number out of its
            range.
    """

    kernel: Tensor | None
    noise_level: Tensor
    conditions = ("noise level / 0.1", "1 / scale")

    def __init__(
        self,
        kernel: Tensor | None = None,
        scale: int = 2,
        channels: int = 3,
        noise_level: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
    ):
        level = torch.as_tensor(noise_level, dtype=torch.float32)
        if level.ndim > 1 or level.numel() == 0 or not bool(((level >= 0) & torch.isfinite(level)).all()):
            raise ValueError(
                "noise_level: expected a standard deviation of at least 0, or one for each image, got "
                f"{noise_level}"
            )
        super().__init__(GaussianNoise(level, generator) if bool(level.any()) else None)
        check_scale(scale)
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels: expected a whole number of at least 1, got {channels}")
        if kernel is not None:
            kernel = torch.as_tensor(kernel)
            _check_kernel(kernel)
            kernel = kernel if kernel.is_floating_point() else kernel.float()
            # One that requires gradients is being estimated.
            kernel = kernel if kernel.requires_grad else kernel.detach().clone()
        self.scale, self.channels = int(scale), channels
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("noise_level", level, persistent=False)

    def extra_repr(self) -> str:
        shape = None if self.kernel is None else tuple(self.kernel.shape)
        return f"kernel={shape}, scale={self.scale}, channels={self.channels}"

    def A(self, x: Tensor) -> Tensor:
        """Phi x: (B, channels, H, W) -> (B, channels, H / scale, W / scale).

        Raises:
            ValueError: x has other channels, a height or width that the scale does not divide, or that the
                kernel exceeds; or there is no kernel.
        """
        size = self._check_image(x)
        small = (size[0] // self.scale, size[1] // self.scale)
        spectrum = measure(_for_fft(x), self._blur(x, size), self.scale)
        return torch.fft.irfft2(spectrum, s=small).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Phi^T y: (B, channels, h, w) -> (B, channels, h * scale, w * scale).

        Raises:
            ValueError: y has other channels, or is too small for the kernel; or there is no kernel.
        """
        self.check_measurement(y)
        size = self._enlarged(y)
        return back_project(torch.fft.rfft2(_for_fft(y)), self._blur(y, size), self.scale, size).to(y.dtype)

    def start(self, y: Tensor) -> Tensor:
        """Bicubic interpolation between the pixels of y, each at the upper left of scale x scale."""
        self.check_measurement(y)
        return enlarge(y, self.scale)

    def prepare(self, y: Tensor) -> PreparedMeasurement:
        """The spectra that the data steps of all stages have in common.

        Raises:
            ValueError: as `A_adjoint`.
        """
        self.check_measurement(y)
        size = self._enlarged(y)
        blur = self._blur(y, size)
        gram = fold(blur.real.square() + blur.imag.square() + 0j, self.scale, size[1]).real
        return PreparedMeasurement(torch.fft.rfft2(_for_fft(y)), blur, gram, (*y.shape[:2], *size))

    def pgd_step(self, x: Tensor, y: Tensor | PreparedMeasurement, rho: float | Tensor) -> Tensor:
        """x - rho * Phi^T (Phi x - y), Eq. 5: see `Physics.pgd_step`."""
        prepared = self._prepared(x, y)
        weight = torch.as_tensor(per_sample("rho", rho, x), dtype=prepared.gram.dtype, device=x.device)
        return data_step(_for_fft(x), prepared.y, prepared.blur, weight, self.scale).to(x.dtype)

    def hqs_step(self, w: Tensor, y: Tensor | PreparedMeasurement, mu: float | Tensor) -> Tensor:
        """(Phi^T Phi + mu I)^-1 (Phi^T y + mu w), Eq. 9: see `Physics.hqs_step`.

        By Woodbury's identity it is w + Phi^T (Phi Phi^T + mu I)^-1 (y - Phi w), which stays accurate for a
        small mu.
        """
        prepared = self._prepared(w, y)
        weight = (prepared.gram + per_sample("mu", mu, _for_fft(w))).reciprocal()
        return data_step(_for_fft(w), prepared.y, prepared.blur, weight, self.scale).to(w.dtype)

    def condition(self, y: Tensor) -> Tensor:
        """What a network is told beside y, (B, 2): noise level / 0.1, and 1 / scale."""
        self._check_counts("y", len(y))
        level = self.noise_level.to(y.device, torch.float32).expand(len(y)) / NOISE_UNIT
        return torch.stack([level, torch.full_like(level, 1 / self.scale)], 1)

    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError if y is not (B, channels, h, w), or if its image is smaller than the kernel."""
        if y.ndim != 4 or y.shape[1] != self.channels or y.numel() == 0:
            raise ValueError(
                f"y: expected images of {self.channels} channels, (B, {self.channels}, h, w), got "
                f"{tuple(y.shape)}"
            )
        self._check_kernel_fits(self._enlarged(y))
        self._check_counts("y", len(y))

    def for_size(self, size: Size) -> "SuperResolution":
        """This model for one image: with its first kernel, or with one of one pixel if it has none.

        Raises:
            ValueError: a size that the scale does not divide.
        """
        self._check_divides("size", size)
        kernel = (
            torch.ones(1, 1) if self.kernel is None else self.kernel.reshape(-1, *self.kernel.shape[-2:])[0]
        )
        return SuperResolution(kernel, self.scale, self.channels)

    def _check_image(self, x: Tensor) -> Size:
        if x.ndim != 4 or x.shape[1] != self.channels or x.numel() == 0:
            raise ValueError(
                f"x: expected images of {self.channels} channels, (B, {self.channels}, H, W), got "
                f"{tuple(x.shape)}"
            )
        size = (x.shape[-2], x.shape[-1])
        self._check_divides("x", size)
        self._check_kernel_fits(size)
        self._check_counts("x", len(x))
        return size

    def _check_divides(self, name: str, size: Size) -> None:
        if size[0] % self.scale or size[1] % self.scale:
            raise ValueError(
                f"{name}: expected a height and a width that scale {self.scale} divides, got "
                f"{size[0]}x{size[1]}; crop to {size[0] // self.scale * self.scale}x"
                f"{size[1] // self.scale * self.scale}"
            )

    def _check_kernel_fits(self, size: Size) -> None:
        if self.kernel is None:
            raise ValueError(
                "kernel: this model has none; pass physics=SuperResolution(kernel, scale) to the call"
            )
        check_kernel_fits(self.kernel, size)

    def _check_counts(self, name: str, count: int) -> None:
        """Raise if there are kernels or noise levels for another number of images."""
        kernels = 1 if self.kernel is None or self.kernel.ndim == 2 else len(self.kernel)
        for what, given in (("kernel", kernels), ("noise_level", self.noise_level.numel())):
            if given not in (1, count):
                raise ValueError(
                    f"{what}: expected one, or one for each of {count} images in {name}, got {given}"
                )

    def _enlarged(self, y: Tensor) -> Size:
        return y.shape[-2] * self.scale, y.shape[-1] * self.scale

    def _blur(self, like: Tensor, size: Size) -> Tensor:
        """The spectrum of the kernel for images of `size`, its centre moved to the upper-left pixel."""
        assert self.kernel is not None
        kernel = self.kernel.to(like.device, _for_fft(like[:0]).dtype)
        kernel = kernel if kernel.ndim == 3 else kernel[None]
        height, width = kernel.shape[-2:]
        padded = F.pad(kernel, (0, size[1] - width, 0, size[0] - height))
        return torch.fft.rfft2(padded.roll((-(height // 2), -(width // 2)), (-2, -1)))[:, None]

    def _prepared(self, x: Tensor, y: Tensor | PreparedMeasurement) -> PreparedMeasurement:
        prepared = y if isinstance(y, PreparedMeasurement) else self.prepare(y)
        if tuple(x.shape) != prepared.shape:
            raise ValueError(
                f"x: expected {prepared.shape}, what y enlarges to by scale {self.scale}, got "
                f"{tuple(x.shape)}"
            )
        return prepared


def _for_fft(x: Tensor) -> Tensor:
    """In a precision that has Fourier transforms of every size: half precision becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_scale(scale: Any) -> None:
    """Raise ValueError if an image cannot be made smaller by this factor."""
    if isinstance(scale, bool) or not isinstance(scale, Integral) or scale < 1:
        raise ValueError(f"scale: expected a whole number of at least 1, such as 2, got {scale!r}")


def check_kernel_fits(kernel: Tensor, size: Size, name: str = "the image") -> None:
    """Raise ArgumentError if a kernel is larger than the image, (H, W) = `size`, that it blurs."""
    height, width = kernel.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ArgumentError(
            "kernel",
            f"kernel: expected one within {name} of {size[0]}x{size[1]} pixels, got {height}x{width}; "
            "crop the kernel, or take a larger image",
        )


def _check_kernel(kernel: Tensor) -> None:
    if kernel.ndim not in (2, 3) or kernel.numel() == 0 or kernel.is_complex():
        raise ValueError(f"kernel: expected (kh, kw), or (B, kh, kw) real numbers, got {tuple(kernel.shape)}")
    if not torch.isfinite(kernel).all():
        raise ValueError("kernel: holds NaN or Inf; fix those first")
