"""A whole network on CASSI: its equations, its tiles, its size."""

import pytest
import torch

import lorun
from lorun.denoisers import SpectralTransformer, UNet
from lorun.networks import NetworkConfig, build_network
from lorun.physics import CASSI
from lorun.unfolding import UnfoldingNetwork

BANDS = 6


def denoiser(takes_correction=True) -> UNet:
    net = UNet(BANDS, width=4, takes_correction=takes_correction)
    torch.nn.init.normal_(net.last.weight, std=0.05)
    return net


def network(algorithm="hqs", variant="lorun", mask=None, **options) -> UnfoldingNetwork:
    net = UnfoldingNetwork(CASSI(mask, BANDS), denoiser(), 3, variant, algorithm, start_step=0.2, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return net


def test_hqs_is_equations_9_and_11_with_the_correction():
    net, camera = network().double(), CASSI(torch.rand(8, 12).double(), BANDS)
    y = camera.A(torch.rand(2, BANDS, 8, 12).double())
    phi = torch.stack(
        [camera.A(unit[None])[0].flatten() for unit in torch.eye(BANDS * 96).double().view(-1, BANDS, 8, 12)],
        1,
    )
    x = camera.start(y)
    for k in range(3):
        mu, lam = net.step_size[k], net.lam[k]
        system = phi.T @ phi + mu * torch.eye(BANDS * 96, dtype=torch.float64)
        known = phi.T @ y.flatten(1).T + mu * x.flatten(1).T
        z = torch.linalg.solve(system, known).T.view(x.shape)
        x = net.denoisers[k](z, (lam / mu).sqrt(), z - x)
    torch.testing.assert_close(net(y, physics=camera), x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_pgd_starts_where_it_converges(denoiser):
    config = NetworkConfig(task="cassi", algorithm="pgd", stages=9, denoiser=denoiser, width=8, bands=28)
    net, camera = build_network(config), CASSI(torch.rand(16, 24))
    cube = torch.rand(1, 28, 16, 24)
    y = camera(cube)
    with torch.no_grad():  # an untrained denoiser changes nothing
        before, after = (
            (camera.A(x) - y).square().mean().item() for x in (camera.start(y), net(y, physics=camera))
        )
    assert after < before


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("variant", ["shared", "block", "lorun"])
def test_gradients_reach_what_trains_and_nothing_else(variant, form):
    net, camera = network(variant=variant, form=form), CASSI(torch.rand(8, 16), BANDS)
    net(camera(torch.rand(1, BANDS, 8, 16)), physics=camera).square().mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.requires_grad != (variant == "lorun" and name.startswith("denoiser.")), name


def test_tiles_give_the_whole_scene():
    net, camera = network().eval(), CASSI(torch.rand(150, 203), BANDS)
    y = camera(torch.rand(1, BANDS, 150, 203))
    with torch.no_grad():
        whole, tiled = net(y, physics=camera), net(y, physics=camera, tile=112)
        short = net(y, physics=camera, tile=112, overlap=8)
    assert (tiled - whole).abs().max() < 1e-4
    assert (short - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    "denoiser, form, block, lorun_mi",
    [("unet", "reshape", 4.80, 1.43), ("transformer", "factored", 5.18, 1.62)],
)
def test_the_papers_parameter_counts(denoiser, form, block, lorun_mi):
    """Tables IV and III of arXiv 2602.18697, in units of 2^20."""
    counts = {}
    for variant in ("block", "lorun"):
        config = NetworkConfig(task="cassi", algorithm="hqs", denoiser=denoiser, variant=variant, form=form)
        counts[variant] = lorun.report(build_network(config), size=(16, 16)).denoisers / 2**20
    assert counts["block"] == pytest.approx(block, rel=0.02)
    assert counts["lorun"] == pytest.approx(lorun_mi, rel=0.02)


def test_a_denoiser_says_whether_it_takes_a_correction():
    image = torch.rand(1, BANDS, 8, 8)
    with pytest.raises(ValueError, match="correction: this denoiser takes one, got none"):
        denoiser()(image, 0.1)
    with pytest.raises(ValueError, match="correction: this denoiser takes none, got one"):
        denoiser(takes_correction=False)(image, 0.1, image)


def test_a_plain_denoiser_and_the_transformer_work_as_well():
    camera = CASSI(torch.rand(9, 13), BANDS)
    for net in (denoiser(takes_correction=False), SpectralTransformer(BANDS, 8)):
        whole = UnfoldingNetwork(camera, net, stages=2, algorithm="hqs")
        assert whole(camera(torch.rand(2, BANDS, 9, 13))).shape == (2, BANDS, 9, 13)


def test_without_a_mask_the_error_says_what_to_do():
    net = network()
    with pytest.raises(ValueError, match=r"give one at the call: net\(y, physics=CASSI\(mask\)\)"):
        net(torch.rand(1, 8, 22))


@pytest.mark.parametrize("start_step", [0, -1.0, float("inf"), float("nan")])
def test_a_step_size_is_above_0(start_step):
    with pytest.raises(ValueError, match="start_step: expected a step size above 0"):
        UnfoldingNetwork(CASSI(bands=BANDS), denoiser(), start_step=start_step)
