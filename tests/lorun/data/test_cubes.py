import h5py
import numpy as np
import pytest
import scipy.io

from lorun.data import read_cube, read_mask, read_snapshot, save_cube
from tests.lorun.data.reader_checks import mat, refused

RANDOM = np.random.default_rng(0)
HWC = RANDOM.random((16, 12, 5)).astype(np.float32)
CHW = HWC.transpose(2, 0, 1)
NM = np.array([450.0, 500, 550, 600, 650])
MASK = RANDOM.random((6, 7)).astype(np.float32)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("key", ["img", "img_expand", "cube", "truth", "pred"])
@pytest.mark.parametrize("write, name", [(mat, "a.mat"), (npz, "a.npz")])
def test_the_fields_cubes_need_nothing_said(tmp_path, write, name, key):
    cube = read_cube(write(tmp_path / name, **{key: HWC}, gain=2.0, note="x"))
    np.testing.assert_array_equal(cube.values, CHW)
    assert cube.values.dtype == np.float32 and cube.values.flags.c_contiguous and cube.wavelengths is None


@pytest.mark.parametrize("shape", [(28, 256, 256), (28, 28, 28), (28, 30, 31), (20, 40, 28), (40, 20, 28)])
@pytest.mark.parametrize("write, name", [(mat, "a.mat"), (npz, "a.npz")])
def test_a_transposed_or_ambiguous_cube_is_refused(tmp_path, write, name, shape):
    path = write(tmp_path / name, img=np.zeros(shape, np.float32))
    words = r'`img`: the shape \(.*\) leaves open which axis is the bands; pass layout, "hwc" or'
    refused(words, read_cube, path)
    assert read_cube(path, layout="chw").values.shape == shape
    assert read_cube(path, layout="hwc").values.shape == (shape[2], *shape[:2])


def test_neither_other_names_nor_other_formats_say_the_layout(tmp_path):
    np.save(tmp_path / "a.npy", HWC)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = HWC
    for path in (npz(tmp_path / "a.npz", scene=HWC), tmp_path / "a.npy", tmp_path / "a.h5"):
        refused("pass layout", read_cube, path)
        np.testing.assert_array_equal(read_cube(path, layout="hwc").values, CHW)
        np.testing.assert_array_equal(read_cube(path, wavelengths=NM).values, CHW)
    refused(r'layout: expected "hwc" or "chw", got \'HWC\'', read_cube, path, layout="HWC")


def test_wavelengths_say_the_layout_where_they_fit_one_axis(tmp_path):
    for array in (HWC, CHW):
        cube = read_cube(npz(tmp_path / "a.npz", img=array, wavelengths=NM))
        np.testing.assert_array_equal(cube.values, CHW)
        np.testing.assert_array_equal(cube.wavelengths, NM)
    path = mat(tmp_path / "row.mat", cube=HWC, wavelengths=NM[None])
    np.testing.assert_array_equal(read_cube(path).wavelengths, NM)
    both = npz(tmp_path / "both.npz", cube=np.zeros((5, 9, 5)), wavelengths=NM)
    refused("leaves open which axis is the bands", read_cube, both)
    assert read_cube(both, layout="chw").values.shape == (5, 9, 5)
    assert read_cube(npz(tmp_path / "none.npz", cube=HWC, wavelengths=np.zeros(0))).wavelengths is None


