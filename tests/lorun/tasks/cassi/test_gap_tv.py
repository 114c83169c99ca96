import numpy as np
import pytest
import torch
from torch import Tensor

from lorun.metrics import psnr
from lorun.physics import CASSI
from lorun.tasks.cassi.gap_tv import gap_tv

BANDS, HEIGHT, WIDTH = 5, 40, 36
SIZE = (HEIGHT, WIDTH)


def smooth_cube(bands: int = BANDS) -> Tensor:
    """Two discs of different spectra on a slope, in [0, 1]."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    discs = [(rows - 12) ** 2 + (columns - 10) ** 2 < 64, (rows - 25) ** 2 + (columns - 24) ** 2 < 90]
    spectra = torch.linspace(0.1, 0.6, bands), torch.linspace(0.5, 0.2, bands)
    cube = sum(disc * spectrum[:, None, None] for disc, spectrum in zip(discs, spectra, strict=True))
    return (cube + 0.2 * rows / HEIGHT)[None]


def camera(*shape: int, bands: int = BANDS, step: int | list[int] = 2) -> CASSI:
    return CASSI((torch.rand(shape or (HEIGHT, WIDTH)) > 0.5).float(), bands, step)


def quality(x: Tensor, ref: Tensor) -> float:
    return psnr(x[0].numpy(), ref[0].numpy(), "cassi-float")


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("shape", [SIZE, (BANDS, *SIZE), (1, BANDS, *SIZE)], ids=len)
def test_it_restores_a_smooth_cube(shape, accelerate):
    cube, physics = smooth_cube(), camera(*shape)
    y = physics.A(cube)
    restored = gap_tv(y, physics, iterations=60, accelerate=accelerate)
    assert restored.shape == cube.shape and restored.dtype == cube.dtype
    assert restored.min() >= 0 and restored.max() <= 1
    assert quality(restored, cube) > quality(physics.A_adjoint(y).clamp(0, 1), cube) + 10
    assert quality(restored, cube) > 20


@pytest.mark.parametrize("bands, step", [(1, 2), (3, 0), (4, [3, 0, 5, 1])])
def test_any_bands_and_step(bands, step):
    cube, physics = smooth_cube(bands), camera(bands=bands, step=step)
    y = physics.A(cube)
    start = physics.A_adjoint(y).clamp(0, 1)
    assert quality(gap_tv(y, physics, iterations=30), cube) > quality(start, cube) + 3


def test_more_iterations_fit_the_measurement_better():
    cube, physics = smooth_cube(), camera()
    y = physics.A(cube)
    restored = [gap_tv(y, physics, iterations=count) for count in (1, 5, 20, 80)]
    misfits = [(physics.A(cube) - y).norm() for cube in restored]
    assert all(later < 0.8 * before for before, later in zip(misfits, misfits[1:], strict=False))


def test_acceleration_fits_it_sooner():
    physics = camera()
    y = physics.A(smooth_cube())
    plain, fast = (gap_tv(y, physics, iterations=20, accelerate=flag) for flag in (False, True))
    assert (physics.A(fast) - y).norm() < (physics.A(plain) - y).norm()


@pytest.mark.parametrize("accelerate", [True, False])
def test_with_hardly_any_smoothing_an_iteration_is_the_projection(accelerate):
    """Worked out in numpy; after one projection the next ones have nothing left to correct."""
    mask = np.array([[1.0, 0.5, 0.0], [0.2, 0.0, 1.0]])
    cube = np.array([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[0.3, 0.1, 0.2], [0.9, 0.8, 0.7]]])
    shifted = np.zeros((2, 2, 4))
    shifted[0, :, :3], shifted[1, :, 1:] = mask, mask
    wide = np.zeros((2, 2, 4))
    wide[0, :, :3], wide[1, :, 1:] = cube
    y, gram = (shifted * wide).sum(0), (shifted**2).sum(0)
    v = shifted * y
    v = v + shifted * np.divide(y - (shifted * v).sum(0), gram, out=np.zeros_like(gram), where=gram > 0)
    expected = np.stack([v[0, :, :3], v[1, :, 1:]]).clip(0, 1)
    physics = CASSI(torch.from_numpy(mask), 2, 1)
    for iterations in (1, 3):
        found = gap_tv(torch.from_numpy(y)[None], physics, iterations, weight=1e-9, accelerate=accelerate)
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-6)


def test_a_batch_is_its_samples_and_the_input_stays():
    cubes = torch.cat([smooth_cube(), 0.5 * smooth_cube().flip(-1)])
    physics = camera(2, BANDS, HEIGHT, WIDTH)
    y = physics.A(cubes)
    before = y.clone()
    both = gap_tv(y, physics, iterations=5)
    assert torch.equal(y, before)
    for sample in range(2):
        alone = gap_tv(y[sample : sample + 1], CASSI(physics.mask[sample], BANDS), iterations=5)
        torch.testing.assert_close(both[sample : sample + 1], alone, rtol=0, atol=1e-6)


def test_it_shows_a_bar_only_when_asked(capfd):
    physics = camera()
    y = physics.A(smooth_cube())
    gap_tv(y, physics, iterations=2)
    assert capfd.readouterr().err == ""
    gap_tv(y, physics, iterations=2, progress=True)
    assert "GAP-TV" in capfd.readouterr().err


def spoiled(value: float) -> Tensor:
    y = torch.rand(1, HEIGHT, WIDTH + 8)
    y[0, 3, 4] = value
    return y


@pytest.mark.parametrize(
    "options, words",
    [
        ({"y": torch.rand(1, HEIGHT, WIDTH)}, "y: expected .B, 40, 44"),
        ({"y": torch.rand(HEIGHT, WIDTH + 8)}, "y: expected .B, 40, 44"),
        ({"physics": CASSI(bands=BANDS)}, "holds no mask"),
        ({"y": spoiled(float("nan"))}, "y: holds NaN or Inf"),
        ({"y": spoiled(float("inf"))}, "y: holds NaN or Inf"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"weight": 0}, "weight: expected a number above 0, got 0"),
        ({"weight": -0.1}, "weight: expected"),
        ({"weight": float("nan")}, "weight: expected"),
        ({"tv_iterations": 1}, "tv_iterations: expected at least 2"),
    ],
)
def test_bad_input_says_what_was_expected(options, words):
    with pytest.raises(ValueError, match=words):
        gap_tv(**({"y": torch.rand(1, HEIGHT, WIDTH + 8), "physics": camera()} | options))


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="y: expected float32 or float64, got torch.bfloat16"):
        gap_tv(torch.rand(1, HEIGHT, WIDTH + 8).bfloat16(), camera())
