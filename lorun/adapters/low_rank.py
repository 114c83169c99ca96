"""Low-rank adapters of given weights: truncation, what each rank is worth, and a base for several weights."""

import heapq
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorun.adapters.adapter_set import LayerAdapter
from lorun_kernels import FORMS, largest_rank, matrix_shape

# Added to an input moment, relative to its mean eigenvalue: directions that no input has seen still count.
REGULARISATION = 1e-6
# An eigenvalue this far below zero, relative to the largest, is no rounding error of an estimated moment.
NEGATIVE = 1e-3


@torch.no_grad()
def truncated(
    residual: Tensor, form: str, rank: int, groups: int = 1, input_moment: Tensor | None = None
) -> LayerAdapter:
    """The best approximation of a weight's residual R by an adapter of this form and rank.

    Without `input_moment` it minimises the squared error of the weight, ``||R - Rhat||^2`` (Eckart and Young,
    1936). A rank of "reshape" is min(kernel) singular values wide. The factors share the singular values S:
    up = U sqrt(S), down = sqrt(S) V^T.

    With ``input_moment = M = E[p p^T]`` over the patches p that the layer unfolds its input into, it
    minimises the squared error of the layer's output, ``E||(R - Rhat) p||^2``: with U the first left singular
    vectors of ``R M^(1/2)``, the minimum is ``Rhat = U U^T R``. That is exact where a row of the matrix is an
    output channel: in "factored", for two or three dimensions (but for a leading 1), and for a 1x1 kernel
    without groups. A row of another "reshape" matrix holds parts of kernels, and a column of it weights of
    several entries of p. No single SVD minimises the output's error there: each column is weighted by the
    mean of its entries' second moments. This minimises that weighted error. The output's error may come out
    larger than without a moment, since correlations inside a patch are ignored; to be sure, compare both.

    Args:
        residual: in the shape of the weight, such as ``(Cout, Cin/groups, kh, kw)``, of any floating dtype.
        form: "reshape", "factored", or "full", which keeps all of R and ignores `rank` and `input_moment`.
        rank: 1 to ``largest_rank(shape, form, groups)``.
        groups: of the convolution.
        input_moment: (n, n) with n = prod(shape[1:]); of a grouped convolution, the mean over its groups. It
            may be singular: it is regularised by 1e-6 of its mean eigenvalue. If it is zero, nothing is
            weighted.

    Returns:
        The adapter, with factors in the dtype of `residual`, computed in float64.

    Raises:
        ValueError: a form, rank, shape or moment outside these, or NaN or Inf.
    """
    shape = _checked_shape("residual", residual, form, groups)
    if form == "full":
        return LayerAdapter(shape, form, delta=residual.detach().clone(), groups=groups)
    _check_rank("rank", rank, 1, shape, form, groups)
    rows, columns, inner = matrix_shape(shape, form, groups)
    matrix = residual.double().reshape(rows, columns)
    left = torch.linalg.svd(_weighted(matrix, shape, input_moment), full_matrices=False).U[:, : rank * inner]
    # U^T R needs no inverse of the moment. Its own SVD makes the two factors equally large.
    u, s, vh = torch.linalg.svd(left.mT @ matrix, full_matrices=False)
    up, down = left @ u * s.sqrt(), s.sqrt()[:, None] * vh
    return LayerAdapter(shape, form, up.to(residual.dtype), down.to(residual.dtype), groups=groups)


@torch.no_grad()
def singular_energies(
    residual: Tensor, form: str, groups: int = 1, input_moment: Tensor | None = None
) -> Tensor:
    """What each rank takes off the squared error that `truncated` minimises.

    The sum is all of that error, ``||R||^2`` or its weighted form. Only in "reshape" with kernels of unequal
    sizes, such as 3x5, or of more than two dimensions, the largest rank of Eq. 12 may span less than the
    whole matrix, and the sum is less by the energy that no adapter can reach. Arguments and errors are those
    of `truncated`, but "full" is refused, because it has no ranks.

    Returns:
        Energies of ranks 1 to ``largest_rank(shape, form, groups)``, float64, the largest first.
    """
    shape = _checked_shape("residual", residual, form, groups)
    _refuse_full(form)
    rows, columns, inner = matrix_shape(shape, form, groups)
    ranks = largest_rank(shape, form, groups)
    values = torch.linalg.svdvals(_weighted(residual.double().reshape(rows, columns), shape, input_moment))
    return values[: ranks * inner].square().reshape(ranks, inner).sum(1)


