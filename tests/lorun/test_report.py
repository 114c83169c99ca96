import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lorun
from lorun.denoisers import UNet
from lorun.physics import CASSI, BlockCS
from lorun.report import COUNTED
from lorun.unfolding import UnfoldingNetwork


def report(variant, size=(64, 64), **kwargs):
    net = UnfoldingNetwork(BlockCS(0.25), UNet(), 9, variant, **kwargs)
    return lorun.report(net, size)


def test_parts_are_worked_out_by_hand():
    shared, block, adapted = report("shared"), report("block"), report("lorun", gamma=10)
    assert (shared.base, shared.adapters) == (544_685, 0)
    assert (block.base, block.adapters) == (9 * 544_685, 0)
    assert (adapted.base, adapted.adapters) == (544_685, 9 * 105_383)
    assert {r.phi for r in (shared, block, adapted)} == {256 * 1024}
    assert {r.scalars for r in (shared, block, adapted)} == {18}
    assert block.saving == 0 and shared.saving == pytest.approx(8 / 9)
    assert adapted.saving == pytest.approx(1 - 1_493_132 / 4_902_165)


def test_flops_are_worked_out_by_hand():
    full = 64 * 64
    per_pixel = (2 * 28 + 2 * 28 * 28) * 9  # encoder1
    per_pixel += (28 * 56 + 2 * 56 * 56) * 9 / 4  # encoder2
    per_pixel += (56 * 112 + 2 * 112 * 112) * 9 / 16  # bottom
    per_pixel += (168 * 56 + 2 * 56 * 56) * 9 / 4  # decoder2
    per_pixel += (84 * 28 + 2 * 28 * 28) * 9 + 28  # decoder1 and the last layer
    data_steps = (1 + 9 * 2) * 4 * 256 * 1024  # Phi^T y once, Phi and Phi^T in every stage, four blocks
    macs = 9 * per_pixel * full + data_steps
    assert report("shared").flops == 2 * macs
    assert report("lorun").flops == 2 * macs


def test_it_prints_both_conventions_of_m():
    text = str(report("lorun"))
    assert "1.493" in text and "1.424" in text and "4.675 Mi" in text


def test_adapted_linear_layers_are_counted_like_plain_ones():
    class PixelLinear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(16, 16)

        def forward(self, x, noise_level):
            return self.mix(x)

    flops = {}
    for variant in ("shared", "lorun"):
        net = UnfoldingNetwork(BlockCS(0.25, block=8), PixelLinear(), 2, variant)
        flops[variant] = lorun.report(net, (16, 16)).flops
    assert flops["shared"] == flops["lorun"]


def test_the_products_of_attention_count():
    q = torch.rand(3, 2, 64, 28)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * (3 * 2) * (2 * 64 * 64 * 28)


def test_a_report_leaves_the_physics_as_it_is():
    camera = CASSI(torch.ones(16, 16, dtype=torch.float64), 3)
    net = UnfoldingNetwork(camera, UNet(3, 4), 1, "shared")
    assert lorun.report(net, (16, 16)).flops == lorun.report(net, (16, 16)).flops
    assert net.physics is camera and camera.mask.dtype == torch.float64


def test_it_names_what_has_no_adapter():
    net = lorun.create_model("cs25-unet-lorun9")
    found = lorun.report(net, (32, 32))
    biases = {name for name, _ in net.denoiser.named_parameters() if name.endswith("bias")}
    assert set(found.without_adapter) == biases and len(biases) == 16
    assert "16 parameters of the base have no adapter: encoder1.entry.bias" in str(found)
    assert lorun.report(lorun.create_model("cs25-unet-shared9"), (32, 32)).without_adapter == ()