def test_wavelengths_that_do_not_fit(tmp_path):
    path = npz(tmp_path / "a.npz", cube=HWC)
    words = r"a.npz: .*wavelengths: "
    refused(
        words + r"expected one for each band, got 4 for the shape \(16, 12, 5\)",
        read_cube,
        path,
        wavelengths=NM[:4],
    )
    refused("each of the 5 bands, got 4", read_cube, path, layout="hwc", wavelengths=NM[:4])
    refused(
        words + "expected 200 to 3000 nm, got 0.45 to 0.65; multiply micrometres by 1000",
        read_cube,
        path,
        wavelengths=NM / 1000,
    )
    refused(
        words + "expected 200 to 3000 nm, got -1 to 650; give them in nm",
        read_cube,
        path,
        wavelengths=[-1, *NM[1:]],
    )
    refused(words + "expected 200 to 3000 nm, got nan", read_cube, path, wavelengths=[np.nan, *NM[1:]])
    refused(words + "expected ascending numbers, got 650 ... 450", read_cube, path, wavelengths=NM[::-1])
    refused(words + "expected ascending", read_cube, path, wavelengths=[450, 450, 500, 550, 600])
    refused(words + "expected a list of numbers in nm", read_cube, path, wavelengths="visible")
    refused(words + "expected a list of numbers in nm", read_cube, path, wavelengths=[])
    refused("`wavelengths`: expected ascending", read_cube, npz(path, cube=HWC, wavelengths=NM[::-1]))
    refused("expected one for each band, got 4", read_cube, npz(path, cube=HWC, wavelengths=NM[:4]))
    np.testing.assert_array_equal(read_cube(path, wavelengths=list(NM)).wavelengths, NM)


def test_the_array_that_is_meant(tmp_path):
    path = npz(tmp_path / "a.npz", pred=HWC, truth=HWC / 2, mask=MASK)
    message = refused(r"several arrays can be the cube.*say which by key: ", read_cube, path)
    assert "`pred` (16, 12, 5), `truth` (16, 12, 5), `mask` (6, 7)" in message
    np.testing.assert_array_equal(read_cube(path, key="truth").values, CHW / 2)
    refused(r"key: no array is called `img`; the file holds `pred` \(16", read_cube, path, key="img")
    refused(r"`mask`: expected a cube, .*, got \(6, 7\)", read_cube, path, key="mask")
    refused(r"expected a cube, .*; the file holds `x` \(4,\)", read_cube, npz(path, x=np.ones(4)))
    refused("the file holds no array of numbers", read_cube, npz(path, x="text"))
    # Names of the field go before others.
    np.testing.assert_array_equal(read_cube(npz(path, img=HWC, other=HWC / 2)).values, CHW)


@pytest.mark.parametrize(
    "dtype, range", [(np.uint16, 4095), (np.uint8, 255), (np.int32, 65535), (">u2", 65535.0)]
)
def test_integers_need_a_range(tmp_path, dtype, range):
    whole = np.rint(HWC * range).astype(dtype)
    path = npz(tmp_path / "a.npz", cube=whole)
    refused(r"holds integers .*pass range, ", read_cube, path)
    np.testing.assert_allclose(
        read_cube(path, range=range).values, whole.transpose(2, 0, 1) / range, rtol=1e-6
    )
    words = r"expected values up to range, 10, got up to \d+; pass range, "
    refused(words, read_cube, path, range=10)


def test_floats_lie_in_the_unit_range(tmp_path):
    path = tmp_path / "a.npz"
    np.testing.assert_array_equal(
        read_cube(npz(path, cube=HWC.astype(np.float16))).values, CHW.astype(np.float16)
    )
    assert read_cube(npz(path, cube=HWC / HWC.max() * np.float32(1.0000005))).values.max() == 1
    refused(
        r"expected floats in \[0, 1\], got up to 1.5; pass range",
        read_cube,
        npz(path, cube=HWC / HWC.max() * 1.5),
    )
    np.testing.assert_allclose(read_cube(npz(path, cube=HWC * 100), range=100).values, CHW, rtol=1e-6)
    for range in (0, -1, np.nan, np.inf, "255", True):
        refused(
            r"range: expected the value that means 1, a number above 0",
            read_cube,
            path,
            range=range,
        )


