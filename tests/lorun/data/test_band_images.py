"""A folder of PNG files as a cube, read as users read it: by `read_cube`."""

import numpy as np
import pytest
from PIL import Image

from lorun.data import read_cube
from tests.lorun.data.reader_checks import refused

RANDOM = np.random.default_rng(0)


def png_folder(folder, bands, name="toy_ms_{:02d}.png"):
    folder.mkdir(exist_ok=True)
    for index, band in enumerate(bands, start=1):
        Image.fromarray(band).save(folder / name.format(index))
    return folder


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["toy_ms_{:02d}.png", "2 toys {}.png"])
def test_a_folder_of_png(tmp_path, dtype, name):
    most = np.iinfo(dtype).max
    bands = RANDOM.integers(0, most, (12, 6, 5), endpoint=True).astype(dtype)
    folder = png_folder(tmp_path / "scene", bands, name)
    (folder / "toy_RGB.bmp").write_bytes(b"")
    refused(r"scene: holds integers .*pass range, ", read_cube, folder)
    cube = read_cube(folder, range=most, wavelengths=np.arange(400, 520, 10))
    np.testing.assert_allclose(cube.values, bands / most, rtol=1e-6)
    assert len(cube.wavelengths) == 12
    refused("each of the 12 bands, got 5", read_cube, folder, range=most, wavelengths=np.arange(450, 651, 50))
    refused("no key and no layout", read_cube, folder, range=most, layout="chw")


def test_folders_that_are_no_cube(tmp_path):
    bands = RANDOM.integers(0, 255, (3, 6, 5)).astype(np.uint8)
    (tmp_path / "empty").mkdir()
    refused("empty: holds no PNG", read_cube, tmp_path / "empty")
    folder = png_folder(tmp_path / "scene", bands)
    extra = folder / "toy_ms_04.png"
    Image.fromarray(bands[0].repeat(3).reshape(6, 5, 3)).save(extra)
    refused("toy_ms_04.png: expected a grey PNG of 8 or 16 bits, got mode RGB", read_cube, folder)
    Image.fromarray(bands[0, 1:]).save(extra)
    refused(
        r"toy_ms_04.png: expected uint8 \(6, 5\) as in toy_ms_01.png, got uint8 \(5, 5\)", read_cube, folder
    )
    Image.fromarray(bands[0].astype(np.uint16)).save(extra)
    refused(r"toy_ms_04.png: expected uint8 .*, got uint16", read_cube, folder)
    whole = (folder / "toy_ms_01.png").read_bytes()
    damaged = bytearray(whole)
    damaged[-20] ^= 1
    for content in (b"", whole[:-20], whole[:40], damaged):
        extra.write_bytes(content)
        refused("toy_ms_04.png: not a readable PNG", read_cube, folder)
    extra.rename(folder / "cover.png")
    refused("cover.png: expected the number of its band in its name", read_cube, folder)
    (folder / "cover.png").rename(folder / "toy_3.png")
    refused("toy_ms_03.png: has the same last number in its name as toy_3.png", read_cube, folder)
    (folder / "toy_3.png").unlink()
    (folder / "toy_ms_02.png").unlink()
    refused("scene: has no image for band 2, but for 1 to 3", read_cube, folder)
