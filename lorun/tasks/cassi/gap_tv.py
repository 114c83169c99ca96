"""GAP-TV, the classical baseline of CASSI: nothing is trained, smoothness fills in what was not measured."""

import math
from collections.abc import Iterator

import numpy as np
import skimage
import torch
from torch import Tensor
from tqdm import tqdm

from lorun.physics import CASSI


@torch.no_grad()
def gap_tv(
    y: Tensor,
    physics: CASSI,
    iterations: int = 100,
    weight: float = 0.5,
    tv_iterations: int = 5,
    accelerate: bool = True,
    progress: bool = False,
) -> Tensor:
    """Restore a cube by generalized alternating projection with total variation.

    Yuan 2016, "Generalized alternating projection based total variation minimization for compressive
    sensing", arXiv 1511.03890. From ``v = Phi^T y``, each iteration projects v onto the cubes that
    measure y, ``x = v + Phi^T (y - Phi v) / diag(Phi Phi^T)``, and smooths every band of x into the next v.
    Everything but the projection runs on the CPU.

    Args:
        y: measurements (B, H, W') of cubes in [0, 1], float32 or float64, finite.
        physics: the camera, with its mask.
        iterations: at least 1.
        weight: of the total variation, above 0; larger is smoother. With acceleration it decides how soon
            the iterations settle, not where.
        tv_iterations: iterations of Chambolle's algorithm in each iteration, at least 2, because skimage's
            first changes nothing.
        accelerate: project onto the cubes that measure y plus everything that v has lacked of it so far,
            which takes fewer iterations if the measurement has little noise.
        progress: show a bar.

    Returns:
        (B, C, H, W) in [0, 1], in the dtype and on the device of y.

    Raises:
        ValueError: a y that does not fit the mask or holds NaN or Inf; a number out of its range.
        TypeError: a y of another dtype.
    """
    _check(y, physics, iterations, weight, tv_iterations)
    estimates = _estimates(y, physics, weight, tv_iterations, accelerate)
    for _ in tqdm(range(iterations), desc="GAP-TV", disable=not progress, dynamic_ncols=True):
        cube = next(estimates)
    return cube.clamp(0, 1)


def _estimates(
    y: Tensor, physics: CASSI, weight: float, tv_iterations: int, accelerate: bool
) -> Iterator[Tensor]:
    v, target = physics.A_adjoint(y), y
    while True:
        v = _smooth(physics.hqs_step(v, target, 0.0), weight, tv_iterations)
        yield v
        if accelerate:
            target = target + (y - physics.A(v))


def _smooth(x: Tensor, weight: float, iterations: int) -> Tensor:
    cubes = x.contiguous().movedim(1, -1).numpy(force=True)  # [B, H, W, C], every band in one piece
    options = {"weight": weight, "eps": 0, "max_num_iter": iterations, "channel_axis": -1}
    smooth = [skimage.restoration.denoise_tv_chambolle(cube, **options) for cube in cubes]
    return torch.from_numpy(np.stack(smooth)).movedim(-1, 1).to(x)


def _check(y: Tensor, physics: CASSI, iterations: int, weight: float, tv_iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    if not 0 < weight < math.inf:
        raise ValueError(f"weight: expected a number above 0, got {weight}; 0.5 suits cubes in [0, 1]")
    if tv_iterations < 2:
        raise ValueError(f"tv_iterations: expected at least 2, of which one smooths, got {tv_iterations}")
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"y: expected float32 or float64, got {y.dtype}; convert it with .float()")
    physics.check_measurement(y)
    if not torch.isfinite(y).all():
        raise ValueError("y: holds NaN or Inf; fix those pixels first")
