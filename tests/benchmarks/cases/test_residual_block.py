"""The residual block as a case: it is the network's level, and what is merged and compiled."""

import pytest
import torch

import lorun
from benchmarks.cases import residual_block
from benchmarks.cases.layers import network_blocks
from benchmarks.cases.residual_block import COMPILE_SECONDS, EAGER, OPTIONS, Block
from benchmarks.harness.case import OURS

NAME = "decoder on a concatenation, 28 channels @256"


def test_block_is_the_network_s_level():
    network = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    level = network.denoiser.decoder1
    block = Block(network_blocks()[NAME])
    for conv, theirs in zip(block.convs, [level.entry, level.first, level.second], strict=True):
        conv.load_state_dict(theirs.state_dict())
    layout = torch.channels_last
    block.to(memory_format=layout)
    x, skip = (torch.randn(1, channels, 8, 8).to(memory_format=layout) for channels in (56, 28))
    assert torch.equal(block(x, skip), level(x, skip))


def test_candidates_agree(measured):
    case = residual_block.block("cpu", NAME, batch=1, size=8, compiled=False)
    record = measured(case)
    assert list(record["candidates"]) == [OURS, *residual_block.BACKENDS["cpu"], EAGER]
    assert not record["missing"] and case.kernels


def test_a_peer_without_the_adapters_is_caught(monkeypatch, measured):
    monkeypatch.setattr(residual_block, "_merged", lambda base, adapted: base)
    case = residual_block.block("cpu", NAME, batch=1, size=8, compiled=False)
    with pytest.raises(AssertionError, match="eager, result 0"):
        measured(case)


def test_compiled_candidates_have_a_time_limit(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: asked.append(options) or module)
    case = residual_block.block("cpu", NAME, batch=1, size=8)
    assert asked == list(OPTIONS.values())
    assert [case.candidates[name].patience for name in OPTIONS] == [COMPILE_SECONDS] * 3
