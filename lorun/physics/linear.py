"""Any linear operator that is given as two functions."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorun.physics.conjugate_gradients import Operator, conjugate_gradients, norm
from lorun.physics.physics import Physics, Size, per_sample

# Random measurements that the diagonal of Phi^T Phi is estimated from. With 8, conjugate gradients took half
# as many iterations again for pixels of very different weight, and a third more for a blur without padding.
PROBES = 32
# Far above the rounding of any precision and far below what a wrong adjoint gives.
ADJOINT_TOLERANCE = 1e-2


class Linear(Physics):
    """y = A(x) for any linear A that is given, with its adjoint, as functions. HQS is by conjugate gradients.

        blur = Linear(deepinv_blur.A, deepinv_blur.A_adjoint, channels=3)

    Functions act on every sample of a batch alone, take and give tensors with the batch in front, and compute
    in float32 or float64. Images are (B, channels, ...), usually (B, channels, H, W); measurements have any
    shape, and may be complex: then A_adjoint gives the real part of Phi^H y. Functions that are modules, or
    methods of one, are registered: they move with `.to()`, and their parameters train with the network (A and
    A_adjoint must share them to stay adjoint).

    Args:
        A: x -> y, differentiable if gradients are to reach x or parameters.
        A_adjoint: y -> x.
        channels: of the image.
        size: (H, W) of the image in pixels, if the functions take only one.
        start: y -> the image that a network starts from; default: A_adjoint.
        noise: a module that physics(x) applies to A(x), such as `GaussianNoise`.
        diagonal: of Phi^T Phi, at least 0, in the shape of an image or one that broadcasts to it: the
            preconditioner of `hqs_step`, which decides how fast that is, not where it ends. None estimates it
            once for each shape of w, with 32 calls of A_adjoint.
        tolerance: of `hqs_step`, see there; a share in (0, 1).
        iterations: of conjugate gradients in one `hqs_step`, at most; at least 1.
        check_adjoint: at the first data step on images of each shape, refuse functions that are not each
            other's adjoint (`adjointness_error` above 0.01), for one more call of each.

    Raises:
        TypeError: A or A_adjoint is not callable.
        ValueError: a number out of its range.
    """

    _diagonal: Tensor | None

    def __init__(
        self,
        A: Operator,
        A_adjoint: Operator,
        *,
        channels: int,
        size: Size | None = None,
        start: Operator | None = None,
        noise: nn.Module | None = None,
        diagonal: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 200,
        check_adjoint: bool = True,
    ):
        super().__init__(noise)
        _check_functions(A=A, A_adjoint=A_adjoint, start=start)
        if channels < 1:
            raise ValueError(f"channels: expected at least 1, got {channels}")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance: expected a share in (0, 1), such as 1e-5, got {tolerance}")
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        if diagonal is not None and not (torch.isfinite(diagonal).all() and diagonal.min() >= 0):
            raise ValueError("diagonal: expected finite values of at least 0, like those of Phi^T Phi")
        self.channels, self._size = channels, None if size is None else (size[0], size[1])
        self.tolerance, self.iterations, self.check_adjoint = tolerance, iterations, check_adjoint
        # In a tuple they are not registered a second time, under names that a method has already.
        self._functions = (A, A_adjoint, A_adjoint if start is None else start)
        self.operators = nn.ModuleList(_modules_behind(self._functions))
        self.register_buffer("_diagonal", diagonal, persistent=False)
        self._estimated: dict[tuple[Any, ...], Tensor] = {}
        self._seen: set[tuple[Any, ...]] = set()

    @property
    def size(self) -> Size | None:
        """(H, W) of the images in pixels; None if any size will do."""
        return self._size

    def A(self, x: Tensor) -> Tensor:
        """Phi x: (B, channels, ...) -> (B, ...).

        Raises:
            ValueError: x has other channels or another size.
            TypeError: the function gives anything but one tensor.
        """
        self._check_image("x", x)
        return _one_tensor("A", self._functions[0](x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Phi^T y: (B, ...) -> (B, channels, ...). Raises TypeError unless the function gives one tensor."""
        return _one_tensor("A_adjoint", self._functions[1](y))

    def start(self, y: Tensor) -> Tensor:
        """The image that a network starts from, (B, channels, ...)."""
        self.check_measurement(y)
        return self._functions[2](y)

    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError unless y has the shape of A(A_adjoint(y)), computed once per shape.

        Raises TypeError if y, or what a function gives, is anything but one tensor.
        """
        _one_tensor("y", y)
        if ("y", y.shape) in self._seen:
            return
        with torch.no_grad():
            try:
                image = self._functions[1](y)
            except Exception as error:
                raise ValueError(f"y: A_adjoint does not take shape {tuple(y.shape)}: {error}") from error
            x = _one_tensor("A_adjoint", image)
            self._check_image("y: A_adjoint(y)", x)
            shape = self.A(x).shape
        if shape != y.shape:
            raise ValueError(
                f"y: expected {tuple(shape)}, what A gives for the image A_adjoint(y), {tuple(x.shape)}, "
                f"got {tuple(y.shape)}"
            )
        self._seen.add(("y", y.shape))

    def pgd_step(self, x: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """x - rho * Phi^T (Phi x - y), Eq. 5 of arXiv 2602.18697, in the shape of x.

        Args:
            x: (B, channels, ...), float32 or float64.
            y: a measurement of this model.
            rho: the step size: a number, a scalar tensor or one value per sample, (B,). Repeated, the step
                converges for rho < 2 / max(Phi Phi^T).

        Raises:
            ValueError: the functions are not each other's adjoint.
            TypeError: x is not float32 or float64.
        """
        self._check_step("x", x)
        with torch.autocast(x.device.type, enabled=False):
            return super().pgd_step(x, y, rho)

    def hqs_step(self, w: Tensor, y: Tensor, mu: float | Tensor) -> Tensor:
        """(Phi^T Phi + mu I)^-1 (Phi^T y + mu w), Eq. 9 of arXiv 2602.18697, in the shape of w.

        It is w + (Phi^T Phi + mu I)^-1 Phi^T (y - Phi w), solved by conjugate gradients until the residual of
        every sample is below `tolerance` times Phi^T (y - Phi w). Gradients with respect to w, y, mu and
        parameters of the functions cost one more solve, by the implicit-function theorem, and keep nothing of
        the iterations; they can be differentiated once, not twice.

        Args:
            w: (B, channels, ...), float32 or float64.
            y: a measurement of this model.
            mu: weight of w, at least 0: a number, a scalar tensor or one value per sample, (B,). 0 wants an
                invertible Phi^T Phi.

        Raises:
            ValueError: mu is a number below 0, or the functions are not each other's adjoint.
            TypeError: w is not float32 or float64.

        Warns:
            RuntimeWarning: the tolerance was not reached in `iterations` iterations, here or in the backward
                pass; the result is the last iterate.
        """
        self._check_step("w", w)
        if not isinstance(mu, Tensor) and not mu >= 0:
            raise ValueError(f"mu: expected a weight of at least 0, got {mu}")
        mu = per_sample("mu", mu, w)
        with torch.autocast(w.device.type, enabled=False):  # conjugate gradients need their digits
            with torch.no_grad():
                solve = self._solver(w, y, mu.detach() if isinstance(mu, Tensor) else mu)
                solution = solve(w, self.A_adjoint(y - self.A(w)))
            if not torch.is_grad_enabled():
                return solution
            # Zero in value; its gradient is that of the equation which the solution obeys.
            equation = self.A_adjoint(y - self.A(solution)) + mu * (w - solution)
            return _ImplicitSolution.apply(equation, solution, solve) if equation.requires_grad else solution

    def _solver(self, w: Tensor, y: Tensor, mu: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """solve(x, residual), which continues from x to the solution of Phi^T Phi x + mu x = something."""
        weight = self._preconditioner(w, y) + mu
        weight = torch.where(weight > 0, weight, 1)  # pixels that nothing measures, where mu is 0

        def system(x: Tensor) -> Tensor:
            return self.A_adjoint(self.A(x)) + mu * x

        def solve(x: Tensor, residual: Tensor) -> Tensor:
            solution, left = conjugate_gradients(
                system, lambda r: r / weight, x, residual, self.iterations, self.tolerance
            )
            self._warn_unless_converged(residual, left)
            return solution

        return solve

    def _preconditioner(self, w: Tensor, y: Tensor) -> Tensor:
        """The diagonal of Phi^T Phi, given or estimated."""
        if self._diagonal is not None:
            return self._diagonal.to(w)
        key = (w.shape, w.dtype, w.device)
        if key not in self._estimated:
            self._estimated[key] = estimate_diagonal(self.A_adjoint, y)
        return self._estimated[key]

    def _warn_unless_converged(self, residual: Tensor, left: Tensor) -> None:
        reached = norm(left) <= self.tolerance * norm(residual)
        if not reached.all():
            worst = (norm(left) / norm(residual))[~reached].max().item()
            warnings.warn(
                f"hqs_step: after {self.iterations} iterations of conjugate gradients the relative residual "
                f"is {worst:.1e}, above the tolerance {self.tolerance:.1e}; use a larger mu, or give Linear "
                "more iterations or a larger tolerance",
                RuntimeWarning,
                stacklevel=2,
            )

    def _check_image(self, name: str, x: Tensor) -> None:
        size = ("...",) if self._size is None else self._size
        if x.ndim < 2 or x.shape[1] != self.channels or self._size not in (None, tuple(x.shape[-2:])):
            expected = ", ".join(map(str, ("B", self.channels, *size)))
            raise ValueError(f"{name}: expected an image of shape ({expected}), got {tuple(x.shape)}")

    def _check_step(self, name: str, x: Tensor) -> None:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}; convert it with .float()")
        if not self.check_adjoint or ("x", x.shape) in self._seen:
            return
        error = self.adjointness_error(x)
        if not error <= ADJOINT_TOLERANCE:
            raise ValueError(
                "A_adjoint: expected the adjoint of A, but <A x, v> and <x, A_adjoint v> differ by "
                f"{error:.2g} of |A x| for random x and v; correct it (torch.func.vjp of A gives the right "
                "one), or pass check_adjoint=False if it is meant to be approximate"
            )
        self._seen.add(("x", x.shape))


def _one_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected one tensor, got {type(value).__name__}; several measurements make one with "
            "torch.cat, in A, and A_adjoint splits it again"
        )
    return value


class _ImplicitSolution(torch.autograd.Function):
    """The solution x of equation = b - M x = 0, with the gradient of the implicit-function theorem.

    With x held still in the equation, dx = M^-1 d(equation). M = Phi^T Phi + mu I is symmetric, so the
    gradient of `equation` is M^-1 times the solution's.
    """

    @staticmethod
    def forward(
        ctx: Any, equation: Tensor, solution: Tensor, solve: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.solve = solve
        return solution.view_as(solution)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(gradient.device.type, enabled=False):
            return ctx.solve(torch.zeros_like(gradient), gradient), None, None


def estimate_diagonal(A_adjoint: Operator, y: Tensor) -> Tensor:
    """The diagonal of Phi^T Phi, at least 0, in the shape of A_adjoint(y); of y only the shape counts.

    The mean of (Phi^T u)^2 over random signs u, the same for every sample: exact if each pixel reaches only
    one measurement, and never below 0, unlike Hutchinson's u * (Phi^T Phi u). If half of its variance over
    the pixels is noise, as for a blur, it would only slow conjugate gradients down: then all get the mean.
    """
    generator = torch.Generator().manual_seed(0)
    total = squared = torch.zeros((), device=y.device)
    for _ in range(PROBES):
        sample = A_adjoint(_signs(y, generator)).square()
        total, squared = total + sample, squared + sample.square()
    diagonal = total / PROBES
    pixels = tuple(range(1, diagonal.ndim))
    mean = diagonal.mean(pixels, keepdim=True)
    variance = (diagonal - mean).square().mean(pixels, keepdim=True)
    noise = (squared / PROBES - diagonal.square()).mean(pixels, keepdim=True) / (PROBES - 1)
    return torch.where(noise < variance / 2, diagonal, mean)


def _signs(y: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs in the shape of y; of both parts if it is complex."""
    real = torch.view_as_real(y) if y.is_complex() else y
    signs = 2.0 * torch.randint(2, real.shape[1:], generator=generator) - 1
    signs = signs.to(real.device, real.dtype).expand(real.shape).contiguous()
    return torch.view_as_complex(signs) if y.is_complex() else signs


def _modules_behind(functions: tuple[Operator, ...]) -> list[nn.Module]:
    """The modules among functions, and those whose methods they are, each once."""
    owners = [getattr(function, "__self__", function) for function in functions]
    return list({id(owner): owner for owner in owners if isinstance(owner, nn.Module)}.values())


def _check_functions(**functions: Operator | None) -> None:
    for name, function in functions.items():
        if not callable(function) and not (name == "start" and function is None):
            raise TypeError(f"{name}: expected a function of one tensor, got {type(function).__name__}")
