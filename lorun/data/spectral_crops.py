"""Training crops of spectral cubes: rotated, flipped, relit, joined from tiles, lifted from photographs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lorun.data.cubes import read_cube
from lorun.data.photos import list_photos
from lorun.data.spectra import interpolate_bands, lift_rgb

CUBE_SUFFIXES = {".mat", ".npz", ".npy", ".h5", ".hdf5"}
# The last rows of every cube at least four times as high are held out from training, to watch the quality.
HELD_OUT_ROWS = 64
MOSAICS = 0.25
RELIT = 0.5

Size = tuple[int, int]


class SpectralCrops:
    """Random crops of spectral cubes and of photographs that were lifted to spectra.

    Args:
        cubes: cube files, or folders of them, as `read_cube` reads them. Cubes with other wavelengths are
            interpolated; a cube that states none must have as many bands as there are `wavelengths`.
        wavelengths: of the bands to train on, in nm.
        synthetic: folders of RGB photographs, lifted by `lift_rgb`.
        synthetic_share: how many of the crops come from those, 0 to 1.
        seed: the k-th batch depends only on the seed and on k, so a resumed run sees what it would have seen.

    Raises:
        ValueError, OSError: a share outside [0, 1], or a cube that cannot be read or brought to these bands.
    """

    def __init__(
        self,
        cubes: Sequence[Path],
        wavelengths: tuple[float, ...],
        synthetic: Sequence[Path] = (),
        synthetic_share: float = 0.3,
        seed: int = 0,
    ):
        if not 0 <= synthetic_share <= 1:
            raise ValueError(f"synthetic_share: expected a share from 0 to 1, got {synthetic_share}")
        whole = [_load(path, np.array(wavelengths)) for path in list_cubes(cubes)]
        self.validation = [cube[:, -HELD_OUT_ROWS:] for cube in whole if _has_held_out(cube)]
        self.cubes = [cube[:, :-HELD_OUT_ROWS] if _has_held_out(cube) else cube for cube in whole]
        self.photos = [_read_rgb(path) for folder in synthetic for path in list_photos(folder)]
        self.wavelengths = wavelengths
        self.synthetic_share = synthetic_share if self.photos else 0.0
        self.seed = seed

    def batch(self, index: int, count: int, size: Size) -> Tensor:
        """Batch number `index`: (count, C, *size) float32 in [0, 1], channels_last."""
        self.check_size(size)
        random = np.random.default_rng((self.seed, index))
        crops = np.stack([self._crop(size, random) for _ in range(count)])
        return torch.from_numpy(crops).contiguous(memory_format=torch.channels_last)

    def check_size(self, size: Size) -> None:
        """Raise if no cube is large enough for a crop of this height and width."""
        if not any(_fits(cube, size) for cube in self.cubes):
            raise ValueError(
                f"crop: no training cube holds {size[0]}x{size[1]} pixels; use smaller crops or larger cubes"
            )

    def held_out(self, size: Size) -> Tensor:
        """Centres of the parts of the cubes that are held out, (N, C, *size)."""
        parts = [part for part in self.validation if _fits(part, size)]
        if not parts:
            raise ValueError(
                f"data: no cube holds out {size[0]}x{size[1]} pixels from training; that takes one of at "
                f"least {4 * HELD_OUT_ROWS} rows"
            )
        lefts = [(part.shape[2] - size[1]) // 2 for part in parts]
        centres = [part[:, : size[0], left : left + size[1]] for part, left in zip(parts, lefts, strict=True)]
        return torch.from_numpy(np.stack(centres).astype(np.float32))

    def _crop(self, size: Size, random: np.random.Generator) -> np.ndarray:
        crop = self._mosaic(size, random) if random.random() < MOSAICS else self._tile(size, random)
        return _relight(crop, random) if random.random() < RELIT else crop

    def _mosaic(self, size: Size, random: np.random.Generator) -> np.ndarray:
        """Four tiles that meet in a point of the middle half."""
        row, column = (int(random.integers(side // 4, side - side // 4)) for side in size)
        rows, columns = (row, size[0] - row), (column, size[1] - column)
        tiles = [[self._tile((h, w), random) for w in columns] for h in rows]
        return np.concatenate([np.concatenate(pair, 2) for pair in tiles], 1)

    def _tile(self, size: Size, random: np.random.Generator) -> np.ndarray:
        photographs = random.random() < self.synthetic_share and any(
            _fits(photo, size) for photo in self.photos
        )
        sources = [source for source in (self.photos if photographs else self.cubes) if _fits(source, size)]
        weights = np.array([source[0].size for source in sources], np.float64)
        source = sources[random.choice(len(sources), p=weights / weights.sum())]
        turned = bool(random.integers(2)) and _fits(source, size[::-1])
        height, width = size[::-1] if turned else size
        scale = 2 if random.random() < 1 / 3 and _fits(source, (2 * height, 2 * width)) else 1
        crop = _random_window(source, scale * height, scale * width, random)
        if photographs:
            crop = lift_rgb(crop.transpose(1, 2, 0), np.array(self.wavelengths))
        crop = crop.astype(np.float32)
        if scale == 2:
            crop = crop.reshape(len(crop), height, 2, width, 2).mean((2, 4))
        crop = np.rot90(crop, 1 + 2 * int(random.integers(2)), (1, 2)) if turned else crop
        for axis in (1, 2):
            crop = np.flip(crop, axis) if random.integers(2) else crop
        return crop


def list_cubes(paths: Sequence[Path]) -> list[Path]:
    """Cube files, and those directly in folders, sorted by name in each; a folder of PNG is one cube."""
    found = []
    for path in paths:
        inside = [path] if _is_cube(path) else sorted(p for p in path.iterdir() if _is_cube(p))
        if not inside:
            suffixes = ", ".join(sorted(CUBE_SUFFIXES))
            raise ValueError(f"{path}: holds no cube; expected one of {suffixes}, or folders of PNG")
        found += inside
    return found


def _is_cube(path: Path) -> bool:
    if path.is_dir():
        return any(inside.suffix.lower() == ".png" for inside in path.iterdir())
    return path.suffix.lower() in CUBE_SUFFIXES


def _load(path: Path, wavelengths: np.ndarray) -> np.ndarray:
    cube = read_cube(path)
    if cube.wavelengths is not None:
        try:
            return interpolate_bands(cube.values, cube.wavelengths, wavelengths).astype(np.float16)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if len(cube.values) != len(wavelengths):
        raise ValueError(
            f"{path}: states no wavelengths and has {len(cube.values)} bands, not {len(wavelengths)}; "
            "leave it out, or add its `wavelengths` in nm"
        )
    return cube.values.astype(np.float16)


def _read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _has_held_out(cube: np.ndarray) -> bool:
    return cube.shape[1] >= 4 * HELD_OUT_ROWS


def _fits(source: np.ndarray, size: Size) -> bool:
    return source.shape[1] >= size[0] and source.shape[2] >= size[1]


def _random_window(source: np.ndarray, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    top = random.integers(source.shape[1] - height + 1)
    left = random.integers(source.shape[2] - width + 1)
    return source[:, top : top + height, left : left + width]


def _relight(crop: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same scene under another smooth light, somewhat darker or brighter, and still within [0, 1]."""
    bands = np.linspace(-1, 1, len(crop))
    slope, bow, wave = random.normal(size=3) * (0.3, 0.2, 0.2)
    light = np.exp(slope * bands + bow * (bands**2 - 1 / 3) + wave * np.sin(np.pi * bands))
    crop = crop * light.astype(np.float32)[:, None, None]
    brightness = min(1 / max(crop.max(), 1e-3), np.exp(0.1 + 0.4 * random.normal()))
    return crop * np.float32(brightness)
