import pytest
import torch

import lorun
from lorun.adapters import adapted_view
from lorun.denoisers import ResUNet
from lorun.physics import SuperResolution
from lorun.tiling import denoise_in_tiles
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import adapted_weights


def trained_like(**settings) -> ResUNet:
    """One whose output depends on everything."""
    net = ResUNet(**settings)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return net


def test_parameter_count_is_worked_out_by_hand():
    def blocks(channels):
        return 4 * 9 * channels**2

    first, last, between = 9 * 4 * 16, 9 * 16 * 3, 4 * (16 * 32 + 32 * 64 + 64 * 64)
    by_hand = first + last + 2 * between + 2 * sum(map(blocks, (16, 32, 64))) + blocks(64)
    assert sum(p.numel() for p in ResUNet().parameters()) == by_hand == 588_784
    assert sum(p.numel() for p in ResUNet(conditions=2).parameters()) == by_hand + 2 * 144


def test_the_papers_parameter_counts():
    """Table V of arXiv 2602.18697: Block-9 has 5.30 M, and LoRun-9 1.96 M, more than both forms here."""
    counts = {}
    for variant, form in (("block", "reshape"), ("lorun", "reshape"), ("lorun", "factored")):
        net = UnfoldingNetwork(
            SuperResolution(), ResUNet(conditions=2), 9, variant, "hqs", gamma=10, form=form
        )
        counts[variant, form] = lorun.report(net, size=(16, 16)).denoisers
    assert abs(counts["block", "reshape"] / 5.30e6 - 1) < 0.02
    assert counts["lorun", "reshape"] == 1_769_737
    assert counts["lorun", "factored"] == 1_247_665


def test_it_starts_as_the_identity():
    x = torch.rand(2, 3, 24, 20)
    assert torch.equal(ResUNet()(x, 0.5), x)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (17, 30), (3, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channel_count(size, channels):
    x = torch.rand(2, channels, *size)
    assert trained_like(channels=channels, width=4)(x, 0.1).shape == x.shape


def test_levels_and_conditions_are_each_samples_own():
    net = trained_like(width=4, conditions=2)
    x, conditions = torch.rand(2, 3, 16, 16), torch.tensor([[0.1, 0.5], [0.9, 0.25]])
    both = net(x, torch.tensor([0.1, 0.9]), conditions)
    torch.testing.assert_close(both[:1], net(x[:1], 0.1, conditions[:1]))
    torch.testing.assert_close(both[1:], net(x[1:], torch.tensor(0.9), conditions[1:]))
    assert not torch.allclose(net(x, 0.1, conditions), net(x, 0.2, conditions))
    assert not torch.allclose(net(x, 0.1, conditions), net(x, 0.1, conditions.flip(0)))


def test_it_looks_as_far_as_it_says():
    net = trained_like(width=2).double()
    for parameter in net.parameters():
        torch.nn.init.uniform_(parameter)  # nothing cancels, no ReLU closes
    plain = torch.ones(1, 3, 400, 400, dtype=torch.float64)
    before, farthest = net(plain, 0.1), 0
    for place in range(192, 208):  # every position within two 8x8 pixels of the last level
        changed = plain.clone()
        changed[..., place, place] = 2
        columns = (net(changed, 0.1) != before).any(2).flatten(0, 1).any(0).nonzero().flatten().tolist()
        farthest = max(farthest, place - columns[0], columns[-1] - place)
    assert farthest == net.reach


def test_tiles_give_what_the_whole_image_gives():
    net, x = trained_like(width=4).double(), torch.rand(1, 3, 260, 300).double()
    tiled = denoise_in_tiles(lambda part: net(part, 0.1), (x,), 224, net.reach, net.downscale)
    torch.testing.assert_close(tiled, net(x, 0.1), rtol=0, atol=1e-12)


def test_an_adapted_view_adapts_every_weight_and_learns():
    net = trained_like(width=8, conditions=1)
    net.requires_grad_(False)
    view, x, condition = adapted_view(net), torch.rand(1, 3, 24, 16), torch.ones(1, 1)
    torch.testing.assert_close(view(x, 0.1, condition), net(x, 0.1, condition))
    assert set(adapted_weights(view)) == {name for name, _ in net.named_parameters()}
    view(x, 0.1, condition).square().sum().backward()
    trained = {name: p for name, p in view.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert all(p.grad.any() for name, p in trained.items() if "lora_up" in name or "lora_delta" in name)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"width": 0}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"conditions": -1}, "at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ResUNet(**settings)


def test_other_conditions_than_it_takes_are_refused():
    with pytest.raises(ValueError, match="condition: this denoiser takes 2 numbers, got 0"):
        ResUNet(3, 4, conditions=2)(torch.rand(1, 3, 8, 8), 0.1)
    with pytest.raises(ValueError, match="condition: this denoiser takes 0 numbers, got 2"):
        ResUNet(3, 4)(torch.rand(1, 3, 8, 8), 0.1, torch.rand(1, 2))
