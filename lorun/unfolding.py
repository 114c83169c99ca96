"""PGD and HQS unfolding: K stages, each a data step and a denoiser (Eq. 5-11 of arXiv 2602.18697)."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.adapters import adapted_view
from lorun.adapters.guard import guard_loading
from lorun.physics.physics import Physics, crop_to
from lorun.step_predictor import StepPredictor
from lorun.tiling import OVERLAP, denoise_in_tiles
from lorun_kernels import StageWeights, retie

Variant = Literal["shared", "block", "lorun"]
Algorithm = Literal["pgd", "hqs"]

# The start of rho, lambda and mu.
START = 0.5


class UnfoldingNetwork(nn.Module):
    """Restores an image from y = physics.A(x) + noise in `stages` stages.

    PGD: z = x - rho_k Phi^T (Phi x - y), x = denoiser_k(z, sqrt(rho_k lambda_k))     (Eq. 5, 7)
    HQS: z = (Phi^T Phi + mu_k I)^-1 (Phi^T y + mu_k x), x = denoiser_k(z, sqrt(lambda_k / mu_k)) (Eq. 9, 11)

    Both start from physics.start(y). rho (or mu) and lambda are learned per stage, positive by softplus. If
    the physics has conditions, such as a noise level, they depend on these as well (`StepPredictor`).

    Args:
        physics: the measurement model; its parameters, such as a learned Phi, train with the network.
        denoiser: called as denoiser(x, noise_level), or, if its attribute `takes_correction` is true, as
            denoiser(x, noise_level, correction); and, if its attribute `conditions` is above 0, with the
            conditions of the physics as a last argument. It becomes the network's own.
        stages: K, at least 1.
        variant: "shared", one denoiser for all stages; "block", K independent copies of it; "lorun", one
            frozen denoiser and a low-rank adapter per stage.
        algorithm: "pgd" or "hqs".
        gamma, form: the adapters' rank in percent (Eq. 12) and form, used by "lorun" only.
        start_step: where rho (or mu) starts, above 0. PGD wants less than 2 / max(Phi Phi^T).

    Source: arXiv 2602.18697, Eq. 5-11.

    Raises:
        TypeError: a physics that is not a `lorun.physics.Physics`.
        ValueError: another argument outside of these, a denoiser without weights in variant "lorun", or one
            that takes other conditions than the physics has.
    """

    physics: Physics
    denoiser: nn.Module
    denoisers: nn.ModuleList
    predictor: StepPredictor | None
    _stage_weights: StageWeights | None = None

    def __init__(
        self,
        physics: Physics,
        denoiser: nn.Module,
        stages: int = 9,
        variant: Variant = "lorun",
        algorithm: Algorithm = "pgd",
        gamma: float = 10,
        form: str = "reshape",
        start_step: float = START,
    ):
        super().__init__()
        if not isinstance(physics, Physics):
            raise TypeError(
                f"physics: expected a lorun.physics.Physics, got {type(physics).__name__}; wrap the two "
                "functions of any linear operator as lorun.physics.Linear(A, A_adjoint, channels=...)"
            )
        if not (start_step > 0 and math.isfinite(start_step)):
            raise ValueError(f"start_step: expected a step size above 0, got {start_step}")
        if stages < 1:
            raise ValueError(f"stages: expected at least 1, got {stages}")
        if variant not in ("shared", "block", "lorun"):
            raise ValueError(f'variant: expected "shared", "block" or "lorun", got {variant!r}')
        if algorithm not in ("pgd", "hqs"):
            raise ValueError(f'algorithm: expected "pgd" or "hqs", got {algorithm!r}')
        self.stages, self.variant, self.algorithm = stages, variant, algorithm
        self.gamma, self.form = gamma, form
        self.physics = physics
        self.raw_step = nn.Parameter(torch.full((stages,), _before_softplus(start_step)))
        self.raw_lambda = nn.Parameter(torch.full((stages,), _before_softplus(START)))
        _check_conditions(physics, denoiser)
        self.predictor = StepPredictor(len(physics.conditions), stages) if physics.conditions else None
        if variant == "block":
            self.denoisers = nn.ModuleList(copy.deepcopy(denoiser) for _ in range(stages))
        else:
            self.denoiser = denoiser
        if variant == "lorun":
            denoiser.requires_grad_(False)
            self.denoisers = nn.ModuleList(adapted_view(denoiser, gamma, form) for _ in range(stages))
            guard_loading(self)
            self._stage_weights = StageWeights.of(self.denoisers)

    def with_separate_stages(self) -> "UnfoldingNetwork":
        """This Shared-K network as a Block-K one whose stages are still one denoiser; in place."""
        self.denoisers = nn.ModuleList([self.denoiser] * self.stages)
        del self.denoiser
        self.variant = "block"
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> "UnfoldingNetwork":
        super()._apply(fn, recurse)
        # to_empty() and some moves give each module that shares a Parameter one of its own.
        return retie(self, moved=True)  # type: ignore[return-value]

    def stage_denoiser(self, stage: int) -> nn.Module:
        """The denoiser of one stage, counted from 0."""
        return self.denoiser if self.variant == "shared" else self.denoisers[stage]

    @torch.no_grad()
    def grow(self, before: int, after: int) -> None:
        """Give stages `before` to `after` - 1, which have not run yet, the rates of the one before them."""
        for raw in (self.raw_step, self.raw_lambda):
            raw.data[before:after] = raw.data[before - 1]
        if self.predictor is not None:
            self.predictor.copy_stage(before - 1, before, after)

    @property
    def step_size(self) -> Tensor:
        """rho (PGD) or mu (HQS) of every stage, (K,), positive; before what conditions add."""
        return F.softplus(self.raw_step)

    @property
    def step(self) -> Tensor:
        """`step_size` by its old name; a camera's `physics.step` is something else, columns between bands."""
        return self.step_size

    @property
    def lam(self) -> Tensor:
        """lambda of every stage, (K,), positive; before what conditions add."""
        return F.softplus(self.raw_lambda)

    def rates(self, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """rho (or mu) and lambda of every stage, (K,) each; under conditions (B, n), (K, B) each."""
        if self.predictor is None or condition is None:
            return self.step_size, self.lam
        step, lam = self.predictor(condition)
        return F.softplus(self.raw_step[:, None] + step), F.softplus(self.raw_lambda[:, None] + lam)

    def forward(
        self,
        y: Tensor,
        physics: Physics | None = None,
        size: tuple[int, int] | None = None,
        stages: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """Restore x, (B, C, H, W), from y.

        Args:
            y: measurement of `physics`.
            physics: another measurement model for this call, such as another Phi; default: the network's.
            size: (H, W) of the image, which undoes the padding to whole blocks.
            stages: run only the first that many stages, as a growing schedule does.
            tile, overlap: denoise at most tile x tile pixels at once, `overlap` of them for context on every
                side, so that large scenes run in bounded memory; data steps always see the whole scene. The
                default overlap gives what the whole scene gives, for a denoiser that says how far it looks by
                an attribute `reach`; for another it is 40 pixels (`denoise_in_tiles`).

        Returns:
            Images (B, C, H, W) in the dtype of y, about in [0, 1] and not clipped; without `size`, on whole
            blocks.

        Raises:
            ValueError, TypeError: a y that the physics did not measure, or a number outside its range.
        """
        physics = self.physics if physics is None else physics
        count = self.stages if stages is None else stages
        if not 1 <= count <= self.stages:
            raise ValueError(f"stages: expected 1 to {self.stages}, got {count}")
        x, condition = physics.start(y), physics.condition(y)
        (step, lam), measured = self.rates(condition), physics.prepare(y)
        for k in range(count):
            if self.algorithm == "pgd":
                z, noise_level = physics.pgd_step(x, measured, step[k]), (step[k] * lam[k]).sqrt()
            else:
                z, noise_level = physics.hqs_step(x, measured, step[k]), (lam[k] / step[k]).sqrt()
            with self._merged(k):
                x = self._denoise(k, x, z, noise_level, condition, tile, overlap)
        return x if size is None else crop_to(x, size)

    def _merged(self, stage: int) -> AbstractContextManager[None]:
        """A context in which the adapters of a stage are merged together, if that is faster."""
        if self._stage_weights is None:
            return nullcontext()
        return self._stage_weights.stage(stage, only_if_it_pays=True)

    def _denoise(
        self,
        stage: int,
        x: Tensor,
        z: Tensor,
        level: Tensor,
        condition: Tensor | None,
        tile: int | None,
        overlap: int | None,
    ) -> Tensor:
        """The denoiser of a stage on z, to which the data step has brought x."""
        denoiser = self.stage_denoiser(stage)
        inputs = (z, z - x) if getattr(denoiser, "takes_correction", False) else (z,)
        told = (condition,) if getattr(denoiser, "conditions", 0) else ()
        if tile is None:
            return denoiser(z, level, *inputs[1:], *told)
        overlap = reach_of(denoiser) if overlap is None else overlap
        return denoise_in_tiles(
            lambda z, *more: denoiser(z, level, *more, *told), inputs, tile, overlap, alignment_of(denoiser)
        )

    @classmethod
    def from_shared(
        cls, shared: "UnfoldingNetwork", gamma: float = 10, form: str = "reshape"
    ) -> "UnfoldingNetwork":
        """Phase 2 of Algorithm 1: freeze a trained Shared-K network's denoiser and add adapters.

        The new network owns copies, so `shared` stays as it is; until it is trained, both restore alike.

        Raises:
            ValueError: a network of another variant, or a gamma or form that its layers refuse.
        """
        if shared.variant != "shared":
            raise ValueError(f'shared: expected a network of variant "shared", got {shared.variant!r}')
        source = copy.deepcopy(shared)
        net = cls(source.physics, source.denoiser, source.stages, "lorun", source.algorithm, gamma, form)
        net.raw_step, net.raw_lambda, net.predictor = source.raw_step, source.raw_lambda, source.predictor
        return net


def alignment_of(denoiser: nn.Module) -> int:
    """Tiles start at multiples of this many pixels, so that the denoiser pools them as it would the whole.

    Raises:
        ValueError: the denoiser does not say.
    """
    downscale = getattr(denoiser, "downscale", None)
    if not isinstance(downscale, int):
        raise ValueError(
            "tile: the denoiser does not say how its tiles must be aligned; give it an attribute downscale, "
            "1 if it works on every pixel alike"
        )
    return downscale


def reach_of(denoiser: nn.Module) -> int:
    """How many pixels of context tiles give the denoiser: as far as it looks, or 40 if it does not say."""
    return getattr(denoiser, "reach", OVERLAP)


def _check_conditions(physics: Physics, denoiser: nn.Module) -> None:
    taken = getattr(denoiser, "conditions", 0)
    if taken not in (0, len(physics.conditions)):
        raise ValueError(
            f"denoiser: takes {taken} conditions, and {type(physics).__name__} has "
            f"{len(physics.conditions)}; make it with conditions={len(physics.conditions)}"
        )


def _before_softplus(value: float) -> float:
    return math.log(math.expm1(value))