def allocate_ranks(
    energies: Mapping[str, Tensor],
    costs: Mapping[str, int],
    *,
    parameters: int | None = None,
    energy: float | None = None,
    least: int = 0,
) -> dict[str, int]:
    """The rank of each layer: the most energy for a budget of parameters, or the fewest for an energy.

    Rank by rank, it buys where the next one brings most energy per parameter. As the energies of a layer
    fall, this is optimal but for the last rank: if all costs are equal, it is the optimum; otherwise it
    misses at most the energy of one more rank, or spends less than the parameters of one rank too many. A
    rank that brings nothing is never bought.

    Args:
        energies: of each rank of each layer, by name, from `singular_energies`; a name may be of one stage.
        costs: parameters of one rank of each layer, at least 1: the elements of `factor_shapes` at rank 1.
        parameters: the most that the ranks may cost together.
        energy: the share in (0, 1] of all the energies that the ranks must reach together.
        least: the smallest rank, for layers that have that many.

    Raises:
        ValueError: not exactly one of `parameters` and `energy`, a value outside these ranges, names that
            differ, energies that rise, or `parameters` that do not pay for `least`.
    """
    worth = _checked_energies(energies, costs)
    _check_target(parameters, energy, least)
    ranks = {name: min(least, len(values)) for name, values in worth.items()}
    spent = sum(costs[name] * rank for name, rank in ranks.items())
    if parameters is not None and parameters < spent:
        raise ValueError(
            f"parameters: expected at least {spent}, what rank {least} of every layer costs, "
            f"got {parameters}; raise it or lower `least`"
        )
    left = math.inf if parameters is None else parameters - spent
    # A sum in another order may fall short of the total by rounding.
    total = math.fsum(value for values in worth.values() for value in values)
    wanted = math.inf if energy is None else energy * total * (1 - 1e-12)
    reached = math.fsum(value for name, values in worth.items() for value in values[: ranks[name]])
    queue: list[tuple[float, str]] = []
    for name in worth:
        _offer(queue, name, worth[name], ranks[name], costs[name])
    while queue and reached < wanted:
        name = heapq.heappop(queue)[1]
        if costs[name] > left:
            continue  # a cheaper layer may still fit
        reached += worth[name][ranks[name]]
        left -= costs[name]
        ranks[name] += 1
        _offer(queue, name, worth[name], ranks[name], costs[name])
    return ranks


@torch.no_grad()
def mean_base(weights: Sequence[Tensor]) -> Tensor:
    """The mean of the stages' weights, which all have one shape: the base with the least squared residuals.

    Computed in float64, returned in the dtype of the first.

    Raises:
        ValueError: no weights, or of different shapes.
    """
    return _stacked(weights).mean(0).to(weights[0].dtype)


@torch.no_grad()
def alternating_base(
    weights: Sequence[Tensor], form: str, ranks: Sequence[int], groups: int = 1, iterations: int = 10
) -> Tensor:
    """A base W0 with a small ``sum_k ||W_k - W0 - adapter_k||^2``, adapters of given ranks included.

    It starts from the mean and alternates: the adapters are the truncated residuals ``W_k - W0``, then W0 is
    the mean of ``W_k - adapter_k``. Neither step increases the sum, so that it ends at most at that of
    `mean_base`; it need not end at the least one.

    Args:
        weights: of the stages, of one shape.
        form: of the adapters, "reshape" or "factored".
        ranks: of the adapters, one for each weight; 0 means no adapter.
        groups: of the convolution.
        iterations: at least 0; with 0 it is the mean.

    Returns:
        The base, computed in float64, in the dtype of the first weight.

    Raises:
        ValueError: a form, rank or number outside these, no weights, or of different shapes.
    """
    stack = _stacked(weights)
    shape = _checked_shape("weights", weights[0], form, groups)
    _refuse_full(form)
    if len(ranks) != len(weights):
        raise ValueError(f"ranks: expected {len(weights)}, one for each weight, got {len(ranks)}")
    for rank in ranks:
        _check_rank("ranks", rank, 0, shape, form, groups)
    if iterations < 0:
        raise ValueError(f"iterations: expected at least 0, got {iterations}")
    rows, columns, inner = matrix_shape(shape, form, groups)
    matrices = stack.reshape(-1, rows, columns)
    widths = inner * torch.tensor(ranks, device=stack.device)[:, None]
    kept = torch.arange(min(rows, columns), device=stack.device) < widths
    base = matrices.mean(0)
    for _ in range(iterations):
        u, s, vh = torch.linalg.svd(matrices - base, full_matrices=False)
        base = (matrices - (u * (s * kept)[:, None]) @ vh).mean(0)
    return base.reshape(shape).to(weights[0].dtype)