@pytest.mark.parametrize(
    "value, words",
    [
        (np.nan, "holds NaN or Inf"),
        (np.inf, "NaN or Inf"),
        (1e300, "NaN or Inf"),
        (-0.01, "holds negative values, down to -0.01"),
    ],
)
def test_values_that_no_light_has(tmp_path, value, words):
    cube, flat = HWC.astype(np.float64), MASK.astype(np.float64)
    cube[1, 2, 3] = flat[1, 2] = value
    path = npz(tmp_path / "a.npz", cube=cube, mask=flat, y=flat)
    for read, name in ((read_cube, "cube"), (read_mask, "mask"), (read_snapshot, "y")):
        refused(f"a.npz: `{name}`: .*{words}", read, path)
    refused("a.npz: `cube`: .*" + words, read_cube, path, range=2.0)


def test_arrays_that_are_no_images(tmp_path):
    refused("expected real numbers, got complex64", read_cube, npz(tmp_path / "a.npz", cube=HWC + 1j))
    path = npz(tmp_path / "a.npz", cube=np.zeros((0, 5, 4)))
    refused("expected real numbers, got float64", read_cube, path, key="cube", layout="hwc")
    refused("holds integers", read_cube, npz(tmp_path / "a.npz", cube=HWC > 0.5))


@pytest.mark.parametrize("name", ["Test_result.mat", "result.npz"])
def test_saved_cubes_read_back(tmp_path, name):
    path = tmp_path / name
    save_cube(path, CHW, CHW / 2)
    np.testing.assert_array_equal(read_cube(path, key="pred").values, CHW)
    np.testing.assert_array_equal(read_cube(path, key="truth").values, CHW / 2)
    save_cube(path, np.stack([CHW, CHW / 2]).astype(np.float64))
    stored = scipy.io.loadmat(path) if name.endswith("mat") else np.load(path)
    assert stored["pred"].shape == (2, 16, 12, 5) and stored["pred"].dtype == np.float32
    np.testing.assert_array_equal(stored["pred"][1], HWC / 2)
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_cubes_that_cannot_be_saved(tmp_path):
    refused("a.h5: expected a name that ends in .mat or .npz", save_cube, tmp_path / "a.h5", CHW)
    path = tmp_path / "a.mat"
    refused(
        r"pred: must be floats \(C, H, W\) or \(N, C, H, W\), got float32 \(6, 7\)", save_cube, path, MASK
    )
    refused("pred: must be floats", save_cube, path, np.ones((3, 4, 5), np.uint8))
    refused("pred: holds NaN or Inf", save_cube, path, CHW * np.nan)
    refused(
        r"truth: expected the shape of pred, \(5, 16, 12\), got \(5, 12, 16\)",
        save_cube,
        path,
        CHW,
        CHW.swapaxes(1, 2),
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="gone"):
        save_cube(tmp_path / "gone" / "a.mat", CHW)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mat: no such file"):
        read_cube(tmp_path / "gone.mat")


def test_real_cubes(lorun_data):
    feathers = read_cube(lorun_data / "hsi/test/cave_feathers.npz")
    assert feathers.values.shape == (31, 512, 512)
    np.testing.assert_array_equal(feathers.wavelengths, np.arange(400, 701, 10))
    lego = read_cube(lorun_data / "hsi/train/lego_24_bands.npz")
    assert lego.values.shape == (24, 256, 256) and lego.wavelengths is None
    paths = sorted((lorun_data / "hsi/train_remote").glob("*.npz"))
    assert len(paths) == 24
    for path in paths:
        assert len(read_cube(path).values) == 28


def test_a_cell_beside_a_cube_is_no_second_cube(tmp_path):
    cube, cell = np.random.default_rng(0).random((9, 8, 4), np.float32), np.empty((1, 1), object)
    cell[0, 0] = np.ones((3, 3, 3))
    scipy.io.savemat(tmp_path / "cube.mat", {"hyper": cube, "boxes": cell})
    np.testing.assert_array_equal(
        read_cube(tmp_path / "cube.mat", layout="hwc").values, cube.transpose(2, 0, 1)
    )
