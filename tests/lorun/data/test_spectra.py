import numpy as np
import pytest

from lorun.data import CASSI_WAVELENGTHS, interpolate_bands, lift_rgb

ONTO = np.array(CASSI_WAVELENGTHS)
EVERY_TEN = np.arange(400.0, 701, 10)


def ramp(nm: np.ndarray) -> np.ndarray:
    """A cube (C, 2, 3) whose spectra are straight lines, each pixel's another."""
    start, slope = np.random.default_rng(0).random((2, 1, 2, 3))
    return (start + slope * (nm[:, None, None] - 400) / 300).astype(np.float32)


@pytest.mark.parametrize("nm", [EVERY_TEN, np.array([453.5, 500, 648]), np.array([400.0, 700])], ids=len)
def test_linear_spectra_are_interpolated_exactly(nm):
    found = interpolate_bands(ramp(nm), nm, ONTO)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ramp(ONTO), rtol=0, atol=1e-6)


def test_interpolation_worked_out_by_hand():
    cube = np.array([0.2, 0.6, 0.4], np.float16).reshape(3, 1, 1)
    found = interpolate_bands(cube, [500, 520, 530], [500, 505, 520, 528, 530])
    np.testing.assert_allclose(found.ravel(), [0.2, 0.3, 0.6, 0.44, 0.4], atol=1e-3)


def test_bands_that_are_there_stay_as_they_are():
    cube = np.random.default_rng(0).random((28, 2, 3)).astype(np.float32)
    assert np.array_equal(interpolate_bands(cube, ONTO, ONTO), cube)


@pytest.mark.parametrize("nm", [np.linspace(460, 700, 31), np.linspace(400, 640, 31)], ids=["short", "long"])
def test_nothing_is_extrapolated(nm):
    words = f"cannot interpolate 453.5 to 648 nm from bands of {nm[0]:g} to {nm[-1]:g} nm; give a cube"
    with pytest.raises(ValueError, match=words):
        interpolate_bands(ramp(nm), nm, ONTO)


def test_every_band_needs_a_wavelength():
    with pytest.raises(ValueError, match="wavelengths: expected one for each of 31 bands, got 30"):
        interpolate_bands(ramp(EVERY_TEN), EVERY_TEN[:-1], ONTO)


def lifted(*colours) -> np.ndarray:
    """Spectra of RGB colours, (C, number of colours)."""
    return lift_rgb(np.array([colours], np.uint8), ONTO)[:, 0]


def test_white_stays_white_and_grey_grey():
    spectra = lifted((255, 255, 255), (128, 128, 128), (0, 0, 0))
    assert spectra.dtype == np.float32
    np.testing.assert_allclose(spectra, np.tile([1, (128 / 255) ** 2.2, 0], (28, 1)), rtol=0, atol=1e-6)


def test_any_colour_is_a_smooth_spectrum_in_the_unit_range():
    colours = np.random.default_rng(0).integers(0, 256, (50, 3))
    spectra = lifted(*colours, (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
    assert spectra.min() >= 0 and spectra.max() <= 1 + 1e-6
    assert np.abs(np.diff(spectra, axis=0)).max() < 0.2
    assert np.abs(np.diff(spectra, 2, axis=0)).max() < 0.1


def test_red_is_long_and_blue_short():
    red, green, blue = lifted((255, 0, 0), (0, 255, 0), (0, 0, 255)).T
    assert ONTO[red.argmax()] > 620 and ONTO[blue.argmax()] < 460 and 530 < ONTO[green.argmax()] < 550


def test_pixels_stay_where_they_are():
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = 255
    cube = lift_rgb(image, ONTO)
    assert cube.shape == (28, 2, 3) and cube[:, 1, 2].min() > 0.99
    assert cube.sum() == pytest.approx(28)
