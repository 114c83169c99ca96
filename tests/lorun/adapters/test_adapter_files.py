"""save_adapters and load_adapters."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

import lorun
from lorun.adapters.adapter_files import base_hash
from tests.lorun.adapters.architectures import ARCHITECTURES
from tests.lorun.adapters.shared_networks import (
    IMAGE,
    made,
    result,
    shared,
    small_network,
    train_adapters,
)

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
FILES = ("adapter_config.json", "adapter_model.safetensors", "base.safetensors")


def network(seed=1, **options):
    return train_adapters(lorun.share_stages(small_network(), "stages", **options), 0.3, seed)


@EVERY
def test_a_network_as_its_code_builds_it_becomes_the_saved_one(name, tmp_path):
    saved = lorun.compress(made(name), ARCHITECTURES[name].stages, gamma=30)
    lorun.save_adapters(saved, tmp_path, base=True, task="tests")
    fresh = lorun.load_adapters(made(name), tmp_path)
    assert torch.equal(result(fresh, name), result(saved, name))
    assert lorun.report(fresh).factor == lorun.report(saved).factor
    written = sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    state = {id(t): t.numel() * t.element_size() for t in [*saved.parameters(), *saved.buffers()]}
    headers = 2 * len((tmp_path / FILES[0]).read_text()) + 200 * len(saved.state_dict())
    assert sum(state.values()) <= written <= sum(state.values()) + headers


@EVERY
def test_adapters_load_beside_their_base(name, tmp_path):
    saved = train_adapters(shared(name), 0.02)
    lorun.save_adapters(saved, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES[:2])
    target = shared(name)
    lorun.load_adapters(target, tmp_path, "trained", activate=False)
    lorun.set_adapters(target, "trained")
    assert torch.equal(result(target, name), result(saved, name))


def test_the_config_says_what_the_adapters_are(tmp_path):
    model = network(rank=2, form="factored", alpha=4)
    lorun.save_adapters(model, tmp_path, task="inpainting")
    config = json.loads((tmp_path / FILES[0]).read_text())
    assert config["task"] == "inpainting" and config["lorun_version"] == lorun.__version__
    assert config["base_sha256"] == base_hash(model) and len(config["base_sha256"]) == 64
    own = config["adapters"]["stages.1.second.weight"]
    assert own == {"form": "factored", "rank": 2, "scaling": 2.0, "groups": 1, "shape": [4, 8, 3, 3]}
    assert "stages.2.step" in config["own"]
    tensors = load_file(tmp_path / FILES[1])
    assert tensors["stages.1.second.lora_up"].shape == (4, 2)


def test_half_precision_files_hold_a_base_of_their_own(tmp_path):
    model = network()
    lorun.save_adapters(model, tmp_path, base=True, dtype=torch.float16)
    loaded = lorun.load_adapters(small_network(seed=4), tmp_path)
    assert load_file(tmp_path / FILES[2])["stages.0.first.weight"].dtype == torch.float16
    torch.testing.assert_close(loaded(IMAGE), model(IMAGE), atol=1e-2, rtol=1e-2)
    assert torch.equal(loaded.stages[0].first.base_weight, model.stages[0].first.base_weight.half().float())


def test_an_unfolding_network_saves_and_loads_its_adapters(tmp_path):
    net = train_adapters(lorun.create_model("cs25-unet-lorun9"))
    lorun.save_adapters(torch.compile(net, backend="eager"), tmp_path)
    other = lorun.create_model("cs25-unet-lorun9")
    lorun.load_adapters(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def refuse(model, folder, words, error=ValueError):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        lorun.load_adapters(model, folder)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapters_for_another_base_are_refused(tmp_path):
    lorun.save_adapters(network(), tmp_path)
    other = lorun.share_stages(small_network(seed=8), "stages")
    refuse(other, tmp_path, "belong to another base than that of this network")
    refuse(small_network(seed=8), tmp_path, "belong to another base")
    plain = lorun.load_adapters(small_network(), tmp_path)
    torch.testing.assert_close(plain(IMAGE), network()(IMAGE))


def test_adapters_of_another_network_are_refused(tmp_path):
    lorun.save_adapters(network(), tmp_path, base=True)
    refuse(made("pgd"), tmp_path, "record: is of another network|stages are not|stages:")
    refuse(shared("pgd"), tmp_path, "is the base of another network")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_damaged_files_are_refused(tmp_path, file, damage):
    lorun.save_adapters(network(), tmp_path, base=True)
    path = tmp_path / file
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    {
        "cut": lambda: path.write_bytes(path.read_bytes()[:-30]),
        "flip": lambda: path.write_bytes(bytes(content)),
        "empty": lambda: path.write_bytes(b""),
        "missing": path.unlink,
    }[damage]()
    refuse(small_network(seed=8), tmp_path, str(tmp_path), (ValueError, FileNotFoundError))


def test_files_of_two_saves_do_not_go_together(tmp_path):
    lorun.save_adapters(network(rank=1), tmp_path / "a")
    lorun.save_adapters(network(rank=2), tmp_path / "b")
    shutil.copy(tmp_path / "b" / FILES[0], tmp_path / "a" / FILES[0])
    refuse(network(), tmp_path / "a", "are not of one save")
    config = json.loads((tmp_path / "b" / FILES[0]).read_text())
    (tmp_path / "b" / FILES[0]).write_text(json.dumps(config | {"format": "lorun-adapters-9"}))
    refuse(network(), tmp_path / "b", "format 'lorun-adapters-9', this version reads")


@pytest.mark.parametrize("file", FILES)
def test_links_that_lead_out_of_the_directory_are_refused(tmp_path, file):
    lorun.save_adapters(network(), tmp_path / "a", base=True)
    (tmp_path / "a" / file).rename(tmp_path / file)
    os.symlink(tmp_path / file, tmp_path / "a" / file)
    refuse(small_network(seed=8), tmp_path / "a", f"{file}: expected a file inside")
    with pytest.raises(ValueError, match="expected a file inside"):
        lorun.save_adapters(network(), tmp_path / "a", base=True)


def test_nan_is_neither_written_nor_merged_files_are(tmp_path):
    model = network()
    with torch.no_grad():
        model.stages[1].step.fill_(torch.nan)
    with pytest.raises(ValueError, match="stages.1.step: holds NaN or Inf"):
        lorun.save_adapters(model, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="merged"):
        lorun.save_adapters(lorun.merge(network()), tmp_path)
    with pytest.raises(ValueError, match="has no adapters"):
        lorun.save_adapters(small_network(), tmp_path)
