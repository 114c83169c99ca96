import pytest
import torch
from torch import nn

import lorun
from lorun.adapters import adapted_view
from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear, adapted_weights


def mixed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(6, 12, 3, padding=1),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 24, 3, padding=1, groups=12),
        nn.Conv2d(24, 12, 3, padding=1, groups=2),
        ConvAct(12, 6, 1, activation="gelu"),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 5),
        nn.PReLU(),
    )


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_a_view_computes_as_its_base_on_the_same_parameters(form):
    base, x = mixed(), torch.rand(2, 6, 4, 4)
    view = adapted_view(base, gamma=50, form=form)
    torch.testing.assert_close(view(x), base(x))
    own = dict(view.named_parameters())
    assert all(own[name] is p for name, p in base.named_parameters())
    assert [type(layer) for layer in view] == [FusedLoRAConv2d] * 5 + [nn.Flatten, FusedLoRALinear, nn.PReLU]


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_depthwise_layers_get_a_full_additive_weight_and_others_a_rank(form):
    view = adapted_view(mixed(), gamma=50, form=form)
    for layer in view[1:3]:
        assert layer.rank is None and layer.lora_up is None
        assert layer.lora_delta.shape == layer.base_weight.shape
    assert view[0].rank == 3 and view[0].form == form
    assert view[4].rank == 3 and view[4].form == form


def test_a_grouped_layer_that_is_not_depthwise_keeps_its_form():
    grouped = adapted_view(mixed(), gamma=50, form="factored")[3]
    assert (grouped.rank, grouped.form) == (6, "factored")


def test_a_layer_of_one_channel_is_not_depthwise():
    view = adapted_view(nn.Sequential(nn.Conv2d(1, 8, 3)), form="factored")
    assert (view[0].rank, view[0].form) == (1, "factored")


def test_a_module_under_two_names_is_adapted_once_and_stays_one():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    twice = nn.Sequential(conv, nn.ReLU(), conv)
    view = adapted_view(twice)
    assert type(view[0]) is FusedLoRAConv2d and view[0] is view[2]
    wrapped = adapted_view(nn.Sequential(nn.Sequential(conv), nn.Sequential(conv)))
    assert type(wrapped[0][0]) is FusedLoRAConv2d and wrapped[0][0] is wrapped[1][0]
    nn.init.normal_(view[0].lora_up)
    x, merged = torch.rand(1, 4, 5, 5), nn.Conv2d(4, 4, 3, padding=1)
    merged.load_state_dict({"weight": view[0].merged_weight(), "bias": conv.bias})
    torch.testing.assert_close(view(x), nn.Sequential(merged, nn.ReLU(), merged)(x))


@pytest.mark.parametrize(
    "base, kind",
    [
        (nn.Conv2d(4, 6, 3), FusedLoRAConv2d),
        (ConvAct(4, 6, 3, activation="leaky_relu", negative_slope=0.2), FusedLoRAConv2d),
        (nn.Linear(5, 3), FusedLoRALinear),
    ],
)
def test_a_base_that_is_itself_a_layer_is_adapted(base, kind):
    view, x = adapted_view(base), torch.randn(2, 5, 5) if kind is FusedLoRALinear else torch.randn(2, 4, 5, 5)
    assert type(view) is kind and view.base_weight is base.weight and view.lora_up.requires_grad
    torch.testing.assert_close(view(x), base(x))


def test_a_subclass_keeps_its_forward_and_gets_an_adapter():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    base, x = nn.Sequential(Doubled(8, 8, 3)), torch.randn(1, 8, 5, 5)
    view = adapted_view(base, gamma=25)
    assert torch.equal(view(x), base(x)) and isinstance(view[0], Doubled)
    nn.init.normal_(view[0].lora_up)
    weight = base[0].weight + (view[0].lora_up @ view[0].lora_down).view_as(base[0].weight)
    torch.testing.assert_close(view(x), 2 * nn.functional.conv2d(x, weight, base[0].bias))


def test_buffers_are_the_views_own():
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    view = adapted_view(base)
    before = base[1].running_mean.clone()
    view.train()(torch.randn(4, 2, 8, 8) + 3)
    assert torch.equal(base[1].running_mean, before) and not torch.equal(view[1].running_mean, before)


def test_a_base_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="base: Sequential has no weight of two or more dimensions"):
        adapted_view(nn.Sequential(nn.ReLU(), nn.PReLU(4)))


class Reads(nn.Module):
    """Uses one convolution's weight for the transpose too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x, level):
        return x + nn.functional.conv_transpose2d(self.conv(x), self.conv.weight, padding=1)


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.D = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)

    def forward(self, x, level):
        return x + nn.functional.conv_transpose2d(
            nn.functional.conv2d(x, self.D, padding=1), self.D, padding=1
        )


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3, padding=1))

    def forward(self, x, level):
        return x + self.conv(x)


@pytest.mark.parametrize("denoiser", [Reads, Raw, Normed])
def test_adapters_of_every_kind_of_denoiser_learn_in_an_unfolding_network(denoiser):
    net = lorun.UnfoldingNetwork(lorun.physics.BlockCS(0.25, block=8), denoiser(), stages=2, variant="lorun")
    y = net.physics.A(torch.rand(1, 1, 16, 16)).detach()
    net(y).square().sum().backward()
    tensors = [w.tensors[0] for w in adapted_weights(net).values()]
    assert len(tensors) == 2 and all(t.grad is not None and t.grad.any() for t in tensors)


def test_an_unfolding_network_whose_stages_could_not_differ_is_refused():
    with pytest.raises(ValueError, match="has no weight of two or more dimensions"):
        lorun.UnfoldingNetwork(lorun.physics.BlockCS(0.25, block=8), nn.PReLU(), stages=2, variant="lorun")
