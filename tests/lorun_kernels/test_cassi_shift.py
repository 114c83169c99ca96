"""Bands moved to the columns in which the sensor sees them, and back."""

import pytest
import torch

import lorun_kernels as lk
from tests.lorun_kernels.cassi_samples import CassiSample


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_shift_moves_each_band_and_unshift_brings_it_back(sample, leading):
    bands = torch.randn(*leading, *sample.cube_shape[1:])
    moved = lk.shift(bands, sample.step)
    expected = torch.zeros(*leading, sample.bands, sample.height, sample.measured)
    for band, offset in enumerate(sample.offsets):
        expected[..., band, :, offset : offset + sample.width] = bands[..., band, :, :]
    assert torch.equal(moved, expected)
    assert torch.equal(lk.unshift(moved, sample.step), bands)


def test_a_stored_shifted_mask_is_its_own_calibration():
    """Even one that is not a shifted 2-D mask: it measures the sum of itself times the shifted cube."""
    sample = CassiSample()
    x, _, _ = sample.draw(2)
    stored = torch.rand(sample.bands, sample.height, sample.measured, dtype=torch.float64)
    expected = (stored * lk.shift(x)).sum(1)
    torch.testing.assert_close(lk.cassi_forward(x, lk.unshift(stored)), expected)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: lk.shift(torch.rand(3, 5)), ValueError, r"shift: x must be \(..., C, H, W\)"),
        (lambda: lk.shift(torch.rand(0, 3, 5)), ValueError, "shift: x must be .* with C >= 1"),
        (lambda: lk.unshift(torch.rand(4, 3, 6)), ValueError, "y must be wider than the largest offset, 6"),
        (lambda: lk.unshift("y"), TypeError, "unshift: y must be a torch.Tensor, got str"),
    ],
)
def test_refuses_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
