import itertools

import pytest
import torch

from lorun.physics.decimated_spectra import back_project, data_step, fold, measure, unfold

SCALES = [1, 2, 3, 4, 5]
SIZES = [(1, 1), (2, 3), (5, 7), (6, 4), (3, 8)]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def set_apart(y: torch.Tensor, scale: int) -> torch.Tensor:
    """Every pixel at the upper left of scale x scale zeros."""
    x = y.new_zeros(*y.shape[:-2], y.shape[-2] * scale, y.shape[-1] * scale)
    x[..., ::scale, ::scale] = y
    return x


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale, size", list(itertools.product(SCALES, SIZES)))
def test_folding_is_keeping_every_upper_left_pixel(scale, size):
    x = images(2, 3, size[0] * scale, size[1] * scale)
    close(fold(torch.fft.rfft2(x), scale, x.shape[-1]), torch.fft.rfft2(x[..., ::scale, ::scale]))


@pytest.mark.parametrize("scale, size", list(itertools.product(SCALES, SIZES)))
def test_unfolding_is_setting_pixels_apart(scale, size):
    y = images(2, 3, *size)
    close(unfold(torch.fft.rfft2(y), scale, size[1] * scale), torch.fft.rfft2(set_apart(y, scale)))


@pytest.mark.parametrize("scale, size", list(itertools.product(SCALES, SIZES)))
def test_a_measurement_and_its_adjoint_are_those_of_whole_spectra(scale, size):
    x, y = images(2, 3, size[0] * scale, size[1] * scale), images(2, 3, *size)
    kernel = images(2, 1, *x.shape[-2:])
    whole = torch.fft.fft2(kernel)
    blurred = torch.fft.ifft2(torch.fft.fft2(x) * whole).real
    found = torch.fft.irfft2(measure(x, torch.fft.rfft2(kernel), scale), s=size)
    close(found, blurred[..., ::scale, ::scale])
    back = torch.fft.ifft2(torch.fft.fft2(set_apart(y, scale)) * whole.conj()).real
    close(back_project(torch.fft.rfft2(y), torch.fft.rfft2(kernel), scale, tuple(x.shape[-2:])), back)


@pytest.mark.parametrize("scale, size", [(1, (4, 5)), (2, (3, 4)), (3, (2, 3)), (4, (1, 2)), (5, (1, 1))])
@pytest.mark.parametrize("weights", ["number", "per sample", "spectrum"])
def test_gradients_are_those_of_autograd_through_whole_spectra(scale, size, weights):
    x = images(2, 2, size[0] * scale, size[1] * scale).requires_grad_()
    y, kernel, seed = images(2, 2, *size), images(2, 1, *x.shape[-2:]), images(*x.shape)
    # The same at a frequency and at minus it, as 1 / (Phi Phi^T + mu) is.
    symmetric = torch.fft.rfft2(images(2, 1, *size)).abs()
    weight = {"number": torch.tensor(0.3).double(), "per sample": torch.rand(2, 1, 1, 1).double()}.get(
        weights, symmetric
    )
    weight.requires_grad_()

    def whole():
        small = torch.fft.rfft2(y) - torch.fft.rfft2(
            torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.fft2(kernel)).real[..., ::scale, ::scale]
        )
        apart = set_apart(torch.fft.irfft2(small * weight, s=size), scale)
        return x + torch.fft.ifft2(torch.fft.fft2(apart) * torch.fft.fft2(kernel).conj()).real

    def fused():
        return data_step(x, torch.fft.rfft2(y), torch.fft.rfft2(kernel), weight, scale)

    close(fused(), whole())
    found, expected = (torch.autograd.grad((step() * seed).sum(), (x, weight)) for step in (fused, whole))
    close(found[0], expected[0])
    close(found[1], expected[1])


def test_backward_keeps_no_image():
    """Two small spectra and the kernel's, where autograd would keep the image's own."""
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    y, blur = torch.fft.rfft2(torch.randn(1, 3, 16, 16)), torch.fft.rfft2(torch.randn(1, 1, 64, 64))
    kept = []
    weight = torch.rand(1, 1, 16, 9, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        data_step(x, y, blur, weight, 4)
    assert {tuple(t.shape) for t in kept} == {tuple(y.shape), tuple(blur.shape), tuple(weight.shape)}
