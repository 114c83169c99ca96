"""Code that reads a layer's weight without calling the layer gets what the layer applies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lorun_kernels import FusedLoRAConv2d, FusedLoRALinear, adapted_weights, add_adapter, merge, to_plain
from tests.lorun_kernels.adaptable_modules import trained

ENCODER = ("linear1.weight", "linear2.weight", "self_attn.in_proj_weight", "self_attn.out_proj.weight")


def encoder(*names: str, **options) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, **options)
    for name in names:
        path, _, own = name.rpartition(".")
        add_adapter(layer.get_submodule(path), own, rank=2)
    return trained(layer)


@pytest.mark.parametrize("adapted", [(name,) for name in ENCODER] + [ENCODER])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_an_encoder_layer_has_the_adapter(adapted, norm_first, monkeypatch):
    layer = encoder(*adapted, norm_first=norm_first).eval()
    assert set(adapted_weights(layer)) == set(adapted)
    tokens = torch.randn(2, 5, 6)
    expected, plain, before = layer(tokens).detach(), to_plain(layer), encoder(norm_first=norm_first).eval()
    fast = []
    run = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: fast.append(1) or run(*args))
    with torch.no_grad():
        found = layer(tokens)
        torch.testing.assert_close(found, plain(tokens))
        assert not torch.allclose(found, before(tokens), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(fast) == 3  # all three took it, as ordinary layers do


def test_a_whole_encoder_of_adapted_layers_computes_alike_with_and_without_gradients():
    torch.manual_seed(0)
    network = nn.TransformerEncoder(encoder(), 3).eval()
    for layer in network.layers:
        for name in ENCODER:
            path, _, own = name.rpartition(".")
            add_adapter(layer.get_submodule(path), own, rank=1)
    trained(network)
    tokens, mask = torch.randn(3, 5, 6), torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    expected = network(tokens, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        found = network(tokens, src_key_padding_mask=mask)
        torch.testing.assert_close(found[~mask], expected[~mask], rtol=1e-4, atol=1e-5)
        merge(network)
        merged = network(tokens, src_key_padding_mask=mask)
    torch.testing.assert_close(merged[~mask], expected[~mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["reshape", "factored", "full"])
@pytest.mark.parametrize("convert", [add_adapter, FusedLoRAConv2d.from_conv])
def test_a_transpose_by_the_weight_of_a_convolution_is_its_adjoint(convert, form, dtype, groups):
    torch.manual_seed(0)
    conv = convert(nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=groups, bias=False), rank=1, form=form)
    trained(conv.to(dtype))
    x, v = torch.randn(1, 3, 9, 7, dtype=dtype), torch.randn(1, 6, 5, 4, dtype=dtype)
    back = F.conv_transpose2d(v, conv.weight, stride=2, padding=1, groups=groups)
    torch.testing.assert_close((conv(x) * v).sum(), (x * back).sum(), rtol=1e-4, atol=1e-5)


MAKERS = {
    "fused": lambda: add_adapter(nn.Conv2d(3, 5, 3), rank=2, scaling=0.5),
    "depthwise": lambda: add_adapter(nn.Conv2d(3, 6, 3, groups=3, bias=False)),
    "plain": lambda: to_plain(trained(add_adapter(nn.Conv2d(3, 5, 3), rank=2))),
    "bfloat16": lambda: add_adapter(nn.Conv2d(3, 5, 3).bfloat16(), rank=2, dtype=torch.float32).float(),
}


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for value in (*norm.parameters(), norm.running_mean):
            value.uniform_(0.5, 2)
        norm.running_var.uniform_(2, 4)
    return norm


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_batch_norm_is_folded_into_what_a_convolution_applies(make):
    torch.manual_seed(0)
    conv = trained(make()).eval()
    norm, image = norm_of(conv.out_channels), torch.randn(2, 3, 6, 7)
    before = conv(image)
    folded = fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(folded(image), norm(before), rtol=1e-4, atol=1e-5)
    assert torch.equal(conv(image), before)


def test_a_batch_norm_is_not_folded_into_a_merged_convolution():
    conv = merge(trained(add_adapter(nn.Conv2d(3, 5, 3), rank=2)).eval())
    with pytest.raises(RuntimeError, match=r"call lorun_kernels\.unmerge\(model\) first"):
        fuse_conv_bn_eval(conv, norm_of(5))


@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 5}])
@pytest.mark.parametrize("convert", [add_adapter, FusedLoRALinear.from_linear])
def test_the_projection_out_of_attention_gets_gradients(convert, widths):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True, **widths)
    attention.out_proj = convert(attention.out_proj, rank=2)
    query, key = torch.randn(2, 5, 6), torch.randn(2, 4, widths.get("kdim", 6))
    value = torch.randn(2, 4, widths.get("vdim", 6))
    before = attention(query, key, value)[0]
    before.square().sum().backward()
    assert attention.out_proj.lora_up.grad.any()
    trained(attention)
    after = attention(query, key, value)[0]
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, to_plain(attention)(query, key, value)[0])


def test_attention_without_gradients_has_its_adapters():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True).eval()
    add_adapter(attention, "in_proj_weight", rank=2)
    add_adapter(attention.out_proj, rank=2)
    trained(attention)
    x = torch.randn(2, 5, 6)
    expected = attention(x, x, x, need_weights=False)[0].detach()
    with torch.no_grad():
        found = attention(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_plain(attention)(x, x, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_tied_weights_of_an_embedding_and_its_output_read_alike():
    torch.manual_seed(0)
    embedding = trained(add_adapter(nn.Embedding(11, 6), rank=2))
    codes = torch.tensor([[1, 10, 3]])
    logits = F.linear(embedding(codes), embedding.weight)
    table = embedding._base_weight + embedding.lora_up @ embedding.lora_down
    torch.testing.assert_close(logits, table[codes] @ table.T)
