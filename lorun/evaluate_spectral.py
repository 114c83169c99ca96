"""Tables of PSNR, SSIM and SAM over spectral cubes: every scene, every method, from simulated snapshots."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import arg

from lorun import metrics
from lorun.data import save_cube
from lorun.data.spectral_crops import list_cubes
from lorun.evaluate import Score
from lorun.files import check_not_input, check_target
from lorun.restore_spectral import camera_of, load_methods
from lorun.spectral_files import OptionalPath, OptionalTile, SpectralFiles, load_cube, load_mask, mask_path
from lorun.spectral_restorer import SpectralMethod, measure


@dataclass(frozen=True)
class SpectralEval:
    """What `lorun eval --task cassi` takes."""

    protocol: Literal["cassi-mst", "cassi-matlab", "cassi-float"] = "cassi-mst"
    """What PSNR and SSIM mean for cubes."""
    result: OptionalPath = None
    """Write the first model's cubes and the truth, `pred` and `truth`, to this .mat or .npz."""
    tile: OptionalTile = None
    """Denoise in tiles of this side, at least 84 for a U-Net: large scenes in bounded memory."""
    files: Annotated[SpectralFiles, arg(name="")] = field(default_factory=SpectralFiles)


def evaluate_cubes(
    path: Path, settings: SpectralEval, models: tuple[str, ...], device: str = "auto"
) -> list[Score]:
    """Measure and restore every scene with every method.

    A cube of the mask's height and width is one scene; a larger one, whose sides are multiples of the mask's,
    is cut into scenes of that size, row by row.

    Args:
        path: a cube, or a folder of them.
        models: shipped models, model files, "gap-tv" or "smooth-start".
    """
    files, result = settings.files, settings.result
    mask_file = mask_path(files)
    if result is not None:
        check_target(result, ".mat", ".npz")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such cube or folder of cubes")
    cubes = list_cubes([path])
    if result is not None:
        check_not_input(result, mask_file, *cubes)
    methods = load_methods(list(dict.fromkeys(models)), settings.tile, device)
    bands, step = camera_of(methods)
    mask = load_mask(files, bands, step)
    blank = np.zeros((bands, *mask.shape[-2:]))
    metrics.ssim(blank, blank, settings.protocol)  # raises now where scenes are too small for its window
    scenes: dict[str, np.ndarray] = {}
    for cube in cubes:
        scenes |= cut_scenes(cube, load_cube(cube, files, bands).values, mask.shape[-2:])
    scores, restored = score_scenes(scenes, methods, mask, step, settings.protocol)
    if result is not None:
        save_cube(result, np.stack(restored), np.stack(list(scenes.values())))
    return scores


def cut_scenes(file: Path, cube: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A cube (C, H, W) as scenes of `size`, by name."""
    rows, columns = (side // of for side, of in zip(cube.shape[-2:], size, strict=True))
    if (rows * size[0], columns * size[1]) != cube.shape[-2:] or not rows * columns:
        raise ValueError(
            f"{file}: is {cube.shape[-2]}x{cube.shape[-1]} pixels, not a multiple of the mask's "
            f"{size[0]}x{size[1]}; crop it"
        )
    if rows == columns == 1:
        return {file.name: cube}
    return {
        f"{file.name} [{row},{column}]": cube[
            :, row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]
        ]
        for row in range(rows)
        for column in range(columns)
    }


def score_scenes(
    scenes: dict[str, np.ndarray],
    methods: dict[str, SpectralMethod],
    mask: np.ndarray,
    step: int,
    protocol: str,
) -> tuple[list[Score], list[np.ndarray]]:
    """Scores of every scene and method, and the first method's cubes."""
    scores, restored = [], []
    with tqdm(total=len(scenes) * len(methods), unit="cube", dynamic_ncols=True) as bar:
        for name, truth in scenes.items():
            y = measure(truth, mask, step)
            for number, (label, method) in enumerate(methods.items()):
                started = time.perf_counter()
                cube = method.restore(y, mask)
                seconds = time.perf_counter() - started
                psnr, ssim = metrics.psnr(cube, truth, protocol), metrics.ssim(cube, truth, protocol)
                scores.append(Score(name, label, psnr, ssim, seconds, protocol, mean_angle(cube, truth)))
                if number == 0:
                    restored.append(cube)
                bar.set_postfix_str(f"{name} {psnr:.2f} dB")
                bar.update()
    return scores, restored


def mean_angle(cube: np.ndarray, truth: np.ndarray) -> float | None:
    """SAM in degrees; None for a scene, or a cube, so dark that no pixel has an angle."""
    return metrics.sam(cube, truth) if (cube.any(0) & truth.any(0)).any() else None
