import numpy as np
import pytest
import torch
from PIL import Image

from lorun.data import SpectralCrops, spectral_crops
from lorun.data.spectral_crops import list_cubes

NM = (480.0, 550.0, 620.0)
RANDOM = np.random.default_rng(0)


def save(path, cube, **more):
    """A cube (C, H, W) as the field stores it."""
    np.savez(path, cube=np.moveaxis(cube, 0, -1).astype(np.float32), **more)
    return path


def random_cube(rows: int, columns: int) -> np.ndarray:
    return 0.1 + 0.9 * RANDOM.random((3, rows, columns))


@pytest.fixture
def cubes(tmp_path):
    """One tall cube, whose last rows are held out, and a low one."""
    folder = tmp_path / "cubes"
    folder.mkdir()
    save(folder / "tall.npz", random_cube(256, 30))
    save(folder / "low.npz", random_cube(20, 50))
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 30), "white").save(folder / "white.png")
    return folder


@pytest.fixture
def plain(monkeypatch):
    """Crops as they are cut: no mosaics, no other light."""
    monkeypatch.setattr(spectral_crops, "MOSAICS", 0)
    monkeypatch.setattr(spectral_crops, "RELIT", 0)


def test_a_batch_depends_on_seed_and_index_only(cubes, photos):
    first, second = (SpectralCrops([cubes], NM, [photos], seed=3) for _ in range(2))
    batch = first.batch(7, 4, (12, 16))
    for index in (0, 9, 2):
        assert not torch.equal(second.batch(index, 4, (12, 16)), batch)
    assert torch.equal(second.batch(7, 4, (12, 16)), batch)
    assert not torch.equal(SpectralCrops([cubes], NM, [photos], seed=4).batch(7, 4, (12, 16)), batch)


@pytest.mark.parametrize("size", [(8, 8), (12, 25), (100, 10), (192, 30), (20, 50)], ids=str)
def test_batches_have_the_size_and_the_range(cubes, photos, size):
    crops = SpectralCrops([cubes], NM, [photos], synthetic_share=0.5)
    for index in range(5):
        batch = crops.batch(index, 3, size)
        assert batch.shape == (3, 3, *size) and batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert batch.min() >= 0 and batch.max() <= 1 + 1e-6
        assert batch.std() > 0


def test_held_out_rows_are_in_no_batch(tmp_path):
    """They have no light in the second band, which no other light brings back."""
    cube = random_cube(256, 40)
    cube[1, -64:] = 0
    crops = SpectralCrops([save(tmp_path / "a.npz", cube)], NM)
    for index in range(30):
        assert crops.batch(index, 4, (16, 24)).min() > 0
    held_out = crops.held_out((64, 20))
    assert held_out.shape == (1, 3, 64, 20) and held_out[:, 1].max() == 0
    np.testing.assert_allclose(held_out[0].numpy(), cube[:, -64:, 10:30], atol=5e-4)


def test_a_low_cube_keeps_nothing_from_training(cubes):
    crops = SpectralCrops([cubes / "low.npz"], NM)
    assert crops.batch(0, 2, (20, 50)).shape == (2, 3, 20, 50)
    with pytest.raises(
        ValueError, match="data: no cube holds out 8x8 pixels from training; .* at least 256 rows"
    ):
        crops.held_out((8, 8))


def test_a_mosaic_is_four_tiles(cubes, monkeypatch):
    drawn = []

    def numbered(self, size, random):
        drawn.append(size)
        return np.full((3, *size), len(drawn) / 100, np.float32)

    monkeypatch.setattr(spectral_crops, "MOSAICS", 1)
    monkeypatch.setattr(spectral_crops, "RELIT", 0)
    monkeypatch.setattr(SpectralCrops, "_tile", numbered)
    batch = SpectralCrops([cubes], NM).batch(0, 8, (16, 24)).numpy()
    assert len(drawn) == 4 * 8
    for number, crop in enumerate(batch):
        (row, column), _, _, (_, last) = drawn[4 * number : 4 * number + 4]
        assert 4 <= row < 12 and 6 <= column < 18 and column + last == 24
        corners = (
            crop[:, :row, :column],
            crop[:, :row, column:],
            crop[:, row:, :column],
            crop[:, row:, column:],
        )
        for place, corner in enumerate(corners, start=4 * number + 1):
            np.testing.assert_array_equal(corner, np.float32(place / 100))


