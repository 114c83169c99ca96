"""FusedLoRALinear: nn.Linear with an adapter."""

import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRALinear


def test_linear_shares_its_base_and_equals_it_at_the_start():
    linear = nn.Linear(20, 30)
    layer = FusedLoRALinear.from_linear(linear)
    rows = torch.randn(3, 20)
    assert layer.rank == 2 and layer.base_weight is linear.weight and not layer.base_weight.requires_grad
    assert torch.equal(layer(rows), linear(rows))
    nn.init.normal_(layer.lora_up)
    torch.testing.assert_close(layer(rows), nn.functional.linear(rows, layer.merged_weight(), linear.bias))
    trained = layer(rows)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer(rows), trained)
    layer.reset_adapter()
    assert torch.equal(layer(rows), linear(rows))


def test_from_linear_refuses_what_it_cannot_share():
    with pytest.raises(TypeError, match="expected an nn.Linear"):
        FusedLoRALinear.from_linear(nn.Conv2d(4, 6, 3))


def test_repr_shows_the_adapter():
    assert "rank=2, scaling=0.5" in repr(FusedLoRALinear(6, 4, rank=2, scaling=0.5))


def test_kernels_of_a_gpu_run_it(interpret):
    interpret("tests.lorun_kernels.layers_on_triton:check_linear")
