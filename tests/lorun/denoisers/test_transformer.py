import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lorun
from lorun.adapters import adapted_view
from lorun.denoisers import SpectralTransformer
from lorun.denoisers.transformer import (
    SpectralAttention,
    WindowAttention,
    cosines,
    from_windows,
    normalize,
    to_windows,
)
from lorun.physics import CASSI
from lorun.unfolding import UnfoldingNetwork

MEBI = 2**20


def tiny(**kwargs) -> SpectralTransformer:
    """A small transformer whose last layer is not zero, so that its output depends on everything."""
    sizes = {"channels": 3, "width": 4, "blocks": (1, 1, 1), "window": 2} | kwargs
    net = SpectralTransformer(**sizes)
    nn.init.normal_(net.last.weight, std=0.1)
    return net


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_is_worked_out_by_hand():
    def conv(inputs, outputs, size=1):
        return inputs * outputs * size**2 + outputs

    def block(c):
        feed_forward = conv(c, 2 * c) + conv(1, 2 * c, 3) + conv(2 * c, c)
        return 2 * 4 * conv(c, c) + c + feed_forward

    levels = 2 * block(28) + 2 * block(56) + 3 * block(112)
    between = conv(28, 56) + conv(56, 112) + conv(112, 56) + conv(56, 28)
    skips = conv(28, 28) + conv(56, 56)
    by_hand = conv(29, 28, 3) + levels + between + skips + conv(28, 28, 3)
    assert count(SpectralTransformer()) == by_hand == 596_148


@pytest.mark.parametrize("variant, paper", [("block", 5.18), ("lorun", 1.62), ("shared", 5.18 / 9)])
def test_the_papers_parameter_counts(variant, paper):
    """Table III of arXiv 2602.18697, nine stages, counted in units of 2^20."""
    physics = CASSI(torch.rand(32, 32), bands=28)
    net = UnfoldingNetwork(physics, SpectralTransformer(), 9, variant, "hqs", gamma=10, form="factored")
    found = lorun.report(net, size=(32, 32)).denoisers / MEBI
    assert abs(found / paper - 1) < 0.02


def test_it_starts_as_the_identity():
    x = torch.rand(2, 28, 32, 40)
    assert torch.equal(SpectralTransformer(blocks=(1, 1, 1))(x, 0.5), x)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (17, 23), (5, 7), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_any_size_and_channel_count(size, channels):
    x = torch.rand(2, channels, *size)
    found = tiny(channels=channels)(x, 0.1)
    assert found.shape == x.shape and torch.isfinite(found).all()


def test_padding_repeats_the_border_up_to_a_multiple():
    net = tiny()
    assert net.downscale == 8
    x = torch.rand(1, 3, 13, 10)
    whole = net(F.pad(x, (0, 6, 0, 3), mode="replicate"), 0.1)
    assert torch.equal(net(x, 0.1), whole[..., :13, :10])
    x = torch.rand(1, 3, 16, 8)
    assert torch.equal(net(x, 0.1), net._denoise(x, 0.1))


