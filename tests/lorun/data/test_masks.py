import numpy as np
import pytest

from lorun.data import read_mask
from tests.lorun.data.reader_checks import mat, refused

RANDOM = np.random.default_rng(0)
MASK = RANDOM.random((6, 7)).astype(np.float32)


def test_masks(tmp_path):
    path = tmp_path / "a.mat"
    for array in (MASK, MASK > 0.5, (MASK > 0.5).astype(np.uint8), MASK.astype(np.float64) * 1.2):
        mask = read_mask(mat(path, mask=array))
        assert mask.dtype == np.float32
        np.testing.assert_allclose(mask, array, rtol=1e-6)
    refused(
        "`mask`: expected transmissions as floats, or integers 0 and 1, got uint8 up to 255",
        read_mask,
        mat(path, mask=np.full((4, 4), 255, np.uint8)),
    )
    refused("about 1 where fully open, got values up to 2", read_mask, mat(path, mask=np.ceil(MASK) * 255.0))
    refused("`mask`: lets no light through", read_mask, mat(path, mask=MASK * 0))
    both = mat(path, mask=MASK, mask_3d_shift=np.ones((6, 15, 5)))
    refused(r"several arrays can be the mask.*`mask` \(6, 7\), `mask_3d_shift` \(6, 15, 5\)", read_mask, both)
    np.testing.assert_array_equal(read_mask(both, key="mask"), MASK)


def test_masks_with_bands(tmp_path):
    bands = RANDOM.random((5, 6, 7)).astype(np.float32)
    for array in (bands, bands.transpose(1, 2, 0)):
        np.testing.assert_array_equal(read_mask(mat(tmp_path / "a.mat", mask_3d=array), bands=5), bands)
    path = tmp_path / "a.mat"
    refused("expected 28 bands along the first or the last axis, got", read_mask, path)
    refused('expected 5 bands along the band axis of layout "chw"', read_mask, path, bands=5, layout="chw")
    np.testing.assert_array_equal(read_mask(path, bands=5, layout="hwc"), bands)
    mat(path, mask_3d=np.ones((5, 6, 5)))
    refused(r"leaves open which axis is the bands; pass layout, ", read_mask, path, bands=5)
    assert read_mask(path, bands=5, layout="hwc").shape == (5, 5, 6)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_shifted_mask_is_its_own_calibration_without_the_shift(tmp_path, step):
    bands = RANDOM.random((5, 6, 7)).astype(np.float32)
    shifted = np.zeros((5, 6, 7 + 4 * step), np.float32)
    for c in range(5):
        shifted[c, :, c * step : c * step + 7] = bands[c]
    for array in (shifted, shifted.transpose(1, 2, 0)):
        path = mat(tmp_path / "a.mat", mask_3d_shift=array)
        np.testing.assert_array_equal(read_mask(path, bands=5, step=step), bands)
    refused("expected .C, H, W . step . .C - 1.. .*with step = 9, got", read_mask, path, bands=5, step=9)
    refused("pass the step", read_mask, mat(path, mask_3d_shift=MASK))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mat: no such file"):
        read_mask(tmp_path / "gone.mat")


def test_real_masks(lorun_data):
    mask = read_mask(lorun_data / "cassi/mask/tsa_sim_mask_256.mat")
    assert mask.shape == (256, 256) and 0.0065 < mask.min() < 0.0067 and mask.max() == 1
    assert set(np.unique(read_mask(lorun_data / "cassi/mask/binary_mask_256.mat"))) == {0, 1}
    assert read_mask(lorun_data / "cassi/real/tsa_real_mask_660.mat").shape == (660, 660)
