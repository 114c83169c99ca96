import torch

from lorun.physics.conjugate_gradients import conjugate_gradients, norm


def systems(pixels: int = 12) -> torch.Tensor:
    """A positive definite matrix for each of two samples, one far better conditioned than the other."""
    roots = torch.randn(2, pixels, pixels, dtype=torch.float64)
    return roots @ roots.mT * torch.tensor([1.0, 1e-3])[:, None, None] + torch.eye(pixels)


def solve(matrices: torch.Tensor, target: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor, int]:
    """x, its residual as the recursion has it, and how often the system was applied."""
    calls = []

    def system(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.einsum("bij,bj->bi", matrices, x)

    diagonal = matrices.diagonal(dim1=1, dim2=2)
    start = torch.randn_like(target)
    residual = target - system(start)
    calls.clear()
    found = conjugate_gradients(system, lambda r: r / diagonal, start, residual, **options)
    return *found, len(calls)


def test_it_solves_the_system_of_every_sample():
    matrices, target = systems(), torch.randn(2, 12, dtype=torch.float64)
    expected = torch.linalg.solve(matrices, target)
    for options in ({"iterations": 1000, "tolerance": 1e-13}, {"iterations": 60}):
        found, residual, _ = solve(matrices, target, **options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert (norm(residual) < 1e-10).all()


def test_a_sample_stands_still_once_it_is_solved():
    matrices, target = systems(), torch.randn(2, 12, dtype=torch.float64)
    torch.manual_seed(1)
    together, _, calls = solve(matrices, target, iterations=1000, tolerance=1e-3)
    torch.manual_seed(1)
    more, _, more_calls = solve(matrices, target, iterations=calls // 2, tolerance=1e-3)
    assert calls < 1000 and more_calls == calls // 2
    assert torch.equal(together[1], more[1]) and not torch.equal(together[0], more[0])


def test_without_a_tolerance_it_takes_every_iteration_and_a_solved_sample_stays_finite():
    matrices = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    target = torch.randn(2, 5, dtype=torch.float64)
    found, _, calls = solve(matrices, target, iterations=7)
    assert calls == 7
    torch.testing.assert_close(found, target)
