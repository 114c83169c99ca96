from pathlib import Path

import numpy as np
import pytest

from lorun.data import CASSI_WAVELENGTHS, interpolate_bands
from lorun.errors import ArgumentError
from lorun.tasks.cassi.files import known_wavelengths, load_cube, load_mask
from lorun.tasks.cassi.options import SpectralFiles

CUBE = np.random.default_rng(0).random((31, 8, 9)).astype(np.float32)
NM = np.arange(400, 701, 10.0)
ONTO = np.array(CASSI_WAVELENGTHS)


def save(path, cube=CUBE, **more):
    np.savez(path, cube=np.moveaxis(cube, 0, -1), **more)
    return path


def test_a_cube_of_known_wavelengths_goes_onto_the_literatures(tmp_path):
    expected = interpolate_bands(CUBE, NM, ONTO)
    stated, silent = save(tmp_path / "a.npz", wavelengths=NM), save(tmp_path / "b.npz")
    for path, files in (
        (stated, SpectralFiles()),
        (silent, SpectralFiles(wavelengths=tuple(NM))),
        (silent, SpectralFiles(wavelengths=(400, 700), layout="hwc")),
        (stated, SpectralFiles(wavelengths=(400, 700))),
    ):
        cube = load_cube(path, files, 28)
        np.testing.assert_array_equal(cube.values, expected)
        np.testing.assert_array_equal(cube.wavelengths, ONTO)


def test_what_the_options_state_goes_before_the_file(tmp_path):
    path = save(tmp_path / "a.npz", wavelengths=NM)
    cube = load_cube(path, SpectralFiles(wavelengths=(420, 720)), 31)
    np.testing.assert_allclose(cube.wavelengths, NM + 20)
    np.testing.assert_array_equal(cube.values, CUBE)


def test_two_wavelengths_of_two_bands_are_theirs(tmp_path):
    path = save(tmp_path / "a.npz", CUBE[:2])
    cube = load_cube(path, SpectralFiles(wavelengths=(500, 600)), 2)
    assert cube.wavelengths.tolist() == [500, 600]
    with pytest.raises(ValueError, match="expected one for its only band, got two"):
        load_cube(save(path, CUBE[:1]), SpectralFiles(key="cube", wavelengths=(500, 600)), 1)


def test_the_literatures_bands_need_no_wavelengths(tmp_path):
    cube = load_cube(save(tmp_path / "a.npz", CUBE[:28], other=np.ones(3)), SpectralFiles(layout="hwc"), 28)
    np.testing.assert_array_equal(cube.values, CUBE[:28])
    assert cube.wavelengths is None


def test_known_wavelengths():
    path = Path("a.mat")
    np.testing.assert_array_equal(known_wavelengths(path, SpectralFiles(), 28), ONTO)
    assert known_wavelengths(path, SpectralFiles(), 4) is None
    with pytest.raises(
        ValueError, match="expected one for each of 4 bands, or the first and the last, got 3"
    ):
        known_wavelengths(path, SpectralFiles(wavelengths=(400, 500, 600)), 4)
    assert known_wavelengths(path, SpectralFiles(wavelengths=(400, 700)), 28).tolist() != list(ONTO)
    np.testing.assert_array_equal(
        known_wavelengths(path, SpectralFiles(wavelengths=(400, 700)), 4), [400, 500, 600, 700]
    )
    assert known_wavelengths(path, SpectralFiles(wavelengths=(400, 500, 650)), 3).tolist() == [400, 500, 650]


def test_a_mask_whose_layout_is_open_is_told(tmp_path):
    np.savez(tmp_path / "mask.npz", mask=np.arange(45.0).reshape(3, 5, 3) / 45)
    files = SpectralFiles(mask=tmp_path / "mask.npz")
    with pytest.raises(ArgumentError, match="pass layout") as caught:
        load_mask(files, 3, 2)
    assert caught.value.argument == "mask_layout"
    chosen = SpectralFiles(mask=tmp_path / "mask.npz", mask_layout="chw", layout="hwc")
    np.testing.assert_array_equal(load_mask(chosen, 3, 2), np.float32(np.arange(45.0).reshape(3, 5, 3) / 45))
    with pytest.raises(ValueError, match="mask: .* give its file"):
        load_mask(SpectralFiles(), 28, 2)
