"""A first cube from a snapshot: the most probable one if neighbouring pixels have similar spectra.

Spectra are sums of eight cosines. From pixel to pixel, natural scenes differ mostly in brightness, the weight
of the first cosine, and less and less in the others; where they differ a lot, at an edge, they differ in all
of them. Knowing that, least squares alone separates the bands.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lorun.physics.conjugate_gradients import conjugate_gradients

# Mean squared difference between neighbouring pixels in the weight of each cosine, as a share of the
# second's, over the four CAVE scenes that LoRun trains on (balloons, chart_and_stuffed_toy, paints, sponges).
ROUGHNESS = (26.0, 1.0, 0.65, 0.082, 0.067, 0.028, 0.028, 0.013)
SMOOTHING = 20.0
# Rounds of conjugate gradients, each using the edges that the previous one found, and iterations of each.
ROUNDS, ITERATIONS = 5, 16
# A squared difference counts as an edge unless it is far below this share of the mean.
EDGE_FLOOR = 1e-2
# Without it the preconditioner would divide by zero at frequency zero.
FLOOR = 1e-3


class Camera(Protocol):
    """What `smooth_start` needs of a camera: `CASSI` has it."""

    bands: int

    @property
    def mask(self) -> Tensor: ...
    @property
    def offsets(self) -> list[int]: ...
    def A(self, x: Tensor) -> Tensor: ...
    def back_project(self, y: Tensor) -> Tensor: ...


def smooth_start(camera: Camera, y: Tensor, guess: Tensor, rounds: int = ROUNDS) -> Tensor:
    """The cube E w that approaches argmin over w of |Phi E w - y|^2 + s sum over neighbours of |w_p - w_q|.

    E holds the first eight functions of the discrete cosine transform over the bands, each times the root of
    its ROUGHNESS, so that all differences of w count alike: total variation of the whole spectrum at once.
    It is iteratively reweighted least squares with weights whose mean is 1. Each round is solved by conjugate
    gradients, whose preconditioner is the exact inverse for a mask of independent pixels with this mean and
    variance. Only eight numbers in it come from data.

    Args:
        camera: `CASSI`, with its mask.
        y: measurements, (B, H, W'); float32 or float64; other types are computed in float32.
        guess: the cube to begin with, (B, C, H, W).
        rounds: at least 0; the first one knows no edges.

    Returns:
        (B, C, H, W) in the dtype of y.
    """
    with torch.autocast(y.device.type, enabled=False):  # conjugate gradients need their digits
        return _solve(camera, y, guess, rounds)


def _solve(camera: Camera, y: Tensor, guess: Tensor, rounds: int) -> Tensor:
    if y.shape[0] == 0:
        return guess
    dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    scale = torch.tensor(ROUGHNESS[: camera.bands], dtype=dtype, device=y.device).sqrt()
    basis = cosines(camera.bands, len(scale)).to(y.device, dtype) * scale

    def expand(weights: Tensor) -> Tensor:
        return (basis @ weights.flatten(2)).unflatten(2, weights.shape[2:]).to(y.dtype)

    def reduce(cube: Tensor) -> Tensor:
        return (basis.T @ cube.to(dtype).flatten(2)).unflatten(2, cube.shape[2:])

    def normal(weights: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        seen = reduce(camera.back_project(camera.A(expand(weights))))
        return seen + SMOOTHING * _laplacian(weights, edges)

    target = reduce(camera.back_project(y))
    weights = reduce(guess.contiguous()) / scale.pow(2).view(1, -1, 1, 1)
    precondition = _preconditioner(camera, basis, scale, (guess.shape[-2], guess.shape[-1]))
    edges = (weights.new_ones(()), weights.new_ones(()))
    for number in range(rounds):
        edges = _edges(weights) if number else edges
        system = partial(normal, edges=edges)
        residual = target - system(weights)
        weights, _ = conjugate_gradients(system, precondition, weights, residual, ITERATIONS)
    return expand(weights)


def cosines(bands: int, count: int) -> Tensor:
    """The first functions of the discrete cosine transform, (bands, count) float64, orthonormal."""
    band = torch.arange(bands, dtype=torch.float64) + 0.5
    functions = torch.cos(math.pi / bands * band[:, None] * torch.arange(count, dtype=torch.float64))
    return functions / functions.norm(dim=0)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the differences from the pixel below and on the right: 1 on average, small at an edge."""
    down, right = (x.diff(dim=dim).square().sum(1, keepdim=True) for dim in (2, 3))
    mean = (_mean(down) + _mean(right)) / 2
    down, right = (
        EDGE_FLOOR + squared / mean.clamp_min(torch.finfo(x.dtype).tiny) for squared in (down, right)
    )
    down, right = down.rsqrt(), right.rsqrt()
    mean = (_mean(down) + _mean(right)) / 2
    return down / mean, right / mean


def _mean(x: Tensor) -> Tensor:
    return x.mean((1, 2, 3), keepdim=True) if x.numel() else x.new_zeros(())


def _laplacian(x: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """At every pixel, the weighted sum of its differences from its neighbours."""
    out = torch.zeros_like(x)
    down, right = x.diff(dim=2) * edges[0], x.diff(dim=3) * edges[1]
    out[:, :, :-1] -= down
    out[:, :, 1:] += down
    out[..., :-1] -= right
    out[..., 1:] += right
    return out


def _preconditioner(
    camera: Camera, basis: Tensor, scale: Tensor, size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    """A function that solves the normal equations of the average mask, frequency by frequency.

    A shift by o columns is a phase at horizontal frequency f. Averaged over masks, E^T Phi^T Phi E becomes
    mean^2 conj(v) v^T + variance E^T E, with v = E^T exp(-2 pi i f o) and E^T E diagonal; the penalty is one
    number per frequency. That is a diagonal plus one product of vectors, which the Sherman-Morrison formula
    inverts.
    """
    height, width = size
    mask, dtype, device = camera.mask.to(basis.dtype), basis.dtype, basis.device
    across = torch.fft.rfftfreq(width, device=device, dtype=dtype)
    down = torch.fft.fftfreq(height, device=device, dtype=dtype)
    offsets = torch.tensor(camera.offsets, device=device, dtype=dtype)
    angles = -2 * math.pi * across[:, None] * offsets
    v = (torch.polar(torch.ones_like(angles), angles) @ basis.to(angles.dtype.to_complex())).T
    penalty = (2 - 2 * torch.cos(2 * math.pi * down))[:, None] + 2 - 2 * torch.cos(2 * math.pi * across)
    of_each = (mask if mask.dim() == 4 else mask.unsqueeze(0)).flatten(1)  # a row per sample, or one for all
    variance, power = (x.view(-1, 1, 1, 1) for x in (of_each.var(1, correction=0), of_each.mean(1).square()))
    diagonal = variance * scale.square().view(-1, 1, 1) + SMOOTHING * penalty + FLOOR
    solved = v.conj()[:, None] / diagonal  # [sample, cosine, down, across]
    share = power / (1 + power * (v[:, None] * solved).real.sum(1, keepdim=True))

    def apply(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        common = (solved.conj() * spectrum).sum(1, keepdim=True) * share
        return torch.fft.irfft2(spectrum / diagonal - solved * common, s=size)

    return apply
