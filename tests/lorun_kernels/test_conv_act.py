import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorun_kernels import ConvAct, FusedLoRAConv2d

ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"padding_mode": "reflect"}]
)
def test_it_is_conv2d_then_an_activation_then_a_residual(activation, options):
    torch.manual_seed(0)
    twin = ConvAct(6, 4, 3, **options, activation=activation, negative_slope=0.2)
    plain = nn.Conv2d(6, 4, 3, **options)
    plain.load_state_dict(twin.state_dict())
    x, y = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    expected = ACTIVATIONS[activation](plain(torch.cat([x, y], 1)))
    residual = torch.randn_like(expected)
    assert torch.equal(twin(x, y, residual), expected + residual)
    assert torch.equal(twin(torch.cat([x, y], 1)), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_adapted_layer_is_its_twin_until_it_is_trained(activation):
    twin = ConvAct(3, 4, 3, padding=1, activation=activation, negative_slope=0.2)
    layer = FusedLoRAConv2d.from_conv(twin)
    x, residual = torch.randn(1, 3, 6, 5), torch.randn(1, 4, 6, 5)
    assert torch.equal(layer(x, residual=residual), twin(x, residual=residual))
    assert (layer.activation, layer.negative_slope) == (activation, 0.2)
    other = FusedLoRAConv2d.from_conv(twin, activation="relu", negative_slope=0.3)
    assert (other.activation, other.negative_slope) == ("relu", 0.3)


def test_refuses_by_name():
    with pytest.raises(ValueError, match="activation must be one of None, .*got 'tanh'"):
        ConvAct(2, 3, 1, activation="tanh")
    with pytest.raises(TypeError, match="ConvAct: negative_slope must be a number, got 'small'"):
        ConvAct(2, 3, 1, negative_slope="small")
    with pytest.raises(ValueError, match="residual must have the output's shape"):
        ConvAct(2, 3, 1)(torch.zeros(1, 2, 4, 4), residual=torch.zeros(1, 1, 4, 4))


def test_repr_shows_the_activation():
    assert "activation='gelu'" in repr(ConvAct(2, 3, 1, activation="gelu"))
