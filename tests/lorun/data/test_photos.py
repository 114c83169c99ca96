import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lorun.data import PhotoCrops, list_photos, principal_phi, read_colour, read_grey, save_photo, to_grey


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for index in range(6):
        noise = random.integers(0, 256, (40 + index, 50), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    return tmp_path


def test_luma_is_full_range_and_worked_out_by_hand():
    image = np.zeros((1, 3, 3), dtype=np.uint8)
    image[0, 0, 0], image[0, 1, 1], image[0, 2, 2] = 255, 255, 255
    np.testing.assert_allclose(to_grey(image), [[0.299, 0.587, 0.114]], atol=1e-7)


@pytest.mark.parametrize(
    "pixels", [np.array([[0, 255]], np.uint8), np.array([[0, 65535]], np.uint16), np.array([[False, True]])]
)
def test_every_depth_reaches_zero_and_one(pixels):
    np.testing.assert_array_equal(to_grey(pixels), [[0, 1]])


def test_files_read_as_they_were_written(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 5), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "16.png")
    np.testing.assert_allclose(read_grey(tmp_path / "16.png"), pixels / 65535, atol=1e-7)
    rgb = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_allclose(read_grey(tmp_path / "rgba.png"), to_grey(rgb), atol=1e-7)


def test_colours_are_read_as_they_were_written(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    np.testing.assert_allclose(read_colour(tmp_path / "rgb.png"), rgb.transpose(2, 0, 1) / 255, atol=1e-7)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_allclose(read_colour(tmp_path / "grey.png"), rgb[None, ..., 0] / 255, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_read_as_they_were_saved(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 7, 5)).astype(np.float32) / 255
    save_photo(tmp_path / "a.png", pixels)
    np.testing.assert_allclose(read_colour(tmp_path / "a.png"), pixels, atol=1e-7)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:, :8] = 255
    image = Image.fromarray(rgb)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    image.save(tmp_path / "turned.png", exif=exif)
    seen = read_colour(tmp_path / "turned.png")
    assert seen.shape == (3, 16, 8) and (seen[:, :8] == 1).all() and (seen[:, 8:] == 0).all()


def test_lab_has_no_transparency(tmp_path):
    Image.new("LAB", (4, 5), (128, 0, 0)).save(tmp_path / "lab.tif")
    assert read_colour(tmp_path / "lab.tif").shape == (3, 5, 4)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_refused_in_colour(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 90)).convert(mode)
    image.save(tmp_path / "clear.png", **({"transparency": 0} if mode == "P" else {}))
    with pytest.raises(ValueError, match=r"clear.png: image: has transparency .*put it on a background"):
        read_colour(tmp_path / "clear.png")


def test_crops_in_colour(tmp_path):
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 1] = 255
    for index in range(2):
        Image.fromarray(rgb).save(tmp_path / f"{index}.png")
    crops = PhotoCrops([tmp_path], colour=True)
    expected = torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 16, 16)
    for batch in (crops.batch(0, 2, 16), crops.held_out(16)):
        assert all(torch.equal(crop, expected) for crop in batch)


def test_big_endian_16_bit_tiff_is_read_as_written(tmp_path):
    pixels = np.arange(0, 65536, 819, dtype=np.uint16).reshape(9, 9)
    tifffile.imwrite(tmp_path / "big.tif", pixels, byteorder=">")
    np.testing.assert_allclose(read_grey(tmp_path / "big.tif"), pixels / 65535, atol=1e-7)


def test_palette_tiff_reads_its_colours(tmp_path):
    rgb = np.zeros((4, 4, 3), dtype=np.uint8)
    rgb[:2] = 200
    Image.fromarray(rgb).quantize(2).save(tmp_path / "palette.tif")
    np.testing.assert_allclose(read_grey(tmp_path / "palette.tif"), to_grey(rgb), atol=1e-7)


def test_batches_depend_on_seed_and_index_only(folder):
    crops = PhotoCrops([folder], seed=1)
    crops.batch(0, 2, 16)
    first, again = crops.batch(7, 4, 16), PhotoCrops([folder], seed=1).batch(7, 4, 16)
    assert torch.equal(first, again)
    assert first.shape == (4, 1, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, crops.batch(8, 4, 16))
    assert not torch.equal(first, PhotoCrops([folder], seed=2).batch(7, 4, 16))


def test_held_out_photographs_are_never_trained_on(folder):
    crops = PhotoCrops([folder])
    held_out = read_grey(folder / "0.png")
    assert len(crops.images) == 5 and len(crops.validation) == 1
    top, left = (40 - 16) // 2, (50 - 16) // 2
    centre = held_out[top : top + 16, left : left + 16]
    np.testing.assert_allclose(crops.held_out(16)[0, 0].numpy(), centre, atol=1e-6)


def test_principal_phi_beats_every_random_phi(folder):
    x = np.linspace(0, 1, 64)
    for index in range(6):
        smooth = 0.5 + 0.5 * np.sin((index + 2) * np.add.outer(x, (index + 1) * x))
        Image.fromarray(np.rint(smooth * 255).astype(np.uint8)).save(folder / f"{index}.png")
    crops = PhotoCrops([folder])
    phi = principal_phi(crops, rows=8, block=8, crops=2000)
    torch.testing.assert_close(phi @ phi.T, torch.eye(8), rtol=0, atol=1e-5)
    blocks = crops.batch(0, 256, 8).flatten(1)

    def loss(matrix):
        return (blocks - blocks @ matrix.T @ matrix).square().sum()

    randoms = [torch.linalg.qr(torch.randn(64, 8)).Q.T for _ in range(20)]
    assert loss(phi) < min(loss(matrix) for matrix in randoms) / 10


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros((4, 4, 2), np.uint8), "expected \\(H, W\\)"),
        (np.zeros(4, np.uint8), "expected \\(H, W\\)"),
        (np.full((4, 4), np.nan), "NaN or Inf"),
        (np.full((4, 4), 200.0), "floats in \\[0, 1\\]"),
        (np.zeros((4, 4), np.int64), "expected uint8"),
    ],
)
def test_bad_arrays_say_what_was_expected(image, words):
    with pytest.raises(ValueError, match=words):
        to_grey(image)


def test_bad_files_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_grey(tmp_path / "none.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "1.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="broken.png: not a readable image"):
        read_grey(broken)
    broken.unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        list_photos(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_photos(tmp_path / "absent")
    with pytest.raises(ValueError, match="smaller crops"):
        PhotoCrops([folder]).batch(0, 1, 64)
