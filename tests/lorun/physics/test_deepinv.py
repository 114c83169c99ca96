"""deepinv's operators as ours, and ours as deepinv's."""

import pytest
import torch

from lorun.denoisers import UNet
from lorun.physics import CASSI, BlockCS, Linear
from lorun.unfolding import UnfoldingNetwork
from tests.lorun.physics import deepinv_operators


@pytest.fixture(params=deepinv_operators.OPERATORS)
def operator_of_deepinv(request):
    """(the operator, the channels of its images)."""
    return deepinv_operators.make(request.param), deepinv_operators.OPERATORS[request.param][0]


@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_a_network_trains_on_an_operator_of_deepinv(operator_of_deepinv, algorithm):
    operator, channels = operator_of_deepinv
    physics = Linear(operator.A, operator.A_adjoint, channels=channels, size=deepinv_operators.SIZE)
    norm = operator.compute_sqnorm(torch.rand(1, channels, *deepinv_operators.SIZE).double(), verbose=False)
    denoiser = UNet(channels, 4)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    net = UnfoldingNetwork(physics, denoiser, 2, "lorun", algorithm, start_step=1 / norm.item()).double()
    x = torch.rand(2, channels, *deepinv_operators.SIZE, dtype=torch.float64)
    y = physics(x)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    before = (net(y) - x).square().mean()
    before.backward()
    assert net.raw_step.grad.isfinite().all() and (net.raw_step.grad != 0).all()
    optimizer.step()
    assert (net(y) - x).square().mean() < before


def test_its_buffers_move_with_the_network():
    operator = deepinv_operators.make("Inpainting")
    physics = Linear(operator.A, operator.A_adjoint, channels=3)
    assert physics.float().A(torch.rand(1, 3, *deepinv_operators.SIZE)).dtype == torch.float32


def test_its_approximate_adjoint_of_a_scanner_is_refused_unless_it_is_meant():
    scanner = deepinv_operators.deepinv().physics.Tomography(
        7, 8, normalize=False, adjoint_via_backprop=False
    )
    x = torch.rand(1, 1, 8, 8)
    y = scanner.A(x)
    with pytest.raises(ValueError, match="A_adjoint: expected the adjoint of A"):
        Linear(scanner.A, scanner.A_adjoint, channels=1).pgd_step(x, y, 0.01)
    Linear(scanner.A, scanner.A_adjoint, channels=1, check_adjoint=False).pgd_step(x, y, 0.01)


OURS = {
    "BlockCS": (lambda: BlockCS(0.3, block=8).double(), (1, 16, 8)),
    "BlockCS, adapter": (lambda: BlockCS(0.3, block=8, adapter_rank=3).double(), (1, 8, 8)),
    "CASSI": (lambda: CASSI(torch.rand(6, 7).double(), 4), (4, 6, 7)),
    "CASSI, offsets": (lambda: CASSI(torch.rand(3, 6, 7).double(), 3, [2, 0, 5]), (3, 6, 7)),
    "Linear": (
        lambda: Linear(lambda x: 2 * x.roll(1, -1), lambda y: 2 * y.roll(-1, -1), channels=2),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_work_as_deepinvs(name):
    make, shape = OURS[name]
    ours = make().requires_grad_(False)
    theirs = deepinv_operators.deepinv().physics.LinearPhysics(A=ours.A, A_adjoint=ours.A_adjoint)
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = ours.A(x)
    assert torch.equal(theirs.A(x), y)
    assert theirs.adjointness_test(x) < 1e-6
    z = torch.randn_like(x)
    prox = theirs.prox_l2(z, y, gamma=2.0, solver="CG", max_iter=500, tol=1e-12)
    torch.testing.assert_close(ours.hqs_step(z, y, 0.5), prox, rtol=1e-4, atol=1e-4)


def test_the_errors_of_adjointness_have_one_scale():
    wrong = Linear(lambda x: x, lambda y: 1.5 * y, channels=1)
    theirs = deepinv_operators.deepinv().physics.LinearPhysics(A=wrong.A, A_adjoint=wrong.A_adjoint)
    x = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    assert wrong.adjointness_error(x) == pytest.approx(0.5, rel=0.6)
    assert theirs.adjointness_test(x, num_samples=8).item() == pytest.approx(0.5, rel=0.6)
