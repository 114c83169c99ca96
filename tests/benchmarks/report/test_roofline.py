"""The counting behind docs/lora_conv_roofline.md, by hand, and the page itself."""

import json
import math
import shlex
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.report.ceilings import ASSUMED, Ceilings
from torch.utils.flop_counter import FlopCounterMode

import lorun
from benchmarks import roofline
from benchmarks.cases.layers import (
    adapted_networks,
    called_layers,
    denoiser_inputs,
    layer_table,
    network_layers,
)
from benchmarks.cases.lora_layer import Block, Case, bench_layers, relative_error, small, usable
from benchmarks.cases.passes import Pass, Sizes, backward, bare, conv_flops, forward, tile_flops
from benchmarks.harness.gpu import time_limit
from benchmarks.report.winners import (
    default_lines,
    default_rows,
    geometric_mean,
    layer_lines,
    mean_lines,
    median,
    ratios,
)

ROOT = Path(__file__).parents[2]
LAYERS = layer_table()
BY_NAME = {layer.name: layer for layer in LAYERS}
SQUARE = BY_NAME["28->28 3x3 @256 gelu"]
RESIDUAL = BY_NAME["28->28 3x3 @256 +residual"]
DECODER = BY_NAME["56+28->28 3x3 @256 gelu"]
# Eight images of 28 channels at 256 x 256, two bytes each.
IMAGE = 8 * 28 * 256 * 256 * 2


@pytest.mark.parametrize("name", adapted_networks())
def test_a_network_s_layers_are_all_its_convolutions(name):
    base = lorun.create_model(name, pretrained=False).denoiser.to("meta")
    image = torch.empty(1, base.channels, 256, 256, device="meta")
    with FlopCounterMode(display=False) as counter:
        base(*denoiser_inputs(base, image, 0.1))
    layers = network_layers(name)
    assert sum(conv_flops(layer, 1) for layer in layers) == counter.get_total_flops()
    assert len(layers) == 16


def test_the_table_holds_every_layer_once():
    assert set(LAYERS) == {layer for name in adapted_networks() for layer in network_layers(name)}
    # The two networks differ in their first and their last layer.
    assert sum(LAYERS.values()) == 18
    assert LAYERS[SQUARE] == 2


def test_layers_know_their_rank_and_what_comes_after_them():
    for layer in LAYERS:
        assert layer.rank == math.ceil(min(layer.in_channels, layer.out_channels) / 10)
    assert (DECODER.in_channels, DECODER.second_in_channels, DECODER.activation) == (84, 28, "gelu")
    assert (RESIDUAL.residual, RESIDUAL.activation, RESIDUAL.rank) == (True, None, 3)
    last = BY_NAME["28->1 1x1 @256"]
    assert (last.factor_shapes, last.padding) == (((1, 1), (1, 28)), (0, 0))


def test_hooks_are_gone_afterwards():
    network = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    called = called_layers(network.denoisers[0], 1, size=64)
    assert len(called) == 16 and called[0].name == "2->28 3x3 @64 gelu"
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_one_layer_by_hand():
    """7.4 GFLOP and 59 MB."""
    assert conv_flops(SQUARE, 8) == 2 * 8 * 256 * 256 * 28 * 28 * 9 == 7_398_752_256
    weight, adapter, bias = 28 * 28 * 9 * 2, 2 * (84 * 9) * 2, 28 * 2
    assert Sizes.of(SQUARE, 8) == Sizes(IMAGE, IMAGE, weight, adapter, bias)
    (fused,) = forward(SQUARE, 8, "fused")
    assert fused.bytes == 2 * IMAGE + weight + adapter + bias == 58_737_448
    # The merge is 84 x 84 results of nine products.
    assert fused.flops == 7_398_752_256 + 2 * 84 * 84 * 9
    assert tile_flops(SQUARE, 8) == 2 * 8 * 256 * 256 * 32 * 32 * 9
    assert ASSUMED.limit(fused) == "memory"
    assert ASSUMED.microseconds([fused]) == pytest.approx(13.66, abs=0.01)


def _images(passes: list[Pass]) -> dict[str, int]:
    """Traffic in 28-channel images, weights rounded off."""
    return {one.name: round(one.bytes / IMAGE) for one in passes}


def test_passes_of_the_separate_kernels_by_hand():
    merge = {"merge": 0}
    assert _images(forward(SQUARE, 8, "cudnn")) == merge | {"convolution": 2, "bias": 2, "activation": 2}
    assert _images(forward(RESIDUAL, 8, "cudnn")) == merge | {"convolution": 2, "bias": 2, "residual": 3}
    assert _images(forward(RESIDUAL, 8, "fused")) == {"fused convolution": 3}
    compiled = {"concatenation": 6, "convolution": 4, "bias, activation, residual": 2}
    assert _images(forward(DECODER, 8, "compiled")) == compiled
    assert _images(forward(DECODER, 8, "template")) == {"concatenation": 6, "convolution and epilogue": 4}
    assert _images(forward(DECODER, 8, "fused")) == {"fused convolution": 4}
    assert _images(forward(bare(DECODER), 8, "plain")) == {"convolution": 4, "bias": 2}
    factors = ["product of the factors", "sum with the base"]
    assert [one.name for one in forward(bare(SQUARE), 8, "loralib")] == [*factors, "convolution", "bias"]


