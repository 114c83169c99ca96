"""The contract that every measurement model keeps: y = A x + noise, its adjoint, and the two data steps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Size = tuple[int, int]


class Physics(nn.Module, ABC):
    """A measurement model y = A(x) + noise whose A = Phi is linear in x and acts on every sample alone.

    Images x are (B, channels, H, W), floating point; the shape of y is the model's own, with the batch in
    front. A subclass gives `A`, `A_adjoint`, `hqs_step`, `check_measurement` and `channels`, and `size` and
    `for_size` if images of only one size will do; the rest has defaults. Method names follow deepinv's.

    Args:
        noise: becomes the attribute `noise`.

    Attributes:
        channels: of the image.
        noise: a module that `forward` applies to A(x), such as `GaussianNoise`; None adds none.
        conditions: what `condition` tells a network, in words; none by default.
    """

    channels: int
    conditions: ClassVar[tuple[str, ...]] = ()
    noise: nn.Module | None

    def __init__(self, noise: nn.Module | None = None):
        super().__init__()
        self.noise = noise

    @property
    def size(self) -> Size | None:
        """(H, W) of the images in pixels; None if any size will do, or none is known yet."""
        return None

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Phi x, without noise: (B, channels, H, W) -> (B, ...).

        Raises:
            ValueError: x is not an image of this model.
        """

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """Phi^T y, (B, ...) -> (B, channels, H, W), with <Phi x, y> = <x, Phi^T y> for all x and y.

        A model that pads its images gives the padded ones here; `crop_to` undoes it.
        """

    def forward(self, x: Tensor) -> Tensor:
        """A(x), with `noise` if there is one."""
        y = self.A(x)
        return y if self.noise is None else self.noise(y)

    def start(self, y: Tensor) -> Tensor:
        """The image that a network starts from, (B, channels, H, W): Phi^T y unless a model knows better."""
        return self.A_adjoint(y)

    def prepare(self, y: Tensor) -> Any:
        """What the data steps of all stages need of y, computed once; they take it in place of y.

        y itself unless a model has more to compute.
        """
        return y

    def condition(self, y: Tensor) -> Tensor | None:
        """Numbers about in [0, 1] that say how y was measured, (B, len(conditions)): a noise level, say.

        A network's step sizes depend on them, and so does a denoiser that takes them. None if a model has
        none.
        """
        return None

    def pgd_step(self, x: Tensor, y: Any, rho: float | Tensor) -> Tensor:
        """x - rho * Phi^T (Phi x - y), Eq. 5 of arXiv 2602.18697, in the shape of x.

        Args:
            x: (B, channels, H, W), in the shape that `A_adjoint` gives.
            y: a measurement of this model, or what `prepare` made of it.
            rho: the step size: a number, a scalar tensor or one value per sample, (B,). Repeated, the step
                converges for rho < 2 / max(Phi Phi^T).
        """
        return x - per_sample("rho", rho, x) * self.A_adjoint(self.A(x) - y)

    @abstractmethod
    def hqs_step(self, w: Tensor, y: Any, mu: float | Tensor) -> Tensor:
        """(Phi^T Phi + mu I)^-1 (Phi^T y + mu w), Eq. 9 of arXiv 2602.18697, in the shape of w.

        Args:
            w: (B, channels, H, W), in the shape that `A_adjoint` gives.
            y: a measurement of this model, or what `prepare` made of it.
            mu: weight of w: a number, a scalar tensor or one value per sample, (B,).
        """

    @abstractmethod
    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError or TypeError, naming y, if it is not a measurement by this model."""

    def for_size(self, size: Size) -> "Physics":
        """This model for images of `size` = (H, W), to count what a network costs there.

        Itself if any size will do or it has that size.

        Raises:
            ValueError: this model has another size, and cannot be built for this one.
        """
        if self.size in (None, size):
            return self
        raise ValueError(
            f"size: expected {self.size}, the only one that this {type(self).__name__} measures, got {size}"
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters with a learning rate of their own.

        A key is the training setting that says which share of the network's rate they get, such as "phi_lr".
        """
        return {}

    @torch.no_grad()
    def adjointness_error(self, x: Tensor) -> float:
        """|<A x, v> - <x, A_adjoint v>| / |A x| for random x and v: how far `A_adjoint` is from A's adjoint.

        x and v are normal, the same at every call; root mean squares over the batch. The right adjoint gives
        a few roundings, a wrong one about 1. deepinv's `adjointness_test` has the same scale.

        Args:
            x: (B, channels, H, W), of which only the shape, dtype and device are used.

        Raises:
            ValueError: `A_adjoint` does not give images of x's shape.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
        measured = self.A(x)
        v = torch.randn(measured.shape, dtype=measured.dtype, generator=generator).to(measured.device)
        back = self.A_adjoint(v)
        cropped = back[..., : x.shape[-2], : x.shape[-1]]
        if cropped.shape != x.shape:
            raise ValueError(
                f"A_adjoint: expected an image of shape {tuple(x.shape)}, as A takes, got {tuple(back.shape)}"
            )
        difference = _inner(measured, v) - _inner(x, cropped)
        norm = _inner(measured, measured).sum().sqrt()
        tiny = torch.finfo(norm.dtype).tiny
        return (difference.square().sum().sqrt() / norm.clamp_min(tiny)).item()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product of each sample, (B,), summed in float64."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b.to(a.dtype))
    return (a.double() * b.double()).flatten(1).sum(1)


def per_sample(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number or a scalar tensor as it is; one value per sample of x as (B, 1, ..., 1), in x's dtype.

    Raises:
        ValueError: neither a number nor one per sample; `name` is what the error calls it.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.numel() not in (1, len(x)):
        raise ValueError(
            f"{name}: expected a number or one per sample, ({len(x)},), got {tuple(value.shape)}"
        )
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def crop_to(x: Tensor, size: Size) -> Tensor:
    """The upper-left `size` = (H, W) pixels of x, (..., H', W'): undoes the padding to whole blocks.

    Raises:
        ValueError: a size that is not within x.
    """
    height, width = size
    if not (0 < height <= x.shape[-2] and 0 < width <= x.shape[-1]):
        raise ValueError(
            f"size: expected at most {tuple(x.shape[-2:])} for this measurement, got {(height, width)}"
        )
    return x[..., :height, :width]
