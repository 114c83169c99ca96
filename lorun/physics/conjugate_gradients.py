"""Preconditioned conjugate gradients, every sample of a batch on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    system: Operator,
    precondition: Operator,
    x: Tensor,
    residual: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Solve system(x) = target, from x and its residual = target - system(x).

    Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems".

    Args:
        system: symmetric, positive definite, linear, (B, ...) -> (B, ...), acting on every sample alone.
        precondition: an approximate inverse of `system`, with the same properties.
        x, residual: (B, ...), floating point.
        iterations: at most this many.
        tolerance: a sample stands still once the norm of its residual is at most this share of the norm of
            the one it began with. None asks for every iteration, and spares a GPU the wait for the norms.

    Returns:
        x and its residual, as the recursion has it.
    """
    tiny = torch.finfo(x.dtype).tiny  # a sample that is solved exactly has nothing left to divide by
    limit = None if tolerance is None else tolerance * norm(residual)
    direction = z = precondition(residual)
    product = dot(residual, z)
    for _ in range(iterations):
        moving = None if limit is None else norm(residual) > limit
        if moving is not None and not moving.any():
            break
        moved = system(direction)
        length = product / dot(direction, moved).clamp_min(tiny)
        if moving is not None:
            length = length.where(moving, 0)
        x = x + length * direction
        residual = residual - length * moved
        z = precondition(residual)
        before, product = product, dot(residual, z)
        direction = z + product / before.clamp_min(tiny) * direction
    return x, residual


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, ..., 1)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (B, 1, ..., 1)."""
    return dot(x, x).sqrt()
