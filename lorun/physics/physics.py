"""The contract that every measurement model keeps: y = A x + noise, its adjoint, and the two data steps."""

from abc import abstractmethod

from torch import Tensor, nn

Size = tuple[int, int]


class Physics(nn.Module):
    """A measurement model y = A(x) + noise, linear in x.

    A subclass gives `A`, `A_adjoint`, `hqs_step`, `check_measurement` and `channels`; the rest has defaults.
    Images x are (B, channels, H, W); the shape of y is the model's own, with the batch in front.

    Attributes:
        channels: of the image.
        noise: a module that `forward` applies to A(x), such as `GaussianNoise`; None adds none.
    """

    channels: int

    def __init__(self, noise: nn.Module | None = None):
        super().__init__()
        self.noise = noise

    @property
    def size(self) -> Size | None:
        """(H, W) of the images; None if any size will do, or none is known yet."""
        return None

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Measure, without noise: (B, channels, H, W) -> (B, ...)."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """A^T y: <A x, y> = <x, A^T y> for all x and y."""

    def forward(self, x: Tensor) -> Tensor:
        """A(x), with the noise of this camera if it has one."""
        y = self.A(x)
        return y if self.noise is None else self.noise(y)

    def start(self, y: Tensor) -> Tensor:
        """Where a network starts from, (B, channels, H, W)."""
        return self.A_adjoint(y)

    def pgd_step(self, x: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """x - rho * A^T (A x - y), Eq. 5. It converges for rho < 2 / max(A A^T)."""
        return x - rho * self.A_adjoint(self.A(x) - y)

    @abstractmethod
    def hqs_step(self, w: Tensor, y: Tensor, mu: float | Tensor) -> Tensor:
        """(A^T A + mu I)^-1 (A^T y + mu w), Eq. 9."""

    @abstractmethod
    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError or TypeError, naming y, if it is not a measurement by this model."""

    def for_size(self, size: Size) -> "Physics":
        """This model for images of (H, W), to count its cost: itself, if any size will do."""
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters with a learning rate of their own, by the setting of a phase that says which."""
        return {}


def crop_to(x: Tensor, size: Size) -> Tensor:
    """The upper-left `size` = (H, W) pixels of x: undoes the padding to whole blocks."""
    height, width = size
    if not (0 < height <= x.shape[-2] and 0 < width <= x.shape[-1]):
        raise ValueError(
            f"size: expected at most {tuple(x.shape[-2:])} for this measurement, got {(height, width)}"
        )
    return x[..., :height, :width]
