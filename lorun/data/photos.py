"""Photographs: reading them as grey or colour images in [0, 1], and cutting training crops from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lorun.files import write_in_one_step

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
# Modes of Pillow with an alpha channel; LAB has an A, but no alpha.
TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
# Full-range luma of ITU-R BT.601, the convention of compressive sensing (not the 16-235 of YCbCr).
LUMA = np.array([0.299, 0.587, 0.114])
# Batches from this index on serve principal_phi, so training never sees them.
PRINCIPAL_BATCH = 10**9
# Every 50th photograph is held out from training, to watch the quality.
HELD_OUT = 50


def list_photos(folder: str | Path) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without an image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one that holds images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: holds no image; expected one of {', '.join(sorted(SUFFIXES))}")
    return found


def read_grey(path: str | Path) -> np.ndarray:
    """An image file as Y, (H, W) float32 in [0, 1]; colours become 0.299 R + 0.587 G + 0.114 B (BT.601).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, is damaged, or holds NaN, Inf or floats outside [0, 1].
    """
    return _read(path, lambda image: to_grey(_as_array(image)))


def read_colour(path: str | Path) -> np.ndarray:
    """An image file in its own colours, (1 or 3, H, W) float32 in [0, 1], turned as its EXIF says.

    A grey one has one channel.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_grey`, and an image with transparency.
    """
    return _read(path, _in_colour)


def _read(path: str | Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            image.load()
            return convert(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error}); give a PNG, JPEG, BMP or TIFF") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _in_colour(image: Image.Image) -> np.ndarray:
    if image.mode in TRANSPARENT or "transparency" in image.info:
        raise ValueError(
            f"image: has transparency ({'+'.join(image.getbands())}), which no measurement has; put it on a "
            "background first, and save it without an alpha channel"
        )
    array = _in_unit_range(_as_array(ImageOps.exif_transpose(image))).astype(np.float32)
    return np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1))


def save_photo(path: str | Path, image: np.ndarray) -> None:
    """Write an image (1 or 3, H, W) in [0, 1] as an 8-bit PNG, replacing `path` only when all is written."""
    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(np.rint(shown * 255).astype(np.uint8))
    write_in_one_step(path, lambda part: picture.save(part, format="PNG"))


def to_grey(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, uint16, bool or float in [0, 1] -> Y, (H, W) float32 in [0, 1].

    Raises:
        ValueError: another shape or dtype, NaN, Inf, or floats outside [0, 1].
    """
    scaled = _in_unit_range(image)
    return (scaled if image.ndim == 2 else scaled @ LUMA).astype(np.float32)


def _in_unit_range(image: np.ndarray) -> np.ndarray:
    """An image of any dtype that photographs have as float64 in [0, 1]."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"image: expected (H, W) or (H, W, 3), got {image.shape}")
    if image.dtype.kind == "f":
        scaled = image.astype(np.float64)
        if not np.isfinite(scaled).all():
            raise ValueError("image: holds NaN or Inf; fix those pixels first")
        if scaled.min() < 0 or scaled.max() > 1:
            raise ValueError(
                f"image: expected floats in [0, 1], got {scaled.min():.4g} to {scaled.max():.4g}"
            )
    elif image.dtype in (np.uint8, np.uint16, np.bool_):
        scaled = image / (1.0 if image.dtype == np.bool_ else np.iinfo(image.dtype).max)
    else:
        raise ValueError(f"image: expected uint8, uint16, bool or float, got {image.dtype}")
    return scaled


class PhotoCrops:
    """Random square crops of photographs, flipped and turned at random.

    Args:
        folders: folders of images; larger images are drawn more often, in proportion to their pixels.
        seed: the k-th batch depends only on the seed and on k, so a resumed run sees what it would have seen.
        colour: whether crops are in colour, with three channels, or grey, with one.

    Raises:
        ValueError, OSError: a folder without an image, or an image that cannot be read.
    """

    def __init__(self, folders: list[str] | list[Path], seed: int = 0, colour: bool = False):
        paths = [path for folder in folders for path in list_photos(folder)]
        read = _read_three if colour else _read_one
        photos = [np.rint(read(path) * 255).astype(np.uint8) for path in paths]
        self.images = [photo for index, photo in enumerate(photos) if index % HELD_OUT]
        self.validation = photos[::HELD_OUT]
        self.seed = seed

    def batch(self, index: int, count: int, side: int) -> Tensor:
        """Batch number `index`: (count, 1 or 3, side, side) float32 in [0, 1]."""
        self.check_side(side)
        large = [image for image in self.images if min(image.shape[:2]) >= side]
        random = np.random.default_rng((self.seed, index))
        weights = np.array([image.size for image in large], dtype=np.float64)
        chosen = random.choice(len(large), size=count, p=weights / weights.sum())
        crops = np.stack([_random_crop(large[i], side, random) for i in chosen])
        return _batch(crops)

    def check_side(self, side: int) -> None:
        """Raise if no training photograph is large enough for a crop of this side."""
        if not any(min(image.shape[:2]) >= side for image in self.images):
            raise ValueError(f"crop: no training image is {side}x{side} pixels or more; use smaller crops")

    def held_out(self, side: int) -> Tensor:
        """Centres of the photographs that are held out, (N, 1 or 3, side, side)."""
        images = [image for image in self.validation if min(image.shape[:2]) >= side]
        if not images:
            raise ValueError(f"data: no held-out photograph is {side}x{side} pixels or more; add larger ones")
        centres = [
            _crop(image, (image.shape[0] - side) // 2, (image.shape[1] - side) // 2, side) for image in images
        ]
        return _batch(np.stack(centres))


def principal_phi(photos: PhotoCrops, rows: int, block: int, crops: int = 30_000) -> Tensor:
    """The first principal components of blocks of the training photographs, (rows, block^2), orthonormal.

    Of all matrices with that many rows, this Phi loses the least energy of the training blocks, so a learned
    Phi that starts here starts from the best linear measurement.
    """
    covariance = torch.zeros(block * block, block * block, dtype=torch.float64)
    for index in range(0, crops, 1000):
        blocks = photos.batch(PRINCIPAL_BATCH + index, 1000, block).flatten(1).double()
        covariance += blocks.T @ blocks
    return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :rows].T.float().contiguous()


def _read_one(path: Path) -> np.ndarray:
    """(H, W, 1)"""
    return read_grey(path)[..., None]


def _read_three(path: Path) -> np.ndarray:
    """(H, W, 3)"""
    image = read_colour(path).transpose(1, 2, 0)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _batch(crops: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)


def _as_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)  # in this machine's byte order, whatever the file's
    if image.mode in ("L", "1", "F", "RGB"):
        return np.asarray(image)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"expected 16-bit values, got {values.min()} to {values.max()}")
        return values.astype(np.uint16)
    return np.asarray(image.convert("RGB"))


def _crop(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _random_crop(image: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    top = random.integers(image.shape[0] - side + 1)
    left = random.integers(image.shape[1] - side + 1)
    crop = np.rot90(_crop(image, top, left, side), int(random.integers(4)))
    return crop[:, ::-1] if random.integers(2) else crop
