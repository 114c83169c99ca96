"""LayerAdapter: an adapter as tensors."""

import pytest
import torch

from lorun.adapters.adapter_set import LayerAdapter, adapters_are_finite


def test_what_an_adapter_adds_is_the_scaled_product_in_the_weights_shape():
    up, down = torch.randn(18, 6), torch.randn(6, 12)
    adapter = LayerAdapter((6, 4, 3, 3), "reshape", up, down, scaling=0.5)
    expected = torch.empty(6, 4, 3, 3)
    for row in range(18):
        expected.view(18, 12)[row] = 0.5 * sum(up[row, k] * down[k] for k in range(6))
    torch.testing.assert_close(adapter.added(), expected)
    delta = torch.randn(2, 3)
    torch.testing.assert_close(LayerAdapter((2, 3), "full", delta=delta, scaling=3).added(), 3 * delta)
    assert adapter.tensors == (up, down)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_are_seen_in_every_tensor(bad):
    good = LayerAdapter((2, 3), "factored", torch.ones(2, 1), torch.ones(1, 3))
    assert adapters_are_finite({"a": good, "b": LayerAdapter((2,), "full", delta=torch.ones(2))})
    for name, shape in (("up", (2, 1)), ("down", (1, 3))):
        tensors = {"up": good.up, "down": good.down} | {name: torch.full(shape, bad)}
        assert not adapters_are_finite({"a": good, "b": LayerAdapter((2, 3), "factored", **tensors)})
    assert not adapters_are_finite({"a": LayerAdapter((2,), "full", delta=torch.full((2,), bad))})
