"""The two noise modules against the mean, the variance and the distribution that they promise."""

import numpy as np
import pytest
import torch

from lorun.physics import GaussianNoise, ShotNoise

MANY = 200_000


def seeded_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_gaussian_noise_has_its_mean_and_deviation():
    y = torch.full((MANY,), 0.4)
    noise = GaussianNoise(0.05)(y) - y
    assert abs(noise.mean()) < 5 * 0.05 / MANY**0.5
    assert abs(noise.std() / 0.05 - 1) < 0.01
    assert abs((noise.abs() < 0.05).float().mean() - 0.6827) < 0.005


def test_gaussian_noise_keeps_dtype_layout_and_gradient():
    y = torch.rand(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    y.requires_grad_()
    noisy = GaussianNoise(0.1)(y)
    assert noisy.dtype == torch.float64 and noisy.is_contiguous(memory_format=torch.channels_last)
    noisy.sum().backward()
    assert torch.equal(y.grad, torch.ones_like(y))
    assert torch.equal(GaussianNoise(0)(y), y)


def test_every_sample_may_have_a_deviation_of_its_own():
    sigma, y = torch.tensor([0.0, 0.02, 0.3]), torch.zeros(3, 2, 300, 300)
    torch.testing.assert_close(GaussianNoise(sigma)(y).std((1, 2, 3)), sigma, rtol=0.02, atol=0)
    with pytest.raises(ValueError, match=r"sigma: expected a number or one per sample, \(2,\), got \(3,\)"):
        GaussianNoise(sigma)(y[:2])
    with pytest.raises(ValueError, match="sigma: expected a standard deviation of at least 0"):
        GaussianNoise(torch.tensor([0.1, -0.1]))


@pytest.mark.parametrize("make", [lambda g: GaussianNoise(0.1, g), lambda g: ShotNoise(generator=g)])
def test_a_generator_makes_it_reproducible(make):
    y = torch.rand(50, 50)
    first, again, other = make(seeded_generator()), make(seeded_generator()), make(None)
    one, two = first(y), first(y)
    torch.manual_seed(1)
    assert torch.equal(again(y), one) and torch.equal(again(y), two)
    assert not torch.equal(one, two)
    assert not torch.equal(other(y), one)


@pytest.mark.parametrize("level", [0.0001, 0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("efficiency, bits, full_well", [(0.4, 11, 1.0), (0.9, 8, 28 / 2.4), (1.0, 12, 2.0)])
def test_shot_noise_has_the_binomial_mean_and_variance(level, efficiency, bits, full_well):
    unit = full_well / 2**bits
    noisy = ShotNoise(efficiency, bits, full_well)(torch.full((MANY,), level)).double()
    photons = np.floor(np.float32(level) / unit / efficiency)
    mean, variance = photons * efficiency * unit, photons * efficiency * (1 - efficiency) * unit**2
    assert abs(noisy.mean() - mean) <= 5 * (variance / MANY) ** 0.5 + 1e-6 * mean
    assert abs(noisy.var() - variance) <= 0.03 * variance + 1e-12
    counts = noisy / unit
    torch.testing.assert_close(counts, counts.round(), rtol=1e-6, atol=1e-4)


def test_shot_noise_has_the_fields_distribution():
    """TSA-Net's `np.random.binomial((y * 2048 / 0.4).astype(int), 0.4) / 2048`, count by count."""
    for level in (0.004, 0.3):
        y = np.full(MANY, level, dtype=np.float32)
        fields = np.random.default_rng(0).binomial((y * 2048 / 0.4).astype(int), 0.4)
        ours = (ShotNoise()(torch.from_numpy(y)).numpy() * 2048).round().astype(int)
        length = max(fields.max(), ours.max()) + 1
        shares = [np.bincount(counts, minlength=length).cumsum() / MANY for counts in (fields, ours)]
        # Kolmogorov-Smirnov: two samples of one distribution are further apart once in a million times.
        assert np.abs(shares[0] - shares[1]).max() < 2.7 * (2 / MANY) ** 0.5


def test_a_full_well_is_a_scale_of_y():
    y = torch.rand(64, 64)
    plain = ShotNoise(generator=seeded_generator())
    scaled = ShotNoise(full_well=4, generator=seeded_generator())
    torch.testing.assert_close(scaled(4 * y), 4 * plain(y), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_shot_noise_keeps_shape_and_dtype_and_has_no_gradient(dtype):
    y = torch.rand(2, 3, 5).to(dtype).requires_grad_()
    noisy = ShotNoise()(y)
    assert noisy.shape == y.shape and noisy.dtype == dtype and not noisy.requires_grad
    assert ShotNoise()(y[:0]).shape == (0, 3, 5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: GaussianNoise(-0.1), "sigma: expected a standard deviation of at least 0, got -0.1"),
        (lambda: GaussianNoise(float("nan")), "sigma: expected"),
        (lambda: GaussianNoise(float("inf")), "sigma: expected"),
        (lambda: ShotNoise(0), "quantum_efficiency: expected a share in .0, 1., got 0"),
        (lambda: ShotNoise(1.1), "quantum_efficiency: expected"),
        (lambda: ShotNoise(bits=0), "bits: expected 1 to 16, got 0"),
        (lambda: ShotNoise(bits=17), "bits: expected 1 to 16, got 17"),
        (lambda: ShotNoise(full_well=0), "full_well: expected a value above 0, got 0"),
        (lambda: ShotNoise(full_well=float("inf")), "full_well: expected"),
        (lambda: ShotNoise()(torch.tensor([0.1, -0.1])), "y: .* at least 0"),
        (lambda: ShotNoise()(torch.tensor([0.1, float("nan")])), "y: .* finite"),
        (lambda: ShotNoise()(torch.tensor([0.1, float("inf")])), "y: .* finite"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()
