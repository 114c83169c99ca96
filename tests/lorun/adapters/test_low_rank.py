"""Truncated adapters against SVDs in numpy, budgets against brute force, and bases against the mean."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lorun.adapters.low_rank import allocate_ranks, alternating_base, mean_base, singular_energies, truncated
from lorun_kernels.adapter_shapes import factor_shapes, largest_rank, matrix_shape

# Weights by name: shape and groups. Odd sizes, grouped, depthwise, linear, Conv1d, Conv3d, positions.
WEIGHTS = {
    "conv": ((10, 7, 3, 3), 1),
    "wide": ((9, 5, 3, 5), 1),
    "1x1": ((6, 11, 1, 1), 1),
    "grouped": ((12, 5, 3, 3), 2),
    "depthwise": ((8, 1, 3, 3), 8),
    "linear": ((9, 13), 1),
    "conv1d": ((7, 5, 3), 1),
    "conv1d-grouped": ((8, 3, 5), 2),
    "conv3d": ((8, 3, 3, 3, 3), 1),
    "conv3d-grouped": ((8, 3, 1, 3, 3), 2),
    "positions": ((1, 9, 5), 1),
}
CASES = [(name, form) for name in WEIGHTS for form in ("reshape", "factored")]
# The largest rank of Eq. 12 spans less than these matrices.
PARTLY = {("wide", "reshape"), ("conv3d", "reshape")}


def weight(name: str, seed: int = 0) -> tuple[Tensor, int]:
    shape, groups = WEIGHTS[name]
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), groups


def random_moment(size: int, seed: int = 0, rank: int | None = None) -> Tensor:
    """The second moment of correlated patches, of entries of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, rank or size, dtype=torch.float64, generator=generator)
    scales = torch.rand(size, 1, dtype=torch.float64, generator=generator).mul(4).exp()
    mixing = scales * mixing
    return mixing @ mixing.T / size


def regularised(moment: Tensor) -> Tensor:
    """What is minimised instead, so that a direction without inputs counts at all."""
    return moment + 1e-6 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def output_error(error: Tensor, moment: Tensor) -> float:
    flat = error.reshape(error.shape[0], -1)
    return torch.einsum("ij,jk,ik->", flat, moment, flat).item()