def test_training_by_hand():
    assert _images(forward(SQUARE, 8, "fused", training=True)) == {"fused convolution": 3}
    assert _images(forward(RESIDUAL, 8, "fused", training=True)) == {"fused convolution": 3}
    gradients = {"activation": 3, "input's gradient": 4, "adapter's gradient": 4}
    assert _images(backward(DECODER, 8, "fused")) == gradients
    of_w = {"input's gradient": 2, "weight's gradient": 2, "gradients of the factors": 0}
    assert _images(backward(RESIDUAL, 8, "loralib")) == of_w
    flops = [one.flops for one in backward(SQUARE, 1, "loralib")]
    assert flops == [0, conv_flops(SQUARE, 1), conv_flops(SQUARE, 1), 4 * 84 * 84 * 9]


def test_limits():
    limits = Ceilings(bytes_per_s=1e12, flops_per_s=1e14, kernel_s=2e-6)
    assert limits.balance == 100
    passes = [Pass("a", 0, 10_000_000), Pass("b", 10**9, 1), Pass("c", 10, 10)]
    assert [limits.limit(one) for one in passes] == ["memory", "arithmetic", "launch"]
    assert limits.microseconds(passes) == pytest.approx(10 + 10 + 2)


def test_blocks_of_the_network():
    found = roofline.network_blocks()
    assert [len(layers) for layers in found.values()] == [2, 2, 2, 3, 3]
    assert found["decoder on a concatenation, 28 channels @256"] == [DECODER, SQUARE, RESIDUAL]


def _record(layer, batch: int, milliseconds: dict[str, float], **fields) -> dict:
    return {
        "kind": "forward",
        "scope": "network",
        "layer": layer.name,
        "batch": batch,
        "count": LAYERS[layer],
        "shape": [layer.kernel[0], layer.in_channels, layer.out_channels],
        "pixels": batch * layer.height * layer.width,
        "title": f"forward, network, {layer.name}, batch {batch}",
        "milliseconds": {name: [value, value / 2, 2 * value] for name, value in milliseconds.items()},
        "missing": {},
        "gpu": "a GPU",
        **fields,
    }


RECORDS = [
    {"kind": "ceilings", "copy_tb_per_s": 2.0, "matmul_tflop_per_s": 500.0, "kernel_us": 1.5, "gpu": "a GPU"},
    _record(SQUARE, 1, {"default": 3, "cuda": 3, "triton": 5, "aten": 4, "plain": 4, "loralib": 6}),
    _record(RESIDUAL, 1, {"default": 4, "cuda": 4, "triton": 3, "aten": 9, "plain": 2, "loralib": 4}),
    _record(SQUARE, 8, {"default": 7, "cuda": 9, "triton": 7, "aten": 8, "plain": 9, "loralib": 9}),
    _record(RESIDUAL, 8, {"default": 7, "triton": 7, "aten": 8, "plain": 14, "loralib": 14},
            missing={"cuda": "no kernel"}),
    _record(DECODER, 8, {"default": 8, "aten": 8, "plain": 8, "loralib": 8}),
]  # fmt: skip


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at least one"):
        geometric_mean([])


def test_summary():
    assert median(RECORDS[1], "cuda") == 3 and median(RECORDS[5], "cuda") is None
    assert ratios(RECORDS[1:3], "default", "plain") == [0.75, 2.0]
    assert ratios(RECORDS[1:], "cuda", "aten") == [3 / 4, 4 / 9, 9 / 8]
    lines = mean_lines(RECORDS)
    expected = "forward, network, batch 1, to plain: default 1.225, cuda 1.225, triton 1.369, aten 2.121"
    assert lines[0] == expected
    assert layer_lines(RECORDS)[3].endswith("loralib 14000.0, cuda missing [1]")
    assert layer_lines(RECORDS)[-1] == "[1] no kernel"


def test_winners_become_rows_of_the_defaults():
    """At batch 1 CUDA takes 7 for both layers and Triton 8; at batch 8 CUDA lacks one of them."""
    inf = math.inf
    assert default_rows(RECORDS) == [
        (3, 28, 28, 65536, "cuda"), (3, 28, 28, inf, "triton"), (3, 84, 28, inf, "aten")
    ]  # fmt: skip
    assert default_lines(RECORDS)[1] == '    (3, 28, 28, float("inf"), "triton"),'


def _page(records: list[dict]) -> str:
    return "\n".join(roofline.Page(LAYERS, records, "command").lines())