def _weighted(matrix: Tensor, shape: tuple[int, ...], input_moment: Tensor | None) -> Tensor:
    """The matrix of a residual times a root of the input's second moment, as far as the view permits."""
    if input_moment is None:
        return matrix
    size = math.prod(shape[1:])
    if input_moment.shape != (size, size):
        raise ValueError(
            f"input_moment: expected ({size}, {size}), the moment of patches of {tuple(shape[1:])}, "
            f"got {tuple(input_moment.shape)}"
        )
    if not torch.isfinite(input_moment).all():
        raise ValueError("input_moment: expected finite values, got NaN or Inf; leave out such inputs")
    moment = input_moment.to(matrix)
    scale = float(moment.diagonal().mean())
    extra = REGULARISATION * scale or 1.0
    if matrix.shape[1] == size:
        values, vectors = torch.linalg.eigh((moment + moment.mT) / 2)
        return matrix @ (vectors * (_non_negative(values) + extra).sqrt())
    entries = torch.arange(matrix.numel(), device=matrix.device).reshape(matrix.shape) % size
    return matrix * (_non_negative(moment.diagonal())[entries].mean(0) + extra).sqrt()


def _non_negative(values: Tensor) -> Tensor:
    """Eigenvalues or a diagonal of a moment, without what rounding made negative."""
    if values.min() < -NEGATIVE * values.max().clamp_min(0):
        raise ValueError(
            "input_moment: expected a positive semidefinite E[p p^T], such as patches.T @ patches / count, "
            f"got one with {values.min():.3g} among its eigenvalues or on its diagonal"
        )
    return values.clamp_min(0)


def _checked_shape(name: str, weight: Tensor, form: str, groups: int) -> tuple[int, ...]:
    """The shape of a weight that has a matrix of this form."""
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    shape = tuple(weight.shape)
    if len(shape) < 2 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            f"{name}: expected floating-point values in two or more dimensions, got {weight.dtype} of {shape}"
        )
    if groups < 1 or shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {shape[0]} output channels, got {groups}")
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}: expected finite values, got NaN or Inf in a weight of {shape}")
    return shape


def _refuse_full(form: str) -> None:
    if form == "full":
        raise ValueError('form: expected "reshape" or "factored", got "full", which has no ranks')


def _check_rank(name: str, rank: int, least: int, shape: tuple[int, ...], form: str, groups: int) -> None:
    largest = largest_rank(shape, form, groups)
    if not least <= rank <= largest:
        raise ValueError(
            f"{name}: expected {least} to {largest} for {form!r} of a weight of {shape} in {groups} groups, "
            f"got {rank}; a layer of rank 0 has no adapter"
        )


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """(K, *shape) in float64."""
    shapes = {tuple(weight.shape) for weight in weights}
    if len(shapes) != 1:
        raise ValueError(f"weights: expected one shape for all stages, got {sorted(shapes) or 'no weights'}")
    return torch.stack([weight.detach().double() for weight in weights])


def _checked_energies(energies: Mapping[str, Tensor], costs: Mapping[str, int]) -> dict[str, list[float]]:
    differing = sorted(set(energies) ^ set(costs))
    if differing:
        raise ValueError(f"energies, costs: expected the same names, but only one has {', '.join(differing)}")
    worth: dict[str, list[float]] = {name: values.tolist() for name, values in energies.items()}
    for name, values in worth.items():
        if costs[name] < 1:
            raise ValueError(f"costs: expected at least 1 parameter for a rank, got {costs[name]} for {name}")
        falls = all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))
        if not falls or not all(0 <= value < math.inf for value in values):
            raise ValueError(f"energies: expected finite values of at least 0 that do not rise, for {name}")
    return worth


def _check_target(parameters: int | None, energy: float | None, least: int) -> None:
    if (parameters is None) == (energy is None):
        raise ValueError(
            f"parameters, energy: expected exactly one, got parameters={parameters} and energy={energy}"
        )
    if parameters is not None and parameters < 0:
        raise ValueError(f"parameters: expected at least 0, got {parameters}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy: expected a share in (0, 1], such as 0.9, got {energy}")
    if least < 0:
        raise ValueError(f"least: expected a rank of at least 0, got {least}")


def _offer(queue: list[tuple[float, str]], name: str, values: list[float], rank: int, cost: int) -> None:
    """Put the rank after `rank` up for sale, the most energy per parameter first."""
    if rank < len(values) and values[rank] > 0:
        heapq.heappush(queue, (-values[rank] / cost, name))
