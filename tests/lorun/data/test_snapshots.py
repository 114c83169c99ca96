import numpy as np
import pytest
import scipy.io

from lorun.data import read_cube, read_snapshot
from lorun.data.snapshots import open_snapshot
from tests.lorun.data.reader_checks import mat, refused

RANDOM = np.random.default_rng(0)
MASK = RANDOM.random((6, 7)).astype(np.float32)


def test_snapshots(tmp_path):
    path = tmp_path / "a.mat"
    for key in ("meas_real", "meas", "y"):
        snapshot = read_snapshot(mat(path, **{key: MASK * 9.0, "mask": MASK, "gain": 1.0}))
        assert snapshot.dtype == np.float32
        np.testing.assert_allclose(snapshot, MASK * 9, rtol=1e-6)
    whole = np.rint(MASK * 4095).astype(np.uint16)
    refused(
        r"`y`: holds integers \(uint16, up to \d+\); pass range, ",
        read_snapshot,
        mat(path, y=whole),
    )
    np.testing.assert_allclose(read_snapshot(path, range=4095), whole / 4095, rtol=1e-6)
    refused(
        "expected a snapshot, .H, W.; the file holds `cube`",
        read_snapshot,
        mat(path, cube=np.ones((4, 5, 6))),
    )


def test_only_the_fields_key_says_that_a_real_camera_took_it(tmp_path):
    for key, real in (("meas_real", True), ("meas", False), ("y", False)):
        assert open_snapshot(mat(tmp_path / "a.mat", **{key: MASK})).real == real
    mat(tmp_path / "a.mat", meas_real=MASK, other=MASK)
    assert not open_snapshot(tmp_path / "a.mat", key="other").real


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mat: no such file"):
        read_snapshot(tmp_path / "gone.mat")


def test_real_snapshots(lorun_data):
    for scene in ("scene1.mat", "scene2.mat"):
        path = lorun_data / "cassi/real" / scene
        snapshot = read_snapshot(path)
        assert snapshot.shape == (660, 714) and snapshot.min() >= 0 and 0 < snapshot.max() <= 1
        np.testing.assert_array_equal(snapshot, scipy.io.loadmat(path)["meas_real"])
        assert open_snapshot(path).real
        refused("expected a cube", read_cube, path)
