"""physics.Linear beyond the table of test_physics.py: its solver, its gradients, and what it refuses."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.physics import Linear
from lorun.physics.linear import PROBES, estimate_diagonal

TIGHT = {"tolerance": 1e-13, "iterations": 1000}
SHAPE = (2, 2, 5, 4)
SMALL = (2, 2, 4, 3)


class Convolution(nn.Module):
    """A learned point spread, and its adjoint."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3, dtype=torch.float64) / 4)
        self.register_buffer("gain", torch.tensor(1.5, dtype=torch.float64))
        self.calls = 0

    def A(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.gain * F.conv2d(x, self.kernel)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.gain * F.conv_transpose2d(y, self.kernel)


class Weights(nn.Module):
    """Every pixel times a weight: its own adjoint."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * x


def convolution(**options) -> tuple[Linear, Convolution]:
    operator = Convolution()
    options = TIGHT | options
    return Linear(operator.A, operator.A_adjoint, channels=2, **options), operator


def problem(physics: Linear, *shape: int) -> tuple[Tensor, Tensor]:
    w = torch.randn(shape or SHAPE, dtype=torch.float64)
    return w, torch.randn_like(physics.A(w).detach())


@pytest.mark.parametrize("mu", [torch.tensor(0.4), torch.tensor([0.3, 1.2])], ids=["scalar", "per sample"])
@pytest.mark.parametrize("step", ["pgd_step", "hqs_step"])
def test_gradients_reach_the_image_the_measurement_the_step_size_and_the_operator(step, mu):
    physics, operator = convolution()
    w, y = problem(physics, *SMALL)

    def run(w: Tensor, y: Tensor, mu: Tensor, kernel: Tensor) -> Tensor:
        return torch.func.functional_call(
            Steps(physics, step), {"physics.operators.0.kernel": kernel}, (w, y, mu)
        )

    inputs = [w, y, mu.double(), operator.kernel.detach().clone()]
    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in inputs])


class Steps(nn.Module):
    """A data step as a module, so that `functional_call` can exchange parameters of its operator."""

    def __init__(self, physics: Linear, step: str):
        super().__init__()
        self.physics, self.step = physics, step

    def forward(self, w: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        return getattr(self.physics, self.step)(w, y, mu)


def test_a_gradient_costs_one_more_solve_and_keeps_no_iterations():
    physics, operator = convolution()
    w, y = problem(physics)
    physics.hqs_step(w, y, 1.0)  # checks the adjoint, estimates the diagonal
    saved, kept = {}, []
    for mu in (1.0, 1e-3):
        operator.calls = 0
        with torch.no_grad():
            physics.hqs_step(w, y, mu)
        solve, operator.calls = operator.calls, 0
        tensors: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=tensors: kept.append(t) or t, lambda t: t
        ):
            restored = physics.hqs_step(w.requires_grad_(), y, mu)
        assert operator.calls == solve + 1
        restored.square().sum().backward()
        assert operator.calls < 3.5 * solve
        saved[mu] = solve
        kept.append(len(tensors))
    assert saved[1e-3] > saved[1.0] and kept[0] == kept[1] < 12


def test_without_a_gradient_nothing_is_kept():
    physics, operator = convolution()
    w, y = problem(physics)
    operator.kernel.requires_grad_(False)
    assert not physics.hqs_step(w, y, 0.5).requires_grad


def test_a_second_derivative_is_refused():
    physics, _ = convolution()
    w, y = problem(physics)
    step = physics.hqs_step(w.requires_grad_(), y, 0.5)
    (gradient,) = torch.autograd.grad(step.square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_float32_reaches_the_tolerance_of_its_default():
    operator = Convolution().float()
    physics = Linear(operator.A, operator.A_adjoint, channels=2)
    w, y = (value.float() for value in problem(physics.double(), 2, 2, 16, 16))
    found = physics.float().hqs_step(w, y, 0.1).detach()
    exact = Linear(operator.double().A, operator.A_adjoint, channels=2, **TIGHT)
    expected = exact.hqs_step(w.double(), y.double(), 0.1).detach()
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("mu", [0, 0.0, torch.tensor(0.0)], ids=repr)
def test_without_a_penalty_it_inverts(mu):
    weights = torch.rand(1, 3, 4, dtype=torch.float64) + 0.5
    physics = Linear(lambda x: x * weights, lambda y: y * weights, channels=1, **TIGHT)
    x, w = torch.randn(2, 2, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(physics.hqs_step(w, physics.A(x), mu), x)


def test_without_a_penalty_pixels_that_nothing_measures_stay():
    mask = (torch.rand(1, 6, 7) > 0.5).double()
    physics = Linear(lambda x: x * mask, lambda y: y * mask, channels=1, **TIGHT)
    x, w = torch.randn(2, 2, 1, 6, 7, dtype=torch.float64)
    found = physics.hqs_step(w, physics.A(x), 0.0)
    torch.testing.assert_close(found, torch.where(mask > 0, x, w))


def test_samples_of_a_batch_do_not_meet():
    physics, _ = convolution(tolerance=1e-4)
    w, y = problem(physics)
    y[1] *= 1e6
    w[1] *= 1e6
    together = physics.hqs_step(w, y, 0.01)
    for sample in range(2):
        alone = physics.hqs_step(w[sample : sample + 1], y[sample : sample + 1], 0.01)
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=1e-9, atol=0)


def test_it_is_deterministic_and_leaves_the_random_numbers_alone():
    w, y = problem(convolution()[0])
    before = torch.get_rng_state()
    torch.manual_seed(5)
    first = convolution()[0].hqs_step(w, y, 0.01)
    torch.manual_seed(5)
    physics, _ = convolution()
    state = torch.get_rng_state()
    assert torch.equal(physics.hqs_step(w, y, 0.01), first)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(state, before)


def test_the_diagonal_of_a_mask_is_found_exactly_and_once_for_a_shape():
    weights = torch.logspace(0, 2, 30, dtype=torch.float64).view(1, 5, 6)
    calls = []

    def adjoint(y: Tensor) -> Tensor:
        calls.append(1)
        return y * weights

    y = torch.zeros(2, 1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(estimate_diagonal(adjoint, y), (weights**2).expand(2, 1, 5, 6))
    physics = Linear(lambda x: x * weights, adjoint, channels=1, iterations=2, check_adjoint=False)
    w = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    calls.clear()
    for _ in range(3):  # two iterations suffice only with the right preconditioner
        physics.hqs_step(w, y, 0.1)
    assert PROBES + 6 <= len(calls) < 2 * PROBES


def test_a_noisy_diagonal_is_replaced_by_its_mean():
    phi = torch.randn(40, 60, dtype=torch.float64)
    diagonal = estimate_diagonal(lambda y: (y @ phi).view(-1, 1, 6, 10), torch.zeros(2, 40).double())
    assert diagonal.std() == 0
    assert abs(diagonal.mean() / 40 - 1) < 0.2


def test_a_given_diagonal_spares_the_estimate():
    weights = torch.logspace(0, 2, 30, dtype=torch.float64).view(1, 5, 6)
    options = {"channels": 1, "iterations": 2, "diagonal": weights**2}
    physics = Linear(lambda x: x * weights, lambda y: y * weights, **options)
    w, y = problem(physics, 2, 1, 5, 6)
    expected = (weights * y + 0.1 * w) / (weights**2 + 0.1)
    torch.testing.assert_close(physics.hqs_step(w, y, 0.1), expected)
    assert physics.state_dict() == {} and not physics._estimated


def test_it_warns_if_it_does_not_converge_forward_or_backward():
    physics, _ = convolution(tolerance=1e-12, iterations=2)
    w, y = problem(physics)
    message = "hqs_step: after 2 iterations .* the relative residual is .* above the tolerance 1.0e-12; use"
    with pytest.warns(RuntimeWarning, match=message):
        step = physics.hqs_step(w.requires_grad_(), y, 0.01)
    with pytest.warns(RuntimeWarning, match=message):
        step.square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convolution()[0].hqs_step(w, y, 0.01)


def test_functions_that_are_no_adjoints_are_refused_at_the_first_step():
    operator = Convolution()
    wrong = Linear(operator.A, lambda y: operator.A_adjoint(y.flip(-1)).flip(-1), channels=2)
    w, y = problem(wrong)
    for step in (wrong.pgd_step, wrong.hqs_step):
        with pytest.raises(ValueError, match="A_adjoint: expected the adjoint of A.*check_adjoint=False"):
            step(w, y, 0.1)
    unchecked = Linear(wrong.A, wrong.A_adjoint, channels=2, check_adjoint=False)
    assert unchecked.pgd_step(w, y, 0.1).shape == w.shape
    assert wrong.adjointness_error(w) > 0.1


@pytest.mark.parametrize("factor", [1.05, -1.0])
def test_a_wrong_factor_is_no_adjoint(factor):
    physics = Linear(lambda x: 2 * x, lambda y: 2 * factor * y, channels=1)
    w, y = problem(physics, 2, 1, 8, 8)
    assert physics.adjointness_error(w) == pytest.approx(abs(factor - 1), rel=1)
    with pytest.raises(ValueError, match="A_adjoint: expected the adjoint of A"):
        physics.pgd_step(w, y, 0.1)


def test_an_adjoint_of_another_shape_says_so():
    physics = Linear(lambda x: x, lambda y: y[:, :1], channels=2)
    w, y = problem(physics)
    with pytest.raises(ValueError, match=r"A_adjoint: expected an image of shape \(2, 2, 5, 4\).*2, 1, 5, 4"):
        physics.pgd_step(w, y, 0.1)


def test_modules_train_move_and_are_copied_with_it():
    weights = Weights(torch.rand(1, 3, 4) + 0.5)
    physics = Linear(weights, weights, channels=1)
    assert [id(p) for p in physics.parameters()] == [id(weights.weights)]
    assert [*physics.state_dict()] == ["operators.0.weights"]
    other = copy.deepcopy(physics)
    with torch.no_grad():
        weights.weights.zero_()
    assert other.A(torch.ones(1, 1, 3, 4)).min() >= 0.5
    assert physics.double().A(torch.ones(1, 1, 3, 4).double()).dtype == torch.float64


def test_methods_of_a_module_bring_the_module():
    physics, operator = convolution()
    assert {name for name, _ in physics.named_parameters()} == {"operators.0.kernel"}
    other = copy.deepcopy(physics).float()
    assert other.A(torch.rand(1, 2, 5, 4)).dtype == torch.float32
    assert operator.kernel.dtype == torch.float64 and operator.gain.dtype == torch.float64


def test_a_start_may_be_given():
    physics, operator = convolution()
    _, y = problem(physics)
    assert torch.equal(physics.start(y), operator.A_adjoint(y))
    physics, _ = convolution(start=lambda y: F.pad(y[:, :2], (0, 2, 0, 2)))
    assert physics.start(y).shape == SHAPE and torch.equal(physics.start(y)[..., :3, :2], y[:, :2])


def test_volumes_and_vectors_work_as_images_do():
    for shape in ((2, 1, 3, 4, 5), (2, 12)):
        physics = Linear(
            lambda x: x.cumsum(1), lambda y: y.flip(1).cumsum(1).flip(1), channels=shape[1], **TIGHT
        )
        w, y = problem(physics, *shape)
        x = physics.hqs_step(w, y, 0.5)
        left = physics.A_adjoint(physics.A(x) - y) + 0.5 * (x - w)
        assert x.shape == shape and left.abs().max() < 1e-10


def test_autocast_does_not_touch_it():
    operator = Convolution().float()
    physics = Linear(operator.A, operator.A_adjoint, channels=2)
    w, y = torch.rand(SHAPE), torch.rand(2, 3, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = [physics.pgd_step(w, y, 0.3), physics.hqs_step(w, y, 0.3)]
    for tensor, expected in zip(
        found, [physics.pgd_step(w, y, 0.3), physics.hqs_step(w, y, 0.3)], strict=True
    ):
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected)


def same(x: Tensor) -> Tensor:
    return x


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


IMAGE, Y = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Linear(None, same, channels=1), TypeError, "A: expected a function"),
        (lambda: Linear(same, 3, channels=1), TypeError, "A_adjoint: expected a function.*got int"),
        (lambda: Linear(same, same, channels=1, start=3), TypeError, "start: expected a function"),
        (lambda: Linear(same, same, channels=0), ValueError, "channels: expected at least 1, got 0"),
        (lambda: Linear(same, same, channels=1, tolerance=0), ValueError, "tolerance: expected a share"),
        (lambda: Linear(same, same, channels=1, iterations=0), ValueError, "iterations: expected at least 1"),
        (
            lambda: Linear(same, same, channels=1, diagonal=torch.tensor([-1.0])),
            ValueError,
            "diagonal: expected finite values of at least 0",
        ),
        (lambda: Linear(same, same, channels=1).hqs_step(IMAGE, Y, -0.1), ValueError, "mu: .* got -0.1"),
        (
            lambda: Linear(same, same, channels=1).hqs_step(IMAGE, Y, float("nan")),
            ValueError,
            "mu: .* got nan",
        ),
        (lambda: Linear(pair, same, channels=1).hqs_step(Y, Y, 1), TypeError, "A: expected one tensor"),
        (lambda: Linear(same, pair, channels=1).start(Y), TypeError, "A_adjoint: expected one tensor"),
        (
            lambda: Linear(same, same, channels=1).start(pair(Y)),
            TypeError,
            "y: expected one tensor, got tuple",
        ),
        (lambda: Linear(same, same, channels=1).hqs_step(half(2, 1, 4, 4), Y, 1), TypeError, "w: .*bfloat16"),
        (lambda: Linear(same, same, channels=1).pgd_step(half(2, 1, 4, 4), Y, 1), TypeError, "x: .*bfloat16"),
        (
            lambda: Linear(same, same, channels=3, size=(8, 8)).A(IMAGE),
            ValueError,
            r"x: expected an image of shape \(B, 3, 8, 8\), got \(2, 1, 4, 4\)",
        ),
        (lambda: Linear(same, same, channels=1, size=(4, 4)).for_size((5, 4)), ValueError, "size: expected"),
        (
            lambda: Linear(same, lambda y: y.view(2, 1, 3, 3), channels=1).check_measurement(Y),
            ValueError,
            r"y: A_adjoint does not take shape \(2, 1, 4, 4\)",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, error, words):
    with pytest.raises(error, match=words):
        call()
