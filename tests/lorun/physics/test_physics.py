"""What every measurement model promises, over a table of all of them, against Phi column by column."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorun.physics import CASSI, BlockCS, GaussianNoise, Linear, Physics, SuperResolution
from tests.lorun.physics import deepinv_operators

BATCH = 2
# A number, a scalar tensor, one per sample.
STEP_SIZES = [0.7, torch.tensor(0.4), torch.tensor([0.2, 1.5])]
TIGHT = {"tolerance": 1e-13, "iterations": 2000}


@dataclass
class Case:
    make: Callable[[], Physics]
    size: tuple[int, int]
    """(H, W) of the images that are measured."""
    sizes: bool = False
    """Whether it measures images of any size."""
    multiple: int = 1
    """Of which a height and a width must be multiples."""


def block_cs(adapter_rank: int = 0, **options) -> BlockCS:
    physics = BlockCS(**({"ratio": 0.3, "block": 4} | options), adapter_rank=adapter_rank).double()
    if adapter_rank:
        torch.nn.init.normal_(physics.phi_up)
    return physics


def cassi(step: int | list[int], *shape: int) -> CASSI:
    """A third of the mask is closed, and one row."""
    mask = torch.rand(shape, dtype=torch.float64)
    mask = mask * (torch.rand_like(mask) > 1 / 3)
    mask[..., 0, :] = 0
    return CASSI(mask, 4, step, start="average")


def super_resolution(scale: int, *kernel: int) -> SuperResolution:
    """Values of both signs, around 1 in sum."""
    random = torch.randn(kernel, dtype=torch.float64)
    return SuperResolution(random / random.numel() + 1 / kernel[-1] / kernel[-2], scale, channels=2)


def matrix() -> Linear:
    phi = torch.randn(30, 2 * 3 * 4, dtype=torch.float64)
    return Linear(
        lambda x: x.flatten(1) @ phi.T,
        lambda y: (y @ phi).view(-1, 2, 3, 4),
        channels=2,
        size=(3, 4),
        **TIGHT,
    )


def convolution() -> Linear:
    kernel = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    return Linear(lambda x: F.conv2d(x, kernel), lambda y: F.conv_transpose2d(y, kernel), channels=2, **TIGHT)


def frequencies() -> Linear:
    """Half of the Fourier coefficients: complex measurements."""
    kept = torch.rand(1, 6, 5) > 0.5
    return Linear(
        lambda x: kept * torch.fft.fft2(x, norm="ortho"),
        lambda y: torch.fft.ifft2(kept * y, norm="ortho").real,
        channels=1,
        size=(6, 5),
        **TIGHT,
    )


def from_deepinv(name: str) -> Linear:
    operator = deepinv_operators.make(name)
    channels = deepinv_operators.OPERATORS[name][0]
    size = deepinv_operators.SIZE
    return Linear(operator.A, operator.A_adjoint, channels=channels, size=size, **TIGHT)


CASES = {
    "BlockCS": Case(block_cs, (8, 4), sizes=True),
    "BlockCS, adapter": Case(lambda: block_cs(3), (4, 8), sizes=True),
    "BlockCS, given phi": Case(
        lambda: block_cs(ratio=None, phi=torch.randn(9, 16), learned=False), (4, 4), sizes=True
    ),
    "BlockCS, odd size": Case(block_cs, (5, 3), sizes=True),
    "BlockCS, one pixel": Case(block_cs, (1, 1), sizes=True),
    **{
        f"CASSI, step {step}, mask of {len(shape)} dimensions": Case(
            lambda step=step, shape=shape: cassi(step, *shape), (3, 5)
        )
        for step, shape in itertools.product([2, 0, 3, [3, 0, 7, 3]], [(3, 5), (4, 3, 5), (BATCH, 4, 3, 5)])
    },
    **{
        f"SuperResolution, scale {scale}, kernel {kernel}": Case(
            lambda scale=scale, kernel=kernel: super_resolution(scale, *kernel),
            size,
            sizes=True,
            multiple=scale,
        )
        for scale, kernel, size in [
            (1, (3, 3), (5, 4)),
            (2, (3, 3), (4, 6)),
            (2, (BATCH, 2, 5), (6, 10)),
            (3, (BATCH, 3, 1), (3, 9)),
            (4, (4, 4), (4, 8)),
        ]
    },
    "Linear, matrix": Case(matrix, (3, 4)),
    "Linear, convolution": Case(convolution, (5, 6), sizes=True),
    "Linear, complex": Case(frequencies, (6, 5)),
    **{
        f"deepinv, {name}": Case(lambda name=name: from_deepinv(name), deepinv_operators.SIZE)
        for name in deepinv_operators.OPERATORS
    },
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def image(case: Case, physics: Physics) -> Tensor:
    return torch.randn(BATCH, physics.channels, *case.size, dtype=torch.float64)


def measurement(physics: Physics, x: Tensor) -> Tensor:
    """Noise in the shape of A(x), which is no measurement of any image."""
    return torch.randn_like(physics.A(x).detach())


def real(y: Tensor) -> Tensor:
    """A row of real numbers for each sample."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def dense_phi(physics: Physics, shape: torch.Size) -> Tensor:
    """Phi of every sample, (B, measurements, pixels), for images of `shape`."""
    columns = []
    for pixel in range(shape[1:].numel()):
        x = torch.zeros(shape, dtype=torch.float64)
        x.flatten(1)[:, pixel] = 1
        columns.append(real(physics.A(x)))
    return torch.stack(columns, 2).detach()


