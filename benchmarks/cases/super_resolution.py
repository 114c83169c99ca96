"""The data steps of super-resolution, as many as a network has, beside the field's forms of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.harness.case import OURS, Call, Candidate, Case
from benchmarks.peers import super_resolution as peers
from lorun.denoisers import ResUNet
from lorun.physics import SuperResolution
from lorun.physics.blur_kernels import gaussian_kernel

CHANNELS, WIDTH = 3, 1.6
DENOISERS = "denoisers of the stages"
# The published form divides by mu, and so loses digits in float32.
TOLERANCE = 1e-3
RATES = {"pgd": 1.0, "hqs": 0.1}


class Peer(Protocol):
    def hqs_step(self, w: Tensor, y: Tensor, mu: Tensor) -> Tensor: ...

    def pgd_step(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor: ...


def data_steps(
    algorithm: str,
    device: str,
    size: int,
    scale: int,
    batch: int = 1,
    grad: bool = False,
    stages: int = 9,
    side: int = 25,
) -> Case:
    """The steps of all stages of a network on RGB images, without its denoisers.

    Args:
        algorithm: "pgd" or "hqs".
        size: of the large images, a multiple of the scale.
        grad: whether the gradients of the first image and of rho or mu are computed as well.
        side: of the kernel.
    """
    physics = SuperResolution(gaussian_kernel(WIDTH, side=side), scale, CHANNELS).to(device)
    kernel = physics.kernel
    assert kernel is not None
    x = torch.rand(batch, CHANNELS, size, size, device=device, requires_grad=grad)
    true = torch.rand(batch, CHANNELS, size, size, device=device)
    y = physics.A(true)
    rates = torch.full((stages,), RATES[algorithm], device=device, requires_grad=grad)
    # Towards the true image, where the terms of a gradient of mu do not cancel: with a random direction those
    # of the published form lose every digit in float32.
    direction = true - x.detach()
    case = Case(
        f"{batch}x{CHANNELS}x{size}x{size}, x{scale}, {stages} stages",
        images=batch,
        grad=grad,
        tolerance=TOLERANCE,
    )

    def ours() -> Tensor:
        step, prepared = getattr(physics, f"{algorithm}_step"), physics.prepare(y)
        return in_stages(lambda z, rate: step(z, prepared, rate), x, rates)

    def candidate(run: Callable[[], Tensor], **options: bool) -> Candidate:
        if not grad:
            return Candidate(lambda i: run(), **options)
        return Candidate(
            lambda i: torch.autograd.grad((run() * direction).sum(), (x, rates)),
            forward=lambda i: run(),
            **options,
        )

    def of_peer(make: Callable[[], Peer]) -> Candidate:
        """Made anew in each run: what it keeps from stage to stage is computed once in each, as ours is."""

        def run() -> Tensor:
            step = getattr(make(), f"{algorithm}_step")
            return in_stages(lambda z, rate: step(z, y, rate), x, rates)

        return candidate(run)

    def of_deepinv() -> Candidate:
        peer = peers.Deepinv(kernel, scale, (size, size), CHANNELS)
        return of_peer(lambda: peer)

    case.candidates[OURS] = candidate(ours, ours=True)
    case.add("published style", lambda: of_peer(lambda: peers.Published(kernel, scale)))
    if algorithm == "hqs":
        case.add("published style, terms once", lambda: of_peer(lambda: peers.TermsOnce(kernel, scale)))
    if not grad:
        case.candidates[DENOISERS] = Candidate(
            _denoisers(x, y, physics, stages), ours=True, unlike="what a network runs between its steps"
        )
    case.add("deepinv", of_deepinv)
    return case


def _denoisers(x: Tensor, y: Tensor, physics: SuperResolution, stages: int) -> Call:
    """Shared-K's calls of its denoiser; LoRun-K's take as long, and merge adapters as well."""
    denoiser = ResUNet(CHANNELS, conditions=len(physics.conditions)).to(x.device).eval()
    told = physics.condition(y)

    def call(i: int) -> Tensor:
        z = x
        for _ in range(stages):
            z = denoiser(z, 0.1, told)
        return z

    return call


def in_stages(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, rates: Tensor) -> Tensor:
    """A step for each rate, one after the other."""
    for rate in rates:
        x = step(x, rate)
    return x