def test_crops_are_windows_turned_flipped_and_halved(tmp_path, plain):
    """Of a slope of 20 a row and 1 a column, what a step to the next pixel says how a crop was cut."""
    rows, columns = np.indices((18, 20))
    cube = np.stack([20 * rows + columns] * 3) / 1024
    crops = SpectralCrops([save(tmp_path / "slope.npz", cube)], NM)
    seen = set()
    for index in range(40):
        for crop in crops.batch(index, 2, (6, 8))[:, 0].numpy() * 1024:
            down, right = np.unique(np.diff(crop, axis=0)), np.unique(np.diff(crop, axis=1))
            assert len(down) == len(right) == 1
            seen.add((int(down[0]), int(right[0])))
    directions = {(20, 1), (-20, 1), (20, -1), (-20, -1)}
    turned = {(right, down) for down, right in directions}
    assert {step for step in seen if max(map(abs, step)) == 20} == directions | turned
    assert {step for step in seen if max(map(abs, step)) != 20} <= {
        (2 * down, 2 * right) for down, right in directions | turned
    }
    assert len(seen) > 8


def test_another_light_is_one_factor_a_band(cubes, monkeypatch):
    options = {"index": 5, "count": 6, "size": (10, 12)}
    monkeypatch.setattr(spectral_crops, "MOSAICS", 0)
    monkeypatch.setattr(spectral_crops, "RELIT", 1)
    relit = SpectralCrops([cubes], NM).batch(**options)
    assert relit.max() <= 1 + 1e-6
    monkeypatch.setattr(spectral_crops, "_relight", lambda crop, random: (_draw_light(random), crop)[1])
    factors = (relit / SpectralCrops([cubes], NM).batch(**options)).flatten(2)
    spread = factors.amax(-1) - factors.amin(-1)
    assert spread.max() < 1e-5 * factors.max()
    assert (factors[..., 0].amax(1) > 1.05 * factors[..., 0].amin(1)).any()


def _draw_light(random):
    """Take from the random numbers what a light takes."""
    random.normal(size=3)
    random.normal()


def test_synthetic_crops_come_from_photographs(cubes, photos, plain):
    crops = SpectralCrops([cubes], NM, [photos], synthetic_share=1)
    assert torch.allclose(crops.batch(0, 8, (12, 16)), torch.ones(()), atol=1e-6)
    mixed = SpectralCrops([cubes], NM, [photos], synthetic_share=0.5).batch(0, 40, (12, 16))
    white = (mixed.flatten(1) > 0.999).all(1).sum()
    assert 8 < white < 32
    assert SpectralCrops([cubes], NM, synthetic_share=1).batch(0, 8, (12, 16)).max() < 1


def test_where_no_photograph_is_large_enough_cubes_stand_in(cubes, photos, plain):
    crops = SpectralCrops([cubes], NM, [photos], synthetic_share=1)
    assert crops.batch(0, 4, (100, 20)).std() > 0.1


def test_other_bands_are_interpolated(tmp_path, plain):
    nm = np.arange(400, 701, 10.0)
    cube = np.tile(((nm - 400) / 300)[:, None, None], (1, 16, 16))
    crops = SpectralCrops([save(tmp_path / "a.npz", cube, wavelengths=nm)], NM)
    expected = torch.tensor([(wavelength - 400) / 300 for wavelength in NM]).view(3, 1, 1)
    assert torch.allclose(crops.batch(0, 2, (8, 8)), expected, atol=1e-3)


def test_cubes_are_listed_by_name(cubes, tmp_path):
    (cubes / "notes.txt").write_text("not a cube")
    extra = save(tmp_path / "extra.npz", random_cube(8, 8))
    assert [path.name for path in list_cubes([extra, cubes])] == ["extra.npz", "low.npz", "tall.npz"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"synthetic_share": 1.5}, "synthetic_share: expected a share from 0 to 1, got 1.5"),
        ({"synthetic_share": float("nan")}, "synthetic_share: expected"),
        (
            {"wavelengths": (480.0, 620.0)},
            r"low.npz: states no wavelengths and has 3 bands, not 2; leave it out",
        ),
        (
            {"names": ["stated.npz"], "wavelengths": (480.0, 800.0)},
            "stated.npz: .*cannot interpolate 480 to 800",
        ),
        ({"names": ["empty"]}, "empty: holds no cube; expected one of .h5"),
        ({"names": ["none.npz"]}, "none.npz: no such file"),
    ],
)
def test_bad_data_says_what_was_expected(cubes, options, words):
    save(cubes / "stated.npz", random_cube(8, 8), wavelengths=NM)
    (cubes / "empty").mkdir()
    options = {"names": ["low.npz"], "wavelengths": NM} | options
    paths = [cubes / name for name in options.pop("names")]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        SpectralCrops(paths, **options)


@pytest.mark.parametrize("size", [(193, 10), (21, 31), (10, 51)], ids=str)
def test_crops_larger_than_every_cube_are_refused(cubes, size):
    crops = SpectralCrops([cubes], NM)
    with pytest.raises(ValueError, match=f"crop: no training cube holds {size[0]}x{size[1]} pixels; use"):
        crops.batch(0, 1, size)