def times(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", matrix, real(x))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found.flatten(1), expected, rtol=tolerance, atol=tolerance)


def test_A_is_linear_and_A_adjoint_its_adjoint(case):
    physics = case.make()
    x = image(case, physics)
    y, phi = measurement(physics, x), dense_phi(physics, x.shape)
    close(real(physics.A(x)), times(phi, x))
    back = physics.A_adjoint(y)[..., : case.size[0], : case.size[1]]
    close(back, times(phi.mT, y))
    assert physics.adjointness_error(x) < 1e-12


def test_pgd_step_is_equation_5(case):
    physics = case.make()
    y = measurement(physics, image(case, physics))
    x = torch.randn_like(physics.A_adjoint(y))
    phi = dense_phi(physics, x.shape)
    back_projected = times(phi.mT, times(phi, x) - real(y))
    for rho in STEP_SIZES:
        each = torch.as_tensor(rho, dtype=torch.float64).expand(BATCH)[:, None]
        close(physics.pgd_step(x, y, rho), x.flatten(1) - each * back_projected)


def test_hqs_step_solves_equation_9(case):
    physics = case.make()
    y = measurement(physics, image(case, physics))
    w = torch.randn_like(physics.A_adjoint(y))
    phi = dense_phi(physics, w.shape)
    for mu in STEP_SIZES:
        each = torch.as_tensor(mu, dtype=torch.float64).expand(BATCH)[:, None]
        system = phi.mT @ phi + torch.diag_embed(each.expand(BATCH, phi.shape[2]))
        right = times(phi.mT, y) + each * w.flatten(1)
        close(physics.hqs_step(w, y, mu), torch.linalg.solve(system, right), 1e-9)


@pytest.mark.parametrize("step", ["pgd_step", "hqs_step"])
def test_a_step_size_is_one_or_one_per_sample(case, step):
    physics = case.make()
    y = measurement(physics, image(case, physics))
    with pytest.raises(ValueError, match=r"rho|mu"):
        getattr(physics, step)(physics.A_adjoint(y), y, torch.full((BATCH + 1,), 0.5))


def test_a_network_starts_from_an_image(case):
    physics = case.make()
    y = physics.A(image(case, physics))
    assert physics.start(y).shape == physics.A_adjoint(y).shape
    assert physics.start(y).dtype == torch.float64


def test_a_call_is_A_with_this_models_noise(case):
    physics = case.make()
    x = image(case, physics)
    assert physics.noise is None and torch.equal(physics(x), physics.A(x))
    y = measurement(physics, x)
    physics.noise = GaussianNoise(0.1, torch.Generator().manual_seed(3))
    noise = GaussianNoise(0.1, torch.Generator().manual_seed(3))(torch.zeros_like(y))
    assert torch.equal(physics.A(x), physics.A(x))
    torch.testing.assert_close(physics(x), physics.A(x) + noise)
    assert noise.abs().max() > 0


def test_a_measurement_of_another_shape_is_refused(case):
    physics = case.make()
    y = physics.A(image(case, physics))
    physics.check_measurement(y)
    for wrong in (torch.cat([y, y[:, :1]], 1), y[0]):
        with pytest.raises(ValueError, match="^y: "):
            physics.check_measurement(wrong)
        with pytest.raises(ValueError, match="^y: "):
            physics.start(wrong)


def test_an_image_of_another_shape_is_refused(case):
    physics = case.make()
    x = image(case, physics)
    wrong = [torch.cat([x, x[:, :1]], 1)]
    if not case.sizes:
        wrong.append(torch.cat([x, x[..., :1]], -1))
    for image_of_another_shape in wrong:
        with pytest.raises(ValueError, match="^x: expected"):
            physics.A(image_of_another_shape)


def test_channels_and_size_are_those_of_its_images(case):
    physics = case.make()
    assert physics.size == (None if case.sizes else case.size)
    assert physics.A_adjoint(physics.A(image(case, physics))).shape[1] == physics.channels


def test_for_size_measures_single_images_of_that_size(case):
    physics = case.make()
    other = (13 * case.multiple, 11 * case.multiple)
    for size in (case.size, other) if case.sizes else (case.size,):
        same = physics.for_size(size)
        assert isinstance(same, type(physics)) and same.size in (None, size)
        x = torch.zeros(1, physics.channels, *size, dtype=torch.float64)
        assert same.start(same.A(x)).shape[1] == physics.channels


def test_parameters_with_a_rate_of_their_own_are_the_networks(case):
    physics = case.make()
    trained = [p for p in physics.parameters() if p.requires_grad]
    groups = physics.parameter_groups()
    assert all(isinstance(name, str) for name in groups)
    assert all(any(p is other for other in trained) for group in groups.values() for p in group)


def test_a_physics_is_abstract():
    with pytest.raises(TypeError, match="abstract.*A_adjoint.*check_measurement.*hqs_step"):
        Physics()