def test_flat_and_zero_images_stay_finite_also_in_their_gradients():
    net = tiny()
    for value in (0.0, 0.5):
        x = torch.full((1, 3, 8, 8), value, requires_grad=True)
        net(x, 0.0).square().sum().backward()
        assert torch.isfinite(x.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_one_noise_level_per_sample():
    net = tiny()
    x = torch.rand(2, 3, 16, 16)
    both = net(x, torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(both[:1], net(x[:1], 0.1))
    torch.testing.assert_close(both[1:], net(x[1:], torch.tensor(0.9)))
    assert not torch.allclose(net(x, 0.1), net(x, 0.9))


def test_the_samples_of_a_batch_do_not_mix_and_a_repeat_is_equal():
    net = tiny()
    x = torch.rand(2, 3, 13, 16)
    once = net(x, 0.1)
    assert torch.equal(once, net(x, 0.1))
    torch.testing.assert_close(net(torch.cat([x, x.flip(0)]), 0.1), torch.cat([once, once.flip(0)]))


def test_gradients_in_double_also_of_the_noise_level():
    net = tiny(channels=2, width=2, window=1).double()
    x = torch.rand(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    level = torch.tensor([0.2, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x, level), atol=1e-6)


def test_every_parameter_gets_a_gradient():
    net = tiny()
    net(torch.rand(1, 3, 16, 16), 0.1).square().sum().backward()
    for name, p in net.named_parameters():
        # A bias of the keys adds the same to all products of a query, which softmax takes away.
        if not name.endswith("1.key.bias"):
            assert p.grad.abs().sum() > 0, name


def test_what_is_far_away_has_influence_through_the_spectral_attention_alone():
    net = tiny()
    x = torch.rand(1, 3, 128, 128)
    changed = x.clone()
    changed[..., 120:, 120:] = 1 - changed[..., 120:, 120:]

    def near_change(net):
        return (net(x, 0.1) - net(changed, 0.1))[..., :8, :8].abs().max()

    assert near_change(net) > 1e-6
    for name in ("encoder1", "encoder2", "bottom", "decoder2", "decoder1"):
        kept = [layer for layer in getattr(net, name) if not isinstance(layer, SpectralAttention)]
        setattr(net, name, nn.Sequential(*kept))
    assert near_change(net) == 0


def test_spectral_attention_is_its_formula():
    torch.manual_seed(0)
    layer, x = SpectralAttention(5).double(), torch.rand(2, 5, 4, 6, dtype=torch.float64)
    h = normalize(x)
    q, k, v = (conv(h).flatten(2) for conv in (layer.query, layer.key, layer.value))
    weights = torch.softmax(layer.temperature * (F.normalize(q, dim=2) @ F.normalize(k, dim=2).mT), 2)
    expected = x + layer.project((weights @ v).view_as(x))
    torch.testing.assert_close(layer(x), expected)


def test_spectral_attention_does_not_care_where_pixels_are():
    layer = SpectralAttention(5)
    x, order = torch.rand(2, 5, 6, 8), torch.randperm(48)
    shuffled = x.flatten(2)[..., order].view_as(x)
    expected = layer(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(layer(shuffled), expected)


def test_windows_do_not_see_each_other():
    layer, x = WindowAttention(4, 2, 4), torch.rand(1, 4, 8, 12)
    changed = x.clone()
    changed[0, 2, 1, 6] += 1
    differs = (layer(x) != layer(changed)).any(1)[0]
    assert differs[:4, 4:8].all()
    assert differs.sum() == 16


def test_window_attention_is_that_of_each_window():
    layer, x = WindowAttention(4, 2, 4), torch.rand(1, 4, 8, 12)
    torch.testing.assert_close(layer(x)[..., 4:, 8:], layer(x[..., 4:, 8:]))


def test_windows_are_tiles_row_by_row():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    windows = to_windows(x, 2)
    assert windows.shape == (12, 3, 2, 2)
    assert torch.equal(windows[1], x[0, :, :2, 2:4])
    assert torch.equal(windows[6 + 3], x[1, :, 2:, :2])
    assert torch.equal(from_windows(windows, x.shape), x)


def test_cosines_of_half_precision_do_not_overflow():
    q = torch.full((1, 2, 4096), 200.0, dtype=torch.float16)
    torch.testing.assert_close(cosines(q, -q), torch.full((1, 2, 2), -1.0), rtol=0, atol=1e-2)
    assert torch.equal(cosines(q, 0 * q), torch.zeros(1, 2, 2))


def test_everything_inside_is_channels_last():
    net, layouts = tiny(), {}

    def watch(module, inputs, output):
        layouts[module] = output.is_contiguous(memory_format=torch.channels_last)

    for module in list(net.modules())[1:]:
        module.register_forward_hook(watch)
    net(torch.rand(2, 3, 16, 16), 0.1)
    assert len(layouts) > 60 and all(layouts.values())


def test_autocast_computes_in_bfloat16_and_adds_in_the_images_precision():
    net, x = tiny(), torch.rand(1, 3, 16, 16)
    expected = net(x, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, 0.1)
        found.sum().backward()
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()
    nn.init.zeros_(net.last.weight)
    nn.init.zeros_(net.last.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x, 0.1), x)


@pytest.mark.parametrize("adapted", [False, True])
def test_it_compiles_as_one_graph(adapted):
    net = adapted_view(tiny()) if adapted else tiny()
    x, level = torch.rand(1, 3, 9, 8), torch.tensor(0.1)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, level), net(x, level))
    compiled(x, level).sum().backward()


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_lorun_adapts_every_convolution_and_trains_nothing_else_of_the_denoiser(form):
    physics = CASSI(torch.rand(16, 16), bands=3)
    net = UnfoldingNetwork(physics, tiny(), 2, "lorun", "hqs", gamma=50, form=form)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.denoiser.modules())
    for view in net.denoisers:
        trained = [name for name, p in view.named_parameters() if p.requires_grad]
        assert all("lora_" in name for name in trained)
        owners = {name.rsplit(".", 1)[0] for name in trained}
        assert len(owners) == convolutions
        assert view.bottom[0].temperature is net.denoiser.bottom[0].temperature
    y = physics.A(torch.rand(1, 3, 16, 16))
    shared = UnfoldingNetwork(physics, net.denoiser, 2, "shared", "hqs")
    before = net(y)
    torch.testing.assert_close(before, shared(y))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    assert not torch.allclose(net(y), before)
    net(y).square().sum().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_a_state_dict_makes_an_equal_network():
    net, other = tiny(), tiny()
    x = torch.rand(1, 3, 8, 8)
    assert not torch.equal(net(x, 0.1), other(x, 0.1))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x, 0.1), other(x, 0.1))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"channels": 0}, "channels of at least 1, got 0"),
        ({"width": 0}, "width of at least 1"),
        ({"window": 0}, "window of at least 1"),
        ({"expansion": 0}, "expansion of at least 1"),
        ({"blocks": (1, 1)}, r"blocks: expected three counts .* got \(1, 1\)"),
        ({"blocks": (1, 0, 1)}, "blocks: expected three counts"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments, words):
    with pytest.raises(ValueError, match=words):
        SpectralTransformer(**arguments)


def test_bad_calls_say_what_was_expected():
    net = tiny()
    with pytest.raises(ValueError, match=r"x: expected \(B, 3, H, W\)"):
        net(torch.rand(1, 4, 8, 8), 0.1)
    with pytest.raises(ValueError, match=r"x: expected \(B, 3, H, W\)"):
        net(torch.rand(3, 8, 8), 0.1)
    with pytest.raises(ValueError, match="noise_level: expected one number or one per sample, 2"):
        net(torch.rand(2, 3, 8, 8), torch.rand(3))
