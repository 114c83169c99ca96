"""Blurring and decimating images by their spectra, and the data steps that undo it.

All spectra are those of real images, as `torch.fft.rfft2` gives them: of W columns the first W // 2 + 1,
because the others are their mirror images. Keeping every s-th pixel adds up s x s frequencies, the aliases of
one another, so that Phi Phi^T stays diagonal: Zhao et al. 2016, "Fast single image super-resolution using a
new analytical solution for l2-l2 problems".
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fold(spectrum: Tensor, scale: int, width: int) -> Tensor:
    """The spectrum of the image that keeps the upper-left pixel of every scale x scale: the mean of the
    aliases.

    Args:
        spectrum: (..., H, W // 2 + 1) of an image of W = `width` columns.
        scale: divides H and W.

    Returns:
        (..., H / scale, W / scale // 2 + 1).
    """
    if scale == 1:
        return spectrum
    rows = spectrum.unflatten(-2, (scale, -1)).sum(-3)
    small, kept = width // scale, width // scale // 2 + 1
    # Aliases in the left half of the columns are there; the others are mirror images of those that are.
    first_mirrored = (scale + 1) // 2
    folded = rows[..., :kept].clone()
    for alias in range(1, first_mirrored):
        folded += rows[..., alias * small : alias * small + kept]
    for alias in range(first_mirrored, scale):
        mirror = width - alias * small
        folded += _mirrored(rows[..., mirror - kept + 1 : mirror + 1])
    return folded / scale**2


def unfold(spectrum: Tensor, scale: int, width: int) -> Tensor:
    """The spectrum of an image whose pixels are set apart by zeros: every alias is the same.

    Args:
        spectrum: (..., h, w // 2 + 1) of an image of w = `width` / scale columns.
        scale: each pixel becomes the upper-left one of scale x scale.

    Returns:
        (..., h * scale, width // 2 + 1).
    """
    if scale == 1:
        return spectrum
    right = _mirrored(spectrum[..., 1 : (width // scale + 1) // 2])
    columns = torch.cat([spectrum, right], -1)
    tiles = (*[1] * (columns.ndim - 2), scale, scale // 2 + 1)
    return columns.repeat(tiles)[..., : width // 2 + 1]


def _mirrored(columns: Tensor) -> Tensor:
    """What a real image has at minus the frequencies of these columns, from the last to the first."""
    return columns.flip(-2, -1).roll(1, -2).conj()


def measure(x: Tensor, blur: Tensor, scale: int) -> Tensor:
    """The spectrum of Phi x, (B, C, H / scale, W / scale // 2 + 1), for images (B, C, H, W).

    Args:
        blur: spectrum of the kernel, (B or 1, 1, H, W // 2 + 1).
    """
    return fold(torch.fft.rfft2(x) * blur, scale, x.shape[-1])


def back_project(spectrum: Tensor, blur: Tensor, scale: int, size: tuple[int, int]) -> Tensor:
    """Phi^T of a measurement that is given by its spectrum: images of `size` = (H, W)."""
    return torch.fft.irfft2(unfold(spectrum, scale, size[1]) * blur.conj(), s=size)


def data_step(x: Tensor, y: Tensor, blur: Tensor, weight: Tensor, scale: int) -> Tensor:
    """x + Phi^T W (y - Phi x), where W multiplies spectra of measurements by `weight`; with gradients.

    Args:
        x: images (B, C, H, W).
        y: spectrum of the measurement, (B, C, H / scale, W / scale // 2 + 1).
        blur: spectrum of the kernel, (B or 1, 1, H, W // 2 + 1).
        weight: real, of the shape of y or one that broadcasts to it.
    """
    if y.requires_grad or blur.requires_grad:
        return x + back_project(
            (y - measure(x, blur, scale)) * weight, blur, scale, (x.shape[-2], x.shape[-1])
        )
    return _DataStep.apply(x, y, blur, weight, scale)


class _DataStep(torch.autograd.Function):
    """`data_step` with gradients to x and weight.

    Its derivative by x, I - Phi^T W Phi, is its own adjoint, so that backward costs what forward does.
    Autograd would transform complex images of full size, because it takes the gradient of `rfft2` that way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, blur: Tensor, weight: Tensor, scale: int) -> Tensor:
        residual = y - measure(x, blur, scale)
        ctx.save_for_backward(residual if weight.requires_grad else None, blur, weight)
        ctx.scale = scale
        return x + back_project(residual * weight, blur, scale, (x.shape[-2], x.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        residual, blur, weight = ctx.saved_tensors
        size = (gradient.shape[-2], gradient.shape[-1])
        measured = measure(gradient, blur, ctx.scale)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = gradient - back_project(measured * weight, blur, ctx.scale, size)
        if ctx.needs_input_grad[3]:
            product = measured.real * residual.real + measured.imag * residual.imag
            product[..., 1 : (size[1] // ctx.scale + 1) // 2] *= 2  # these columns stand for two
            pixels = size[0] * size[1] // ctx.scale**2
            of_weight = (product / pixels).sum_to_size(weight.shape)
        return of_x, None, None, of_weight, None
