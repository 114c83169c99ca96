import itertools

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch

from lorun.errors import ArgumentError
from lorun.physics import SuperResolution
from lorun.physics.bicubic import enlarge
from tests.lorun.physics.deepinv_operators import deepinv

SCALES = [1, 2, 3, 4, 5]
KERNELS = [(3, 3), (4, 4), (2, 5), (1, 1)]


def random_kernel(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def by_scipy(x: np.ndarray, kernel: np.ndarray, scale: int) -> np.ndarray:
    return scipy.ndimage.convolve(x, kernel, mode="wrap")[::scale, ::scale]


def dense(kernel: np.ndarray, scale: int, size: tuple[int, int]) -> torch.Tensor:
    """Phi, (measurements, pixels), by scipy, column by column."""
    columns = [by_scipy(pixel.reshape(size), kernel, scale).ravel() for pixel in np.eye(size[0] * size[1])]
    return torch.from_numpy(np.stack(columns, 1))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale, shape", list(itertools.product(SCALES, KERNELS)))
@pytest.mark.parametrize("small", [(5, 6), (6, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_scipys_convolution_and_the_upper_left_pixels(scale, shape, small, channels):
    kernels = random_kernel(2, *shape)
    x = torch.randn(2, channels, small[0] * scale, small[1] * scale, dtype=torch.float64)
    for kernel in (kernels, kernels[0]):
        found = SuperResolution(kernel, scale, channels).A(x)
        each = kernel if kernel.ndim == 3 else [kernel, kernel]
        expected = [
            [by_scipy(band.numpy(), of.numpy(), scale) for band in image]
            for image, of in zip(x, each, strict=True)
        ]
        close(found, torch.from_numpy(np.array(expected)))


def test_the_published_kernels_blur_as_scipy_says(lorun_data):
    image = torch.rand(1, 1, 60, 63, dtype=torch.float64)
    for kernel in scipy.io.loadmat(lorun_data / "sr/kernels_12.mat")["kernels"].ravel():
        found = SuperResolution(torch.from_numpy(kernel).double(), 3, 1).A(image)[0, 0]
        expected = by_scipy(image[0, 0].numpy(), kernel.astype(float), 3)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("scale, shape", list(itertools.product(SCALES, [(3, 3), (2, 4)])))
@pytest.mark.parametrize("small", [(3, 4), (4, 5)])
def test_the_adjoint_and_both_steps_are_those_of_a_dense_matrix(scale, shape, small):
    size = (small[0] * scale, small[1] * scale)
    kernels = random_kernel(2, *shape) / 3
    physics = SuperResolution(kernels, scale, channels=1)
    y = torch.randn(2, 1, *small, dtype=torch.float64)
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    rates = torch.tensor([0.3, 0.07], dtype=torch.float64)
    back, pgd, hqs = (physics.A_adjoint(y), physics.pgd_step(x, y, rates), physics.hqs_step(x, y, rates))
    for b in range(2):
        phi = dense(kernels[b].numpy(), scale, size)
        close(back[b].flatten(), phi.T @ y[b].flatten())
        close(
            pgd[b].flatten(),
            x[b].flatten() - rates[b] * phi.T @ (phi @ x[b].flatten() - y[b].flatten()),
        )
        system = phi.T @ phi + rates[b] * torch.eye(phi.shape[1], dtype=torch.float64)
        right = phi.T @ y[b].flatten() + rates[b] * x[b].flatten()
        close(hqs[b].flatten(), torch.linalg.solve(system, right))


@pytest.mark.parametrize("scale, shape", list(itertools.product([1, 2, 3, 4], [(3, 3), (4, 4), (5, 3)])))
def test_it_is_deepinvs_circular_downsampling(scale, shape):
    kernel = random_kernel(*shape)
    x, y = (torch.randn(2, 3, 5 * of, 6 * of, dtype=torch.float64) for of in (scale, 1))
    theirs = deepinv().physics.Downsampling(
        img_size=tuple(x.shape[1:]), filter=kernel[None, None], factor=scale, padding="circular"
    )
    ours = SuperResolution(kernel, scale)
    close(ours.A(x), theirs.A(x))
    close(ours.A_adjoint(y), theirs.A_adjoint(y))
    close(ours.hqs_step(x, y, 0.5), theirs.double().prox_l2(x, y, gamma=2.0))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_pgd_step_descends_along_autograds_gradient(scale):
    physics = SuperResolution(random_kernel(2, 3, 3), scale)
    x = torch.randn(2, 3, 4 * scale, 5 * scale, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(0.5 * (physics.A(x) - y).square().sum(), x)
    close(physics.pgd_step(x, y, 0.7), x - 0.7 * gradient)


@pytest.mark.parametrize("step", ["pgd_step", "hqs_step"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_gradients(step, scale):
    def run(x, y, rate, kernel):
        return getattr(SuperResolution(kernel, scale, 2), step)(x, y, rate)

    x = torch.randn(2, 2, 2 * scale, 3 * scale, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 2, 3, dtype=torch.float64)
    kernel = random_kernel(2, 2, 2)
    for rate in (torch.tensor(0.4), torch.rand(2)):
        rate = rate.double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, rate: run(x, y, rate, kernel), (x, rate))
    assert torch.autograd.gradcheck(
        lambda y, kernel: run(x.detach(), y, 0.4, kernel),
        (y.clone().requires_grad_(), kernel.clone().requires_grad_()),
    )


@pytest.mark.parametrize("step", ["pgd_step", "hqs_step"])
def test_a_prepared_measurement_gives_the_same(step):
    physics = SuperResolution(random_kernel(2, 5, 5), 3, noise_level=0.1)
    x, y = torch.randn(2, 3, 12, 9, dtype=torch.float64), torch.randn(2, 3, 4, 3, dtype=torch.float64)
    run = getattr(physics, step)
    assert torch.equal(run(x, physics.prepare(y), 0.3), run(x, y, 0.3))


def test_a_tiny_mu_projects_and_divides_by_nothing_small():
    """In float32, where the usual form, which divides by mu, would lose everything."""
    physics = SuperResolution(torch.ones(3, 3) / 9, 2, 1)
    y = torch.rand(1, 1, 8, 8)
    z = physics.hqs_step(torch.rand(1, 1, 16, 16), y, 1e-9)
    torch.testing.assert_close(physics.A(z), y, rtol=0, atol=1e-3)


def test_it_starts_from_bicubic_interpolation():
    y = torch.rand(2, 3, 4, 5)
    assert torch.equal(SuperResolution(torch.ones(1, 1), 3).start(y), enlarge(y, 3))


def test_a_network_is_told_the_noise_level_and_the_scale():
    y = torch.rand(2, 3, 4, 4)
    told = SuperResolution(torch.ones(1, 1), 4, noise_level=torch.tensor([0.0, 0.05])).condition(y)
    torch.testing.assert_close(told, torch.tensor([[0, 0.25], [0.5, 0.25]]))
    assert len(SuperResolution.conditions) == 2
    one_for_all = SuperResolution(torch.ones(1, 1), 2, noise_level=0.1).condition(y)
    torch.testing.assert_close(one_for_all, torch.tensor([[1, 0.5], [1, 0.5]]))


def test_noise_has_the_level_that_each_image_is_given():
    x = torch.zeros(3, 3, 128, 128)
    levels = torch.tensor([0.0, 0.02, 0.1])
    generator = torch.Generator().manual_seed(0)
    noisy = SuperResolution(torch.ones(1, 1), 2, noise_level=levels, generator=generator)(x)
    torch.testing.assert_close(noisy.std((1, 2, 3)), levels, rtol=0.03, atol=0)
    assert SuperResolution(torch.ones(1, 1), 2).noise is None


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_computed_in_float32(dtype, tolerance):
    physics = SuperResolution(torch.ones(3, 3) / 9, 2)
    x = torch.rand(1, 3, 14, 18)
    y = physics.A(x)
    for found, expected in (
        (physics.A(x.to(dtype)), y),
        (physics.A_adjoint(y.to(dtype)), physics.A_adjoint(y)),
        (physics.hqs_step(x.to(dtype), y.to(dtype), 0.5), physics.hqs_step(x, y, 0.5)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


def test_it_moves_with_its_network_and_keeps_no_kernel_in_a_file():
    physics = SuperResolution(torch.ones(3, 3), 2, noise_level=0.1).double()
    assert physics.kernel.dtype == physics.noise_level.dtype == torch.float64
    assert physics.state_dict() == {} and "kernel=(3, 3), scale=2" in repr(physics)
    whole = SuperResolution(torch.ones(3, 3, dtype=torch.int64), 2)
    assert whole.kernel.is_floating_point()


def test_numbers_and_arrays_of_numpy_are_taken():
    kernel, levels = np.ones((3, 3)) / 9, [0.1, 0.2]
    physics = SuperResolution(kernel, np.int64(2), noise_level=levels)
    x = torch.rand(2, 3, 8, 8)
    assert physics(x).shape == (2, 3, 4, 4) and type(physics.scale) is int
    torch.testing.assert_close(physics.noise_level, torch.tensor(levels))


def test_one_without_a_kernel_is_for_networks_that_are_told_it():
    physics = SuperResolution(scale=2)
    for call in (physics.A, physics.A_adjoint, physics.start, physics.prepare):
        with pytest.raises(ValueError, match="kernel: this model has none; pass physics=SuperResolution"):
            call(torch.rand(1, 3, 8, 8))
    assert physics.for_size((8, 8)).A(torch.rand(1, 3, 8, 8)).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="size: expected a height and a width that scale 2 divides, got 9x8"):
        physics.for_size((9, 8))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"kernel": torch.ones(3)}, r"kernel: expected \(kh, kw\)"),
        ({"kernel": torch.ones(0, 3)}, r"kernel: expected \(kh, kw\), .* got \(0, 3\)"),
        ({"kernel": torch.ones(3, 3) * 1j}, r"kernel: expected \(kh, kw\)"),
        ({"kernel": torch.full((3, 3), float("nan"))}, "kernel: holds NaN or Inf"),
        ({"scale": 0}, "scale: expected a whole number of at least 1, such as 2, got 0"),
        ({"scale": 1.5}, "scale: expected a whole number"),
        ({"scale": True}, "scale: expected a whole number"),
        ({"channels": 0}, "channels: expected a whole number of at least 1, got 0"),
        ({"channels": 1.5}, "channels: expected a whole number of at least 1, got 1.5"),
        ({"noise_level": torch.zeros(0)}, "noise_level: expected a standard deviation"),
        ({"noise_level": -0.1}, "noise_level: expected a standard deviation of at least 0"),
        ({"noise_level": float("inf")}, "noise_level: expected a standard deviation"),
        ({"noise_level": torch.zeros(2, 2)}, "noise_level: expected a standard deviation"),
    ],
)
def test_arguments_out_of_their_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        SuperResolution(**({"kernel": torch.ones(3, 3)} | arguments))


def test_images_and_kernels_that_do_not_fit():
    physics, many = SuperResolution(torch.ones(5, 3), 2), SuperResolution(torch.ones(2, 3, 3), 2)
    with pytest.raises(
        ValueError, match="x: expected a height and a width that scale 2 divides, got 8x7; crop to 8x6"
    ):
        physics.A(torch.rand(1, 3, 8, 7))
    with pytest.raises(ArgumentError, match="kernel: expected one within the image of 4x8 pixels, got 5x3"):
        physics.A(torch.rand(1, 3, 4, 8))
    with pytest.raises(ArgumentError, match="kernel: expected one within the image of 4x8 pixels, got 5x3"):
        physics.prepare(torch.rand(1, 3, 2, 4))
    with pytest.raises(ValueError, match="kernel: expected one, or one for each of 3 images in x, got 2"):
        many.A(torch.rand(3, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"y: expected images of 3 channels, \(B, 3, h, w\), got \(1, 1, 8, 8\)"
    ):
        physics.check_measurement(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"x: expected .*, what y enlarges to by scale 2, got"):
        physics.hqs_step(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 5), 0.1)


@pytest.mark.parametrize("shape", [(1, 3, 6, 7), (1, 1, 6, 6), (2, 3, 6, 6), (3, 6, 6)])
@pytest.mark.parametrize("step", ["pgd_step", "hqs_step"])
def test_a_step_takes_images_of_the_shape_that_y_enlarges_to(step, shape):
    physics = SuperResolution(torch.ones(3, 3) / 9, 3)
    y = torch.rand(1, 3, 2, 2)
    for measured in (y, physics.prepare(y)):
        with pytest.raises(
            ValueError, match=r"x: expected \(1, 3, 6, 6\), what y enlarges to by scale 3, got"
        ):
            getattr(physics, step)(torch.rand(shape), measured, 0.3)


def test_a_small_mu_of_each_sample_survives_half_precision():
    physics = SuperResolution(torch.ones(4, 4) / 16, 1, 1)  # its spectrum has zeros
    w, y, mu = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.full((2,), 1e-8)
    assert physics.hqs_step(w.half(), y.half(), mu).isfinite().all()


def test_as_many_noise_levels_as_images():
    physics = SuperResolution(torch.ones(1, 1), 2, noise_level=torch.zeros(2))
    for call, name in ((physics.A, "x"), (physics.start, "y"), (physics.condition, "y"), (physics, "x")):
        with pytest.raises(
            ValueError, match=f"noise_level: expected one, or one for each of 3 images in {name}"
        ):
            call(torch.rand(3, 3, 4, 4))
