import copy

import pytest
import torch
import torch.nn.functional as F

import lorun
from lorun.denoisers import ResUNet, UNet
from lorun.physics import BlockCS
from lorun.unfolding import UnfoldingNetwork


def network(variant="shared", stages=3, algorithm="pgd", width=4, **kwargs) -> UnfoldingNetwork:
    denoiser = UNet(width=width)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    return UnfoldingNetwork(BlockCS(0.25, block=8), denoiser, stages, variant, algorithm, **kwargs)


def randomise(net: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))


def test_new_stages_start_from_the_last_that_ran():
    net = network(stages=4)
    with torch.no_grad():
        net.raw_step.copy_(torch.arange(4.0))
    net.grow(2, 4)
    assert net.raw_step.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("variant", ["shared", "block", "lorun"])
def test_pgd_is_equations_5_and_7(variant):
    net = network(variant).double()
    randomise(net)
    x = torch.rand(2, 1, 16, 16).double()
    y = net.physics.A(x)
    phi = net.physics.phi
    rho, lam = F.softplus(net.raw_step), F.softplus(net.raw_lambda)
    x = F.pixel_shuffle(torch.einsum("mp,bmhw->bphw", phi, y), 8)
    for k in range(3):
        residual = torch.einsum("mp,bphw->bmhw", phi, F.pixel_unshuffle(x, 8)) - y
        z = x - rho[k] * F.pixel_shuffle(torch.einsum("mp,bmhw->bphw", phi, residual), 8)
        x = net.stage_denoiser(k)(z, (rho[k] * lam[k]).sqrt())
    torch.testing.assert_close(net(y), x, rtol=1e-10, atol=1e-10)


def test_hqs_is_equations_9_and_11():
    net = network(algorithm="hqs").double()
    randomise(net)
    y = net.physics.A(torch.rand(1, 1, 8, 8).double())
    phi, mu, lam = net.physics.phi, net.step_size, net.lam
    w = (phi.T @ y.flatten()).view(1, 1, 8, 8)
    for k in range(3):
        system = phi.T @ phi + mu[k] * torch.eye(64, dtype=torch.float64)
        z = torch.linalg.solve(system, phi.T @ y.flatten() + mu[k] * w.flatten()).view(1, 1, 8, 8)
        w = net.denoiser(z, (lam[k] / mu[k]).sqrt())
    torch.testing.assert_close(net(y), w, rtol=1e-8, atol=1e-8)


def test_the_papers_parameter_counts():
    """Table II of arXiv 2602.18697: Block-9 has 4.65 M and LoRun-9 1.42 M, counted in units of 2^20."""
    counts = {}
    for variant in ("block", "lorun"):
        net = UnfoldingNetwork(BlockCS(0.25), UNet(), 9, variant, gamma=10)
        counts[variant] = lorun.report(net, size=(32, 32)).denoisers / 2**20
    assert abs(counts["block"] / 4.65 - 1) < 0.02
    assert abs(counts["lorun"] / 1.42 - 1) < 0.02


def test_scalars_start_at_a_half_and_stay_positive():
    net = network()
    torch.testing.assert_close(net.step_size, torch.full((3,), 0.5))
    torch.testing.assert_close(net.lam, torch.full((3,), 0.5))
    net.raw_step.data.fill_(-20)
    assert (net.step_size > 0).all() and torch.equal(net.step, net.step_size)
    assert torch.isfinite(net(torch.rand(1, 16, 1, 1))).all()


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_lorun_shares_one_frozen_base_and_starts_as_it(form):
    shared = network("shared", stages=4)
    net = UnfoldingNetwork.from_shared(shared, gamma=50, form=form)
    y = torch.rand(2, 16, 2, 2)
    assert torch.equal(net(y), shared(y))
    weights = {id(view.bottom.first.base_weight) for view in net.denoisers}
    assert weights == {id(net.denoiser.bottom.first.weight)}
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n in ("physics.phi", "raw_step", "raw_lambda") for n in trained)
    assert sum("lora_up" in n for n in trained) == 4 * 16


def test_from_shared_leaves_its_source_alone():
    shared = network("shared")
    before = copy.deepcopy(shared.state_dict())
    net = UnfoldingNetwork.from_shared(shared)
    randomise(net)
    assert all(torch.equal(before[name], value) for name, value in shared.state_dict().items())
    assert all(p.requires_grad for p in shared.parameters())


def test_every_trained_parameter_gets_a_gradient():
    for variant in ("shared", "block", "lorun"):
        net = network(variant)
        randomise(net)
        net(torch.rand(2, 16, 2, 2)).square().sum().backward()
        for name, p in net.named_parameters():
            if p.requires_grad:
                assert p.grad is not None and p.grad.abs().sum() > 0, name
            else:
                assert p.grad is None, name


def test_another_phi_at_call_time():
    net, other = network(), BlockCS(0.25, block=8)
    x = torch.rand(1, 1, 16, 16)
    swapped = copy.deepcopy(net)
    swapped.physics = other
    assert torch.equal(net(other.A(x), physics=other), swapped(other.A(x)))
    assert not torch.equal(net(other.A(x), physics=other), net(other.A(x)))


