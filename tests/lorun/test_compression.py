"""`lorun compress`: from a checkpoint to files."""

import dataclasses
import re
import sys

import pytest
import torch
from torch import nn

import lorun
from lorun.checkpoint import load_network, save_network
from lorun.cli import main
from lorun.compression import compress_file, load_with
from lorun.networks import build_network, network_config
from tests.lorun.adapters.shared_networks import IMAGE, small_network

CONFIG = network_config("cs", ratio=0.25, block=8, width=4, stages=3, variant="block")
LOADER = """
import torch
from tests.lorun.adapters.shared_networks import small_network

def load(path):
    model = small_network()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model

def nothing(path):
    return path
"""


@pytest.fixture
def block_file(tmp_path):
    torch.manual_seed(0)
    net = build_network(CONFIG)
    for denoiser in net.denoisers:
        for p in denoiser.parameters():
            nn.init.normal_(p, std=0.05)
    path = tmp_path / "block.safetensors"
    save_network(net, CONFIG, path, dtype=torch.float32)
    return path


@pytest.mark.parametrize("options", [{"gamma": 25}, {"parameters": 20_000}, {"energy": 0.3, "align": True}])
def test_a_block_model_becomes_a_smaller_model_file(block_file, tmp_path, options):
    report = compress_file(block_file, tmp_path / "out", form="factored", **options)
    made = tmp_path / "out" / "block-compressed.safetensors"
    net, config, _ = load_network(made)
    assert config == CONFIG and net.variant == "block"
    assert (
        report.in_stages < 0.9 * report.block and str(report) in (tmp_path / "out" / "report.txt").read_text()
    )
    assert lorun.report(net).in_stages == report.in_stages
    assert made.stat().st_size < 0.5 * block_file.stat().st_size
    y = net.physics.A(torch.rand(1, 1, 16, 16))
    again = tmp_path / "again.safetensors"
    save_network(net, config, again, dtype=torch.float16)
    assert torch.equal(load_network(again)[0](y), net(y))


def test_all_of_it_restores_as_the_block_model(block_file, tmp_path):
    compress_file(block_file, tmp_path, gamma=100)
    net, made = load_network(block_file)[0], load_network(tmp_path / "block-compressed.safetensors")[0]
    y = net.physics.A(torch.rand(1, 1, 16, 16))
    torch.testing.assert_close(made(y), net(y), atol=2e-3, rtol=2e-3)


def test_another_network_comes_from_a_loader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_loader.py").write_text(LOADER)
    original = small_network(seed=3)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    arguments = ["weights.pth", "-o", "out", "--loader", "their_loader:load", "--stages", "stages"]
    assert main(["compress", *arguments, "--gamma", "100"]) == 0
    model = lorun.load_adapters(small_network(), tmp_path / "out")
    torch.testing.assert_close(model(IMAGE), original(IMAGE), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.safetensors"], "no such model file"),
        (["cs25-unet-lorun9"], "expected a Block-K model"),
        (["{block}", "--stages", "x"], "stages: is for networks from a loader|ours are its denoisers"),
        (["{block}", "--parameters", "9000", "--energy", "0.5"], "expected one of them, got 9000 and 0.5"),
        (["{block}", "--parameters", "10"], "expected at least"),
        (["x", "--loader", "nothing"], "loader: expected module:function"),
        (["x", "--loader", "no_such_module:f"], "cannot import 'no_such_module'"),
        (["x", "--loader", "json:no_such"], "json has no function 'no_such'"),
        (["x", "--loader", "os.path:basename"], "expected an nn.Module from it, got str"),
        (["x", "--loader", "os.path:basename", "--align"], "align: is for our U-Net"),
    ],
)
def test_refusals_are_one_line(block_file, tmp_path, capsys, arguments, words):
    arguments = [a.format(block=block_file) for a in arguments]
    assert main(["compress", *arguments, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and not (tmp_path / "out").exists()
    assert re.search(words, said), said


def test_a_loader_is_found_in_the_current_folder_only_while_it_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loader_here.py").write_text("import torch\nload = lambda path: torch.nn.Linear(2, 2)\n")
    before = list(sys.path)
    assert isinstance(load_with("my_loader_here:load", "x"), nn.Linear) and sys.path == before


def test_compressed_transformers_round_trip(tmp_path):
    config = dataclasses.replace(CONFIG, denoiser="transformer", width=8)
    save_network(build_network(config), config, tmp_path / "t.safetensors", dtype=torch.float32)
    compress_file(tmp_path / "t.safetensors", tmp_path / "out", gamma=50)
    net, _, _ = load_network(tmp_path / "out" / "t-compressed.safetensors")
    assert net(net.physics.A(torch.rand(1, 1, 16, 16))).shape == (1, 1, 16, 16)