@pytest.mark.parametrize("name, form", CASES)
def test_the_error_is_the_tail_of_the_singular_values(name, form):
    residual, groups = weight(name)
    rows, columns, inner = matrix_shape(tuple(residual.shape), form, groups)
    values = np.linalg.svd(residual.numpy().reshape(rows, columns), compute_uv=False)
    for rank in range(1, largest_rank(tuple(residual.shape), form, groups) + 1):
        adapter = truncated(residual, form, rank, groups)
        tail = (values[rank * inner :] ** 2).sum()
        error = (residual - adapter.added()).square().sum().item()
        assert error == pytest.approx(tail, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("name, form", CASES)
def test_factors_have_the_shapes_of_layers_and_share_the_singular_values(name, form):
    residual, groups = weight(name)
    rank = largest_rank(tuple(residual.shape), form, groups)
    adapter = truncated(residual, form, rank, groups)
    up, down = factor_shapes(tuple(residual.shape), form, rank, groups)
    assert (adapter.up.shape, adapter.down.shape) == (up, down)
    assert (adapter.shape, adapter.form, adapter.groups) == (tuple(residual.shape), form, groups)
    torch.testing.assert_close(adapter.up.square().sum(0), adapter.down.square().sum(1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name, form", [case for case in CASES if case not in PARTLY])
def test_the_full_rank_reproduces(name, form, weighted):
    residual, groups = weight(name)
    moment = random_moment(residual[0].numel(), rank=2) if weighted else None  # singular
    rank = largest_rank(tuple(residual.shape), form, groups)
    added = truncated(residual, form, rank, groups, moment).added()
    torch.testing.assert_close(added, residual, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, form", CASES)
def test_the_energies_are_what_each_rank_takes_off_the_error(name, form):
    residual, groups = weight(name)
    energies = singular_energies(residual, form, groups)
    assert len(energies) == largest_rank(tuple(residual.shape), form, groups)
    assert (energies.diff() <= 0).all()
    left = residual.square().sum()
    for rank, energy in enumerate(energies, start=1):
        error = (residual - truncated(residual, form, rank, groups).added()).square().sum()
        torch.testing.assert_close(energy, left - error)
        left = error
    assert (left.item() > 0.1) == ((name, form) in PARTLY)


def test_full_keeps_everything_and_shares_no_memory():
    residual = torch.randn(4, 3, 3, 3)
    adapter = truncated(residual, "full", 0)
    assert torch.equal(adapter.added(), residual) and adapter.up is None
    assert adapter.delta.data_ptr() != residual.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_have_the_dtype_of_the_residual_and_its_logical_order(dtype):
    residual = torch.randn(6, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    adapter = truncated(residual, "reshape", 2)
    assert adapter.up.dtype == adapter.down.dtype == dtype and not adapter.up.requires_grad
    expected = truncated(residual.detach().double().contiguous(), "reshape", 2)
    torch.testing.assert_close(adapter.up, expected.up.to(dtype))
    assert singular_energies(residual, "reshape").dtype == torch.float64


# Forms in which a row of the matrix is an output channel: there the weighting is exact.
EXACT = [
    *((name, "factored") for name in WEIGHTS if name != "positions"),
    *((name, "reshape") for name in ("1x1", "linear", "conv1d", "conv1d-grouped")),
]


@pytest.mark.parametrize("name, form", EXACT)
def test_a_moment_makes_the_output_error_least(name, form):
    residual, groups = weight(name)
    moment = regularised(random_moment(residual[0].numel()))
    values, vectors = np.linalg.eigh(moment.numpy())
    root = vectors * np.sqrt(values)
    tails = np.linalg.svd(residual.numpy().reshape(len(residual), -1) @ root, compute_uv=False) ** 2
    given = random_moment(residual[0].numel())
    energies = singular_energies(residual, form, groups, given)
    for rank in range(1, len(energies)):
        weighted = output_error(residual - truncated(residual, form, rank, groups, given).added(), moment)
        plain = output_error(residual - truncated(residual, form, rank, groups).added(), moment)
        assert weighted == pytest.approx(tails[rank:].sum())
        assert energies[rank:].sum().item() == pytest.approx(weighted)
        assert weighted < plain * (1 - 1e-3)


def test_the_moment_of_real_patches_makes_the_error_of_the_output_smaller():
    images = torch.nn.functional.avg_pool2d(torch.randn(2, 3, 20, 20, dtype=torch.float64), 5, stride=1) + 0.3
    patches = torch.nn.functional.unfold(images, 3).movedim(1, -1).reshape(-1, 27)
    residual = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    errors = []
    for moment in (None, patches.T @ patches / len(patches)):
        error = residual - truncated(residual, "factored", 2, input_moment=moment).added()
        errors.append(torch.nn.functional.conv2d(images, error).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", ["conv", "wide", "grouped", "depthwise", "conv3d", "conv3d-grouped"])
def test_a_moment_weights_the_columns_of_a_reshape_matrix(name):
    residual, groups = weight(name)
    moment = random_moment(residual[0].numel())
    rows, columns, inner = matrix_shape(tuple(residual.shape), "reshape", groups)
    diagonal = regularised(moment).diagonal().expand(len(residual), -1).reshape(rows, columns).mean(0)
    energies = singular_energies(residual, "reshape", groups, moment)
    for rank in range(1, len(energies)):
        weighted, plain = (
            ((residual - truncated(residual, "reshape", rank, groups, m).added()).reshape(rows, columns) ** 2)
            .mul(diagonal)
            .sum()
            .item()
            for m in (moment, None)
        )
        scaled = residual.reshape(rows, columns) * diagonal.sqrt()
        assert weighted == pytest.approx((np.linalg.svd(scaled)[1][rank * inner :] ** 2).sum())
        assert weighted < plain
    total = (residual.reshape(rows, columns).square() * diagonal).sum()
    assert energies.sum() < total * (1 + 1e-12)
    if (name, "reshape") not in PARTLY:
        torch.testing.assert_close(energies.sum(), total)


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_a_moment_of_no_direction_weights_nothing(form):
    residual, _ = weight("conv")
    for moment in (torch.zeros(63, 63), torch.eye(63, dtype=torch.float64) * 7):
        added = truncated(residual, form, 2, input_moment=moment).added()
        torch.testing.assert_close(added, truncated(residual, form, 2).added())


def test_a_singular_moment_still_approximates_what_no_input_has_shown():
    residual, _ = weight("linear")
    moment = torch.zeros(13, 13, dtype=torch.float64)
    moment[0, 0] = 1.0
    added = truncated(residual, "factored", 3, input_moment=moment).added()
    torch.testing.assert_close(added[:, 0], residual[:, 0], rtol=0, atol=1e-5)
    # Rank 1 is for the only direction; the others are for the rest of what stands at right angles to it.
    first = residual[:, :1] / residual[:, :1].norm()
    rest = np.linalg.svd((residual - first @ first.T @ residual)[:, 1:], compute_uv=False)
    error = (residual - added).square().sum().item()
    assert error == pytest.approx((rest[2:] ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"form": "tucker"}, "form: expected one of reshape, factored, full, got 'tucker'"),
        ({"rank": 0}, "rank: expected 1 to 4 .* got 0; a layer of rank 0 has no adapter"),
        ({"rank": 5}, "rank: expected 1 to 4 .* got 5"),
        ({"groups": 4}, "groups: expected a divisor of the 6 output channels, got 4"),
        ({"residual": torch.zeros(6)}, "residual: expected .* two or more dimensions, got torch.float32 of"),
        (
            {"residual": torch.ones(6, 4, dtype=torch.int64)},
            "residual: expected floating-point .* got torch.int64",
        ),
        ({"residual": torch.full((6, 4, 3, 3), math.nan)}, "residual: expected finite values"),
        ({"input_moment": torch.eye(4)}, r"input_moment: expected \(36, 36\), .* got \(4, 4\)"),
        ({"input_moment": torch.full((36, 36), math.inf)}, "input_moment: expected finite"),
        ({"input_moment": -torch.eye(36)}, "input_moment: expected a positive semidefinite"),
        (
            {"input_moment": -torch.eye(36), "form": "factored"},
            "input_moment: expected a positive semidefinite",
        ),
    ],
)
def test_truncated_refuses_by_name(change, message):
    arguments = {"residual": torch.ones(6, 4, 3, 3), "form": "reshape", "rank": 1, **change}
    with pytest.raises(ValueError, match=message):
        truncated(**arguments)


def random_energies(seed: int, layers: int = 3, ranks: int = 4) -> dict[str, Tensor]:
    values = torch.rand(layers, ranks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {f"layer{index}": row.sort(descending=True).values for index, row in enumerate(values)}


def every_choice(energies, costs, least=0):
    """(parameters, energy) of every choice of ranks."""
    for ranks in itertools.product(*(range(min(least, len(e)), len(e) + 1) for e in energies.values())):
        chosen = dict(zip(energies, ranks, strict=True))
        yield spent(chosen, costs), reached(chosen, energies)


def spent(ranks, costs) -> int:
    return sum(costs[name] * rank for name, rank in ranks.items())


def reached(ranks, energies) -> float:
    return sum(energies[name][:rank].sum().item() for name, rank in ranks.items())


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_at_equal_costs_buys_the_most_energy_of_all_choices(seed, least):
    energies = random_energies(seed)
    costs = dict.fromkeys(energies, 7)
    for budget in range(7 * 3 * least, 90, 3):
        ranks = allocate_ranks(energies, costs, parameters=budget, least=least)
        best = max(e for cost, e in every_choice(energies, costs, least) if cost <= budget)
        assert spent(ranks, costs) <= budget and min(ranks.values()) >= least
        assert reached(ranks, energies) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_at_other_costs_is_optimal_but_for_one_rank(seed):
    energies, costs = random_energies(seed), {"layer0": 3, "layer1": 5, "layer2": 11}
    for budget in range(0, 80, 3):
        ranks = allocate_ranks(energies, costs, parameters=budget)
        best = max(e for cost, e in every_choice(energies, costs) if cost <= budget)
        left = [energies[name][rank].item() for name, rank in ranks.items() if rank < len(energies[name])]
        assert spent(ranks, costs) <= budget
        assert best - max(left, default=0) <= reached(ranks, energies) + 1e-12 <= best + 2e-12
        # What is left does not pay for another rank of any layer.
        assert all(costs[n] > budget - spent(ranks, costs) for n, r in ranks.items() if r < len(energies[n]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.99, 1.0])
def test_an_energy_is_reached_with_few_parameters(seed, share):
    energies = random_energies(seed)
    wanted = share * reached(dict.fromkeys(energies, 4), energies) * (1 - 1e-9)
    for costs in (dict.fromkeys(energies, 7), {"layer0": 3, "layer1": 5, "layer2": 11}):
        ranks = allocate_ranks(energies, costs, energy=share)
        assert reached(ranks, energies) >= wanted
        fewest = min(cost for cost, e in every_choice(energies, costs) if e >= wanted)
        equal = len(set(costs.values())) == 1
        assert spent(ranks, costs) == fewest if equal else spent(ranks, costs) < fewest + max(costs.values())


def test_ranks_that_bring_nothing_are_not_bought_and_least_is_bought_first():
    energies = {"a": torch.tensor([4.0, 0.0]), "b": torch.tensor([1.0, 0.5]), "c": torch.tensor([0.0])}
    costs = {"a": 1, "b": 1, "c": 1}
    assert allocate_ranks(energies, costs, parameters=100) == {"a": 1, "b": 2, "c": 0}
    assert allocate_ranks(energies, costs, energy=1.0) == {"a": 1, "b": 2, "c": 0}
    assert allocate_ranks(energies, costs, parameters=5, least=2) == {"a": 2, "b": 2, "c": 1}
    assert allocate_ranks(energies, costs, energy=0.1, least=1) == {"a": 1, "b": 1, "c": 1}


def test_rounding_in_a_sum_buys_no_rank():
    energies = {str(index): torch.tensor([0.1], dtype=torch.float64) for index in range(10)}
    assert sum([0.1] * 10) < math.fsum([0.1] * 10)
    energies["noise"] = torch.tensor([1e-30], dtype=torch.float64)
    assert allocate_ranks(energies, dict.fromkeys(energies, 1), energy=1.0)["noise"] == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "parameters, energy: expected exactly one, got parameters=None and energy=None"),
        ({"parameters": 1, "energy": 0.5}, "expected exactly one"),
        ({"parameters": -1}, "parameters: expected at least 0, got -1"),
        ({"parameters": 5, "least": 2}, "parameters: expected at least 6, .* rank 2 .* got 5"),
        ({"energy": 0.0}, r"energy: expected a share in \(0, 1\]"),
        ({"energy": 1.5}, r"energy: expected a share in \(0, 1\]"),
        ({"energy": 0.5, "least": -1}, "least: expected a rank of at least 0"),
        ({"energy": 0.5, "costs": {"a": 0}}, "costs: expected at least 1 .* for a"),
        ({"energy": 0.5, "costs": {"b": 1}}, "expected the same names, but only one has a, b"),
        ({"energy": 0.5, "energies": {"a": torch.tensor([1.0, 2.0])}}, "energies: .* do not rise, for a"),
        ({"energy": 0.5, "energies": {"a": torch.tensor([math.nan])}}, "energies: expected finite .* for a"),
    ],
)
def test_allocate_ranks_refuses_by_name(change, message):
    arguments = {"energies": {"a": torch.tensor([2.0, 1.0])}, "costs": {"a": 3}, **change}
    with pytest.raises(ValueError, match=message):
        allocate_ranks(**arguments)


def total_error(weights, base, form, ranks, groups) -> float:
    residuals = [w - base for w in weights]
    return sum(
        (r - (truncated(r, form, rank, groups).added() if rank else 0)).square().sum().item()
        for r, rank in zip(residuals, ranks, strict=True)
    )


@pytest.mark.parametrize("name, form", [("conv", "reshape"), ("grouped", "factored"), ("conv3d", "reshape")])
def test_alternation_never_increases_the_error_and_ends_below_the_mean(name, form):
    weights, groups = [weight(name, seed)[0] for seed in range(4)], WEIGHTS[name][1]
    ranks = [1, 2, 0, 1]
    bases = [alternating_base(weights, form, ranks, groups, iterations=count) for count in range(8)]
    errors = [total_error(weights, base, form, ranks, groups) for base in bases]
    torch.testing.assert_close(bases[0], mean_base(weights))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.97 * errors[0]


@pytest.mark.parametrize("name, form", [("wide", "reshape"), ("depthwise", "factored")])
def test_an_alternation_is_the_mean_without_the_truncated_residuals(name, form):
    weights, groups = [weight(name, seed)[0] for seed in range(3)], WEIGHTS[name][1]
    mean = mean_base(weights)
    rest = [
        w - truncated(w - mean, form, rank, groups).added()
        for w, rank in zip(weights, (1, 2, 1), strict=True)
    ]
    found = alternating_base(weights, form, (1, 2, 1), groups, iterations=1)
    torch.testing.assert_close(found, mean_base(rest))


def test_alternation_finds_a_base_that_the_mean_is_not():
    """One of five stages differs, and by little more than its adapter can describe."""
    base = torch.randn(8, 8, dtype=torch.float64)
    jump = torch.randn(8, 1, dtype=torch.float64) @ torch.randn(1, 8, dtype=torch.float64)
    weights = [base + 10 * jump, *[base] * 4]
    found = alternating_base(weights, "factored", [1, 0, 0, 0, 0], iterations=40)
    torch.testing.assert_close(found, base, rtol=0, atol=1e-6)
    assert (mean_base(weights) - base).abs().max() > 1


def test_bases_have_the_dtype_of_the_weights_and_no_gradient():
    weights = [torch.randn(6, 4, 3, 3, requires_grad=True) for _ in range(3)]
    for base in (mean_base(weights), alternating_base(weights, "reshape", [1, 1, 1], iterations=1)):
        assert base.dtype == torch.float32 and base.shape == (6, 4, 3, 3) and not base.requires_grad
    torch.testing.assert_close(mean_base(weights), torch.stack(weights).mean(0).detach())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": []}, "weights: expected one shape for all stages, got no weights"),
        ({"weights": [torch.ones(3, 3), torch.ones(3, 2)]}, r"weights: expected one shape .*\(3, 2\)"),
        ({"form": "full"}, 'form: .* got "full", which has no ranks'),
        ({"ranks": [1]}, "ranks: expected 2, one for each weight, got 1"),
        ({"ranks": [1, 4]}, "ranks: expected 0 to 3 .* got 4"),
        ({"iterations": -1}, "iterations: expected at least 0, got -1"),
    ],
)
def test_alternating_base_refuses_by_name(change, message):
    arguments = {"weights": [torch.ones(3, 3)] * 2, "form": "factored", "ranks": [1, 1], **change}
    with pytest.raises(ValueError, match=message):
        alternating_base(**arguments)


def test_energies_refuse_a_form_without_ranks():
    with pytest.raises(ValueError, match="form: .* which has no ranks"):
        singular_energies(torch.ones(3, 3), "full")
