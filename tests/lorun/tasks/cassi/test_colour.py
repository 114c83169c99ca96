import numpy as np
import pytest

from lorun.tasks.cassi.colour import check_wavelengths, colour_matching, spectrum_to_rgb, wavelength_to_rgb

# Rows of the CIE 1931 2-degree observer, ISO/CIE 11664-1.
TABLE = {
    450: (0.3362, 0.0380, 1.77211),
    500: (0.0049, 0.3230, 0.2720),
    550: (0.43345, 0.99495, 0.00875),
    600: (1.0622, 0.6310, 0.0008),
    650: (0.2835, 0.1070, 0.0),
}
EVEN = np.arange(400.0, 701, 10)
# The 28 bands of the field's CASSI simulation.
UNEVEN = np.array(
    [453.5, 457.5, 462, 466, 471.5, 476.5, 481.5, 487, 492.5, 498, 504, 510, 516, 522.5]
    + [529.5, 536.5, 544, 551.5, 558.5, 567.5, 575.5, 584.5, 594.5, 604, 614.5, 625, 636.5, 648]
)


@pytest.mark.parametrize("nm", TABLE)
def test_the_fit_is_near_the_table(nm):
    assert colour_matching(nm) == pytest.approx(TABLE[nm], abs=0.014)


def test_the_luminosity_peaks_at_555_nm_and_the_three_have_one_area():
    nm = np.arange(360.0, 831)
    x, y, z = colour_matching(nm)
    assert nm[y.argmax()] == pytest.approx(555, abs=3)
    assert x.sum() == pytest.approx(106.86, rel=0.01)
    assert y.sum() == pytest.approx(106.86, rel=0.01)
    assert z.sum() == pytest.approx(106.89, rel=0.01)


@pytest.mark.parametrize("nm", [EVEN, UNEVEN, [400, 410, 700], [550], [600, 900], [700, 820]])
def test_ones_are_white_zeros_black_and_between_grey(nm):
    levels = np.ones((len(nm), 2, 3)) * np.array([0, 0.5, 1])
    rgb = spectrum_to_rgb(levels, nm)
    assert rgb.shape == (2, 3, 3) and rgb.dtype == np.float32
    assert rgb[:, 0] == pytest.approx(0, abs=1e-6)
    assert rgb[:, 1] == pytest.approx(1.055 * 0.5 ** (1 / 2.4) - 0.055, abs=1e-6)  # the gamma of sRGB
    assert rgb[:, 2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("nm, channel", [(650, 0), (540, 1), (450, 2)])
def test_light_of_one_wavelength_has_its_colour(nm, channel):
    cube = (abs(EVEN - nm) < 1).astype(float)[:, None, None]
    others = [0, 1, 2]
    others.remove(channel)
    for rgb in (spectrum_to_rgb(cube, EVEN)[0, 0], wavelength_to_rgb(nm)):
        assert rgb[channel] > 2 * rgb[others].max()
        assert rgb.min() >= 0 and rgb.max() <= 1
    assert wavelength_to_rgb(nm)[channel] == 1


def test_an_uneven_grid_gives_nearly_the_same_picture():
    def spectrum(nm):
        return (0.5 + 0.4 * np.sin(nm / 30))[:, None, None]

    fine = np.arange(400.0, 701)
    uneven = np.concatenate([np.arange(400.0, 500, 4), np.arange(500.0, 701, 8)])
    expected = spectrum_to_rgb(spectrum(fine), fine)
    assert spectrum_to_rgb(spectrum(uneven), uneven) == pytest.approx(expected, abs=0.005)
    as_if_even = spectrum_to_rgb(spectrum(uneven), np.linspace(400, 700, len(uneven)))
    assert as_if_even != pytest.approx(expected, abs=0.05)


def test_bands_that_cannot_be_seen_do_not_count():
    random = np.random.default_rng(0)
    cube = random.random((5, 2, 2))
    nm = np.array([300.0, 450, 550, 650, 1000])
    assert np.array_equal(spectrum_to_rgb(cube, nm), spectrum_to_rgb(cube[1:4], nm[1:4]))


def test_values_out_of_range_are_clipped():
    assert spectrum_to_rgb(np.full((31, 1, 1), 7.0), EVEN) == pytest.approx(1)
    assert spectrum_to_rgb(np.full((31, 1, 1), -7.0), EVEN) == pytest.approx(0)


def test_every_tint_is_bright_and_without_hue_outside_the_visible():
    tints = np.array([wavelength_to_rgb(nm) for nm in range(360, 831)])
    assert tints.dtype == np.float32
    assert tints.max(1) == pytest.approx(1) and tints.min() == 0
    assert np.array_equal(tints[350], [1, 0, 0])
    for nm in (300, 1200.0):
        assert np.array_equal(wavelength_to_rgb(nm), [1, 1, 1])


@pytest.mark.parametrize(
    "cube, nm, words",
    [
        (np.ones((31, 4)), EVEN, r"cube: expected \(C, H, W\), got \(31, 4\)"),
        (np.ones((31, 0, 4)), EVEN, "cube: expected"),
        (np.full((31, 1, 1), np.nan), EVEN, "NaN or Inf"),
        (np.ones((28, 1, 1)), EVEN, r"wavelengths: expected \(28,\)"),
        (np.ones((31, 1, 1)), EVEN[::-1], "rise"),
        (np.ones((2, 1, 1)), [500, 500], "rise"),
        (np.ones((2, 1, 1)), [500, np.nan], "rise"),
        (np.ones((2, 1, 1)), [-500, 500], "positive"),
        (np.ones((2, 1, 1)), [0.5, 0.6], "expected nm, at least one in 360 to 830"),
    ],
)
def test_bad_input_says_what_was_expected(cube, nm, words):
    with pytest.raises(ValueError, match=words):
        spectrum_to_rgb(cube, nm)


@pytest.mark.parametrize("nm", [0, -1, np.nan, np.inf])
def test_no_tint_without_a_wavelength(nm):
    with pytest.raises(ValueError, match="nm: expected a positive wavelength"):
        wavelength_to_rgb(nm)


def test_wavelengths_come_back_as_float64():
    assert check_wavelengths([400, 500], 2).dtype == np.float64
