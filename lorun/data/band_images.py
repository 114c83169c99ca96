"""A folder with one grey PNG for each spectral band, as the CAVE data set comes."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


def read_band_images(folder: Path) -> np.ndarray:
    """The PNG files of a folder, ordered by the last number in their names: (C, H, W) uint8 or uint16.

    Files of other kinds are ignored.

    Raises:
        ValueError: no PNG; a name without a number, or two with the same; a band that is missing where they
            are counted from 0 or 1; images with several channels, or of different size or depth.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png"]
    if not paths:
        raise ValueError(f"{folder}: holds no PNG; expected a grey one for each band")
    numbered = _numbered(folder, paths)
    first, *rest = numbered
    bands = [_read_band(first)]
    for path in rest:
        band = _read_band(path)
        if (band.shape, band.dtype) != (bands[0].shape, bands[0].dtype):
            raise ValueError(
                f"{path}: expected {bands[0].dtype} {bands[0].shape} as in {first.name}, got "
                f"{band.dtype} {band.shape}; the bands of a cube are all alike"
            )
        bands.append(band)
    return np.stack(bands)


def _numbered(folder: Path, paths: list[Path]) -> list[Path]:
    by_number: dict[int, Path] = {}
    for path in sorted(paths):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ValueError(f"{path}: expected the number of its band in its name; move other images away")
        other = by_number.setdefault(int(numbers[-1]), path)
        if other is not path:
            raise ValueError(f"{path}: has the same last number in its name as {other.name}; rename one")
    found = sorted(by_number)
    if found[0] in (0, 1):
        for expected, number in enumerate(found, start=found[0]):
            if number != expected:
                raise ValueError(
                    f"{folder}: has no image for band {expected}, but for {found[0]} to {found[-1]}; add it"
                )
    return [by_number[number] for number in found]


def _read_band(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16."""
    try:
        content = io.BytesIO(path.read_bytes())
        with Image.open(content, formats=("PNG",)) as image:
            image.verify()  # the checksums, which load() does not look at; then it must be opened again
        content.seek(0)
        with Image.open(content, formats=("PNG",)) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG ({error}); write it again") from error
    if mode == "L":
        return values
    if mode == "I" or mode.startswith("I;16"):  # Pillow before 11.3 opens 16 bits as I
        return values.astype(np.uint16)
    raise ValueError(f"{path}: expected a grey PNG of 8 or 16 bits, got mode {mode}; save one band in each")