def test_page_names_assumed_ceilings():
    page = _page([])
    assert "4.30 TB/s" in page and "790 TFLOP/s" in page and "**Both are assumed**" in page
    assert "LoRun, CUDA" not in page and "measured, batch" not in page
    row = "| 28->28 3x3 @256 gelu | 2 | 7.40 | 58.7 | 176.2 | 126 | memory | 13.7 | 12.2 | 41.0 | 27.3 |"
    assert row in page


def test_page_shows_what_was_measured():
    block = {
        "kind": "block",
        "block": "residual block, 28 channels @256",
        "milliseconds": {"default": [3.0] * 3, "cuda": [2.0] * 3, "compiled": [2.5] * 3,
                         "compiled, cuDNN only": [3.0] * 3},
        "kernels": {"compiled": ["triton_tem_fused_convolution_0"]},
        "missing": {},
    }  # fmt: skip
    page = _page([*RECORDS, block])
    assert "assumed" not in page and "2.00 TB/s" in page and "measured on a GPU" in page
    row = next(line for line in page.splitlines() if line.startswith("| 28->28 3x3 @256 gelu"))
    # The default, CUDA, Triton, cuDNN on the merged weight, without an adapter, loralib's form.
    assert row.endswith("| 7000.0 | 9000.0 | 7000.0 | 8000.0 | 9000.0 | 9000.0 |")
    assert "- LoRun, CUDA is missing from a layer: no kernel" in page
    losses = [line for line in page.splitlines() if line.startswith("- forward")]
    assert losses == ["- forward, network, 28->28 3x3 @256 +residual, batch 1: 2.00x cuDNN, no adapter"]
    assert "| 72% | 0.83 | 1.25 | 1.50 | template |" in page


def test_committed_page_is_what_the_command_writes(tmp_path, monkeypatch):
    committed = (ROOT / roofline.OUT).read_text()
    command = committed.splitlines()[-1].removeprefix("Written by `").removesuffix("`.")
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)[3:]
    monkeypatch.setattr(sys, "argv", ["roofline", *arguments, "--out", str(tmp_path / "page.md")])
    roofline.main()
    assert (tmp_path / "page.md").read_text() == committed
    for plot in (tmp_path / "page.png", (ROOT / roofline.OUT).with_suffix(".png")):
        assert 10_000 < plot.stat().st_size < 100_000


def test_results_are_read_from_what_pytest_benchmark_writes(tmp_path):
    file = tmp_path / "lora.json"
    entries = [{"name": "other", "extra_info": {}}, *({"extra_info": record} for record in RECORDS)]
    file.write_text(json.dumps({"benchmarks": entries}))
    assert roofline.load(file) == RECORDS


@pytest.mark.parametrize("layer", [DECODER, RESIDUAL], ids=lambda layer: layer.name)
def test_candidates_compute_the_same_layer(layer):
    case = Case(small(layer, 12), 2, 2, "cpu", torch.float64)
    candidates = {name: case.candidates()[name] for name in ("default", "aten", "plain", "loralib")}
    for calls in (candidates, {name: case.trained(call) for name, call in candidates.items()}):
        found, missing = usable(calls, "loralib", most=1e-12)
        assert list(found) == list(candidates) and not missing
    assert relative_error(case.plain(1), case.loralib(1)) > 0.05
    rounded = case.to(torch.float32).lorun(0)
    assert rounded.dtype == torch.float32 and 0 < relative_error(rounded, case.lorun(0)) < 1e-6


def test_a_candidate_that_cannot_run_or_is_wrong_has_its_reason():
    one = torch.ones(3)

    def fails(_):
        raise ValueError("no kernel\nfor this")

    candidates = {
        "peer": lambda i: one,
        "near": lambda i: [one * 1.01],
        "far": lambda i: one * 1.1,
        "nan": lambda i: one * math.nan,
        "fails": fails,
    }
    found, missing = usable(candidates, "peer")
    assert list(found) == ["peer", "near"]
    expected = {"far": "wrong: 10.0% from peer", "nan": "wrong: nan% from peer"}
    assert missing == expected | {"fails": "ValueError: no kernel"}


def test_bare_layers_are_timed_once():
    layers = bench_layers()["bias only"]
    assert len(layers) == 11 and sum(layers.values()) == 18
    assert layers[bare(SQUARE)] == 4


def test_block_is_the_network_s_level():
    network = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    level = network.denoiser.decoder1
    block = Block(roofline.network_blocks()["decoder on a concatenation, 28 channels @256"])
    for conv, theirs in zip(block.convs, [level.entry, level.first, level.second], strict=True):
        conv.load_state_dict(theirs.state_dict())
    layout = torch.channels_last
    block.to(memory_format=layout)
    x, skip = (torch.randn(1, channels, 8, 8).to(memory_format=layout) for channels in (56, 28))
    assert torch.equal(block(x, skip), level(x, skip))


def test_time_limit():
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
