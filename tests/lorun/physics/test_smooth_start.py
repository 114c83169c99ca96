"""The start of CASSI against its normal equations, and what it is worth on scenes."""

import numpy as np
import pytest
import torch

from lorun.data import CASSI_WAVELENGTHS, interpolate_bands, read_cube
from lorun.metrics import psnr
from lorun.physics import CASSI, smooth_start
from lorun.physics.smooth_start import ROUGHNESS, SMOOTHING, cosines

BANDS, HEIGHT, WIDTH = 5, 6, 7


def camera(dtype=torch.float64, bands=BANDS, size=(HEIGHT, WIDTH)) -> CASSI:
    return CASSI(torch.rand(size).to(dtype), bands)


def scene(bands=28, height=48, width=64) -> torch.Tensor:
    """Two materials with a sharp border between them, in uneven light."""
    band = torch.linspace(0, 1, bands)[:, None, None]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    light = 0.6 + 0.3 * torch.sin(rows / 7) * torch.cos(columns / 9)
    material = torch.where(columns + rows / 2 < 45, 0.2 + 0.7 * band, 0.9 - 0.6 * band)
    return (light * material)[None]


def dense_matrices(physics):
    """The cosines E, Phi E, and the differences between neighbouring weights, as matrices."""
    scale = torch.tensor(ROUGHNESS[:BANDS], dtype=torch.float64).sqrt()
    basis = cosines(BANDS, BANDS) * scale
    unit = torch.eye(BANDS * HEIGHT * WIDTH, dtype=torch.float64).view(-1, BANDS, HEIGHT, WIDTH)
    seen = physics.A(torch.einsum("ck,nkhw->nchw", basis, unit)).flatten(1).T
    differences = torch.cat([unit.diff(dim=2).flatten(1), unit.diff(dim=3).flatten(1)], 1).T
    return basis, seen, differences


def test_a_round_solves_the_normal_equations(monkeypatch):
    physics = camera()
    y = physics.A(torch.rand(1, BANDS, HEIGHT, WIDTH).double())
    basis, seen, differences = dense_matrices(physics)
    system = seen.T @ seen + SMOOTHING * differences.T @ differences
    weights = torch.linalg.solve(system, seen.T @ y.flatten()).view(1, BANDS, HEIGHT, WIDTH)
    expected = torch.einsum("ck,nkhw->nchw", basis, weights)
    monkeypatch.setattr(smooth_start, "ITERATIONS", 400)
    found = smooth_start.smooth_start(physics, y, torch.zeros_like(expected), rounds=1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_rounds_that_know_the_edges_are_worth_more_than_iterations(monkeypatch):
    x = scene()
    physics = camera(torch.float32, 28, x.shape[2:])
    y = physics.A(x)
    guess = torch.zeros_like(x)
    with_edges = smooth_start.smooth_start(physics, y, guess, rounds=5)
    monkeypatch.setattr(smooth_start, "ITERATIONS", 5 * smooth_start.ITERATIONS)
    without = smooth_start.smooth_start(physics, y, guess, rounds=1)
    quality = [psnr(cube[0].numpy(), x[0].numpy(), "cassi-float") for cube in (with_edges, without)]
    assert quality[0] > quality[1] + 0.5


def test_it_restores_a_scene_far_better_than_the_average():
    x = scene()
    physics = camera(torch.float32, 28, x.shape[2:])
    y = physics.A(x)
    average = CASSI(physics.mask, start="average").start(y)
    found, before = (
        psnr(cube[0].numpy(), x[0].numpy(), "cassi-float") for cube in (physics.start(y), average)
    )
    assert found > before + 6


# Conjugate gradients that are stopped early amplify rounding: float32 has about three digits left.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-3), (torch.bfloat16, 0.05)])
def test_every_dtype_comes_out_alike(dtype, tolerance):
    x = scene(height=24, width=40)
    physics = camera(torch.float32, 28, x.shape[2:])
    expected = physics.start(physics.A(x))
    other = CASSI(physics.mask.to(dtype))
    found = other.start(other.A(x.to(dtype)))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().mean() < tolerance


def test_autocast_does_not_touch_it():
    x = scene(height=24, width=40)
    physics = camera(torch.float32, 28, x.shape[2:])
    y = physics.A(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = physics.start(y)
    torch.testing.assert_close(found, physics.start(y), rtol=0, atol=1e-5)


def test_samples_of_a_batch_do_not_meet():
    x = torch.cat([scene(height=24, width=40), scene(height=24, width=40).flip(3) * 0.3])
    physics = camera(torch.float32, 28, x.shape[2:])
    y = physics.A(x)
    alone = torch.cat([physics.start(sample[None]) for sample in y])
    torch.testing.assert_close(physics.start(y), alone, rtol=0, atol=1e-3)


def test_samples_with_masks_of_their_own_do_not_meet():
    masks = torch.stack([torch.rand(24, 40), 0.1 * torch.rand(24, 40)]).unsqueeze(1).expand(-1, 28, -1, -1)
    both = CASSI(masks)
    y = both.A(scene(height=24, width=40).expand(2, -1, -1, -1).contiguous())
    alone = torch.cat([CASSI(mask).start(sample[None]) for mask, sample in zip(masks, y, strict=True)])
    torch.testing.assert_close(both.start(y), alone, rtol=0, atol=1e-2)


def test_an_empty_batch_stays_one():
    assert camera(torch.float32).start(torch.zeros(0, HEIGHT, WIDTH + 2 * (BANDS - 1))).shape[0] == 0


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1), (2, 3)])
def test_small_and_black_scenes_stay_finite(size):
    physics = camera(torch.float32, 28, size)
    y = physics.A(torch.zeros(1, 28, *size))
    assert (physics.start(y) == 0).all()
    assert torch.isfinite(physics.start(y + 1)).all()


def test_the_roughness_is_that_of_the_training_scenes(lorun_data):
    onto, sums = np.array(CASSI_WAVELENGTHS), np.zeros(len(ROUGHNESS))
    basis = cosines(28, len(ROUGHNESS)).float()
    for path in sorted((lorun_data / "hsi" / "train").glob("cave_*.npz")):
        cube = read_cube(path)
        values = torch.from_numpy(interpolate_bands(cube.values, cube.wavelengths, onto))
        weights = torch.einsum("ck,chw->khw", basis, values)
        for dim in (1, 2):
            sums += weights.diff(dim=dim).square().mean((1, 2)).numpy()
    measured = sums / sums[1]
    assert np.abs(np.log(measured / np.array(ROUGHNESS))).max() < np.log(1.5), measured