def test_size_undoes_the_padding():
    net = network()
    x = torch.rand(1, 1, 13, 9)
    y = net.physics.A(x)
    assert net(y).shape == (1, 1, 16, 16)
    assert torch.equal(net(y, size=(13, 9)), net(y)[..., :13, :9])


def test_fewer_stages_are_the_first_ones():
    net = network("block", stages=3)
    short = copy.deepcopy(net)
    short.stages = 2
    y = torch.rand(1, 16, 1, 1)
    assert torch.equal(net(y, stages=2), short(y))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"stages": 0}, "stages: expected at least 1"),
        ({"variant": "both"}, "variant: expected"),
        ({"algorithm": "admm"}, "algorithm: expected"),
        ({"variant": "lorun", "gamma": -1}, "gamma"),
        ({"variant": "lorun", "form": "outer"}, "form"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments, words):
    with pytest.raises(ValueError, match=words):
        network(**arguments)


def test_bad_calls_say_what_was_expected():
    net = network()
    with pytest.raises(ValueError, match="stages: expected 1 to 3"):
        net(torch.rand(1, 16, 1, 1), stages=4)
    with pytest.raises(ValueError, match="another ratio"):
        net(torch.rand(1, 15, 1, 1))
    with pytest.raises(ValueError, match="shared: expected"):
        UnfoldingNetwork.from_shared(network("block"))


def test_a_physics_keeps_the_contract():
    with pytest.raises(
        TypeError, match="physics: expected a lorun.physics.Physics, got Identity; wrap the two"
    ):
        UnfoldingNetwork(torch.nn.Identity(), UNet(width=4))


class Blur(lorun.physics.SuperResolution):
    """Counts what is computed once for all stages."""

    prepared = 0

    def prepare(self, y):
        self.prepared += 1
        return super().prepare(y)


def conditioned(variant="shared", algorithm="hqs", physics=None) -> UnfoldingNetwork:
    denoiser = ResUNet(1, 4, conditions=2)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    return UnfoldingNetwork(
        physics or lorun.physics.SuperResolution(channels=1), denoiser, 3, variant, algorithm
    )


@pytest.mark.parametrize("variant", ["shared", "block", "lorun"])
@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_conditions_reach_the_step_sizes_and_the_denoiser_and_y_is_prepared_once(variant, algorithm):
    net = conditioned(variant, algorithm).double()
    randomise(net)
    physics = Blur(torch.rand(2, 3, 3).double() / 9, 2, channels=1, noise_level=torch.tensor([0.0, 0.05]))
    y = physics.A(torch.rand(2, 1, 16, 12).double())
    condition = physics.condition(y)
    step, lam = net.rates(condition)
    assert step.shape == lam.shape == (3, 2) and step.min() > 0 and lam.min() > 0
    x = physics.start(y)
    for k in range(3):
        if algorithm == "pgd":
            z, level = physics.pgd_step(x, y, step[k]), (step[k] * lam[k]).sqrt()
        else:
            z, level = physics.hqs_step(x, y, step[k]), (lam[k] / step[k]).sqrt()
        x = net.stage_denoiser(k)(z, level, condition)
    physics.prepared = 0
    torch.testing.assert_close(net(y, physics=physics), x, rtol=1e-10, atol=1e-10)
    assert physics.prepared == 1
    torch.testing.assert_close(net(y, physics=physics, tile=208), x, rtol=1e-10, atol=1e-10)
    other = lorun.physics.SuperResolution(physics.kernel, 2, channels=1, noise_level=0.09)
    assert not torch.allclose(net(y, physics=other), x)


def test_phase_2_and_new_stages_keep_what_conditions_add():
    shared = conditioned()
    randomise(shared)
    condition = torch.tensor([[0.3, 0.5]])
    lorun9 = UnfoldingNetwork.from_shared(shared)
    assert all(map(torch.equal, lorun9.rates(condition), shared.rates(condition)))
    assert any(name.startswith("predictor.") for name, p in lorun9.named_parameters() if p.requires_grad)
    shared.grow(1, 3)
    step, lam = shared.rates(condition)
    for rate in (step, lam):
        torch.testing.assert_close(rate, rate[:1].expand(3, 1))


def test_a_denoiser_that_takes_other_conditions_is_refused():
    with pytest.raises(
        ValueError, match="denoiser: takes 1 conditions, and SuperResolution has 2; make it with"
    ):
        UnfoldingNetwork(lorun.physics.SuperResolution(), ResUNet(3, 4, conditions=1))
    UnfoldingNetwork(lorun.physics.SuperResolution(), ResUNet(3, 4))  # need not take them


def test_only_a_predictor_of_conditions_makes_step_sizes_depend_on_them():
    net = network()
    assert net.predictor is None and net.rates(torch.ones(2, 2))[0].shape == (3,)
