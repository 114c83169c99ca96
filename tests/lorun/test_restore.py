"""What restoring a file is for every task; each task's own files are tested with the task."""

import numpy as np
import pytest
from PIL import Image
from skimage.data import camera

from lorun.restore import restore_file
from lorun.tasks import TASKS

CS = TASKS["cs"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(camera()[200:240, 200:248]).save(path)
    return path


def test_pictures_and_tiles_of_a_photograph(photo, tmp_path):
    out = tmp_path / "out.png"
    done = restore_file(CS, photo, out, figures=True, compare=["cs25-unet-shared9"])
    assert done.startswith(f"{out}: 40x48 pixels restored by cs25-unet-lorun9 (LoRun-9 at ratio 0.25), PSNR ")
    picture = tmp_path / "out-comparison.png"
    assert done.endswith(f"; pictures: {picture}")
    assert Image.open(picture).size[0] == 5 * 280  # start, two methods, truth, error
    tiled = tmp_path / "tiled.png"
    restore_file(CS, photo, tiled, tile=84)
    assert tiled.read_bytes() == out.read_bytes()


def test_a_measured_photograph_has_pictures_without_truth(photo, tmp_path):
    options = CS.restore_options()
    measured = type(options)(measurement=tmp_path / "y.npz")
    restore_file(CS, photo, tmp_path / "out.png", measured)
    done = restore_file(CS, tmp_path / "y.npz", tmp_path / "again.png", figures=True)
    assert "PSNR" not in done
    assert Image.open(tmp_path / "again-comparison.png").size[0] == 2 * 280
    same = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("out", "again")]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"compare": ["cs25-unet-shared9"]}, "compare: is for the pictures; ask for the figures too"),
        ({"figures": True, "compare": list("abcdef")}, "compare: pictures hold 6 methods at most, got 7"),
        ({"tile": 8}, "tile: expected at least 84"),
        ({"model": "cassi-unet-lorun9"}, "is a model for task cassi, not cs; for cs these ship: cs25-unet"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(photo, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        restore_file(CS, photo, tmp_path / "out.png", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_neither_pictures_nor_measurements_replace_an_input(photo, tmp_path):
    for name, arguments in (
        ("out-comparison.png", {"figures": True}),
        ("y.npz", {"options": type(CS.restore_options())(measurement=tmp_path / "y.npz")}),
    ):
        source = tmp_path / name
        source.write_bytes(photo.read_bytes())
        before = source.read_bytes()
        with pytest.raises(ValueError, match="is the input|is one already"):
            restore_file(CS, source, tmp_path / "out.png", **arguments)
        assert source.read_bytes() == before
