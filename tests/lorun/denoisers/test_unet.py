import pytest
import torch

from lorun.adapters import adapted_view
from lorun.denoisers import UNet


def trained_like(**kwargs) -> UNet:
    """A U-Net whose last layer is not zero, so that its output depends on everything."""
    net = UNet(**kwargs)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return net


def test_parameter_count_is_worked_out_by_hand():
    def conv(inputs, outputs):
        return inputs * outputs * 9 + outputs

    def level(inputs, outputs):
        return conv(inputs, outputs) + 2 * conv(outputs, outputs)

    by_hand = level(2, 28) + level(28, 56) + level(56, 112) + level(168, 56) + level(84, 28) + 28 + 1
    assert sum(p.numel() for p in UNet().parameters()) == by_hand == 544_685


def test_it_starts_as_the_identity():
    x = torch.rand(2, 1, 24, 20)
    assert torch.equal(UNet()(x, 0.5), x)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (1, 1), (17, 30), (3, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channel_count(size, channels):
    x = torch.rand(2, channels, *size)
    assert trained_like(channels=channels, width=4)(x, 0.1).shape == x.shape


def test_padding_only_matters_near_the_border():
    net = trained_like(width=4)
    x = torch.rand(1, 1, 160, 160)
    whole, cut = net(x, 0.1), net(x[..., :157, :155], 0.1)
    torch.testing.assert_close(whole[..., :80, :80], cut[..., :80, :80], rtol=0, atol=1e-6)
    assert not torch.allclose(whole[..., :157, :155], cut, atol=1e-6)


def test_one_noise_level_per_sample():
    net = trained_like(width=4)
    x = torch.rand(2, 1, 16, 16)
    both = net(x, torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(both[:1], net(x[:1], 0.1))
    torch.testing.assert_close(both[1:], net(x[1:], torch.tensor(0.9)))
    assert not torch.allclose(net(x, 0.1), net(x, 0.9))


def test_the_noise_level_gets_a_gradient():
    level = torch.tensor(0.3, requires_grad=True)
    trained_like(width=4)(torch.rand(1, 1, 16, 16), level).sum().backward()
    assert level.grad.abs() > 0


def test_an_adapted_view_computes_as_its_base_does_also_under_autocast():
    net = trained_like(width=4)
    view, x = adapted_view(net), torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(view(x, 0.1), net(x, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = view(x, 0.1), net(x, 0.1)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        UNet(width=0)
