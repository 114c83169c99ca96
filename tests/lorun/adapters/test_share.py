import pytest
import torch
from torch import nn

from lorun.adapters import adapted_view
from lorun_kernels import ConvAct, FusedLoRAConv2d, FusedLoRALinear


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
        assert layer.lora_delta.shape == layer.weight.shape
    assert view[0].rank == 3 and view[0].form == form
    assert view[4].rank == 3 and view[4].form == form


def test_a_grouped_layer_that_is_not_depthwise_keeps_its_form():
    grouped = adapted_view(mixed(), gamma=50, form="factored")[3]
    assert (grouped.rank, grouped.form) == (6, "factored")


def test_a_layer_of_one_channel_is_not_depthwise():
    view = adapted_view(nn.Sequential(nn.Conv2d(1, 8, 3)), form="factored")
    assert (view[0].rank, view[0].form) == (1, "factored")
