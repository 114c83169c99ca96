import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorun.checkpoint import CheckpointError, load_network, read_tensors, save_network, write_tensors
from lorun.networks import NetworkConfig, build_network
from lorun.unfolding import UnfoldingNetwork

CONFIG = NetworkConfig(ratio=0.25, block=8, width=4, stages=2, gamma=50)


def random_network(variant="lorun", **changes):
    config = dataclasses.replace(CONFIG, variant=variant, **changes)
    net = build_network(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net, config


@pytest.mark.parametrize("variant", ["shared", "block", "lorun"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_network_survives_the_file(tmp_path, variant, dtype):
    net, config = random_network(variant, phi_rank=3)
    save_network(net, config, tmp_path / "net.safetensors", dtype=dtype, notes={"steps": 7})
    loaded, loaded_config, notes = load_network(tmp_path / "net.safetensors")
    assert loaded_config == config and notes == {"steps": 7}
    for name, p in loaded.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, dict(net.named_parameters())[name].to(dtype).float()), name
    y = torch.rand(1, 16, 2, 2)
    if dtype == torch.float32:
        assert torch.equal(loaded(y), net.eval()(y))


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), torch.nn.DataParallel])
def test_a_wrapped_network_is_saved_as_itself(tmp_path, wrap):
    net, config = random_network()
    save_network(wrap(net), config, tmp_path / "net.safetensors", dtype=torch.float32)
    loaded, _, _ = load_network(tmp_path / "net.safetensors")
    y = torch.rand(1, 16, 2, 2)
    assert torch.equal(loaded(y), net.eval()(y))


def test_shared_weights_are_stored_once(tmp_path):
    net, config = random_network("lorun")
    save_network(net, config, tmp_path / "net.safetensors")
    tensors, _ = read_tensors(tmp_path / "net.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in net.parameters())


def lorun_beside_its_base(folder):
    shared, shared_config = random_network("shared")
    for p in shared.parameters():
        p.data.copy_(p.data.half())
    save_network(shared, shared_config, folder / "base.safetensors")
    net = UnfoldingNetwork.from_shared(shared, gamma=50)
    for stage in net.denoisers:
        torch.nn.init.normal_(stage.bottom.first.lora_up)
    config = dataclasses.replace(CONFIG, variant="lorun")
    save_network(net, config, folder / "net.safetensors", base=folder / "base.safetensors")
    return net


def test_adapters_are_stored_without_their_base(tmp_path):
    net = lorun_beside_its_base(tmp_path)
    tensors, _ = read_tensors(tmp_path / "net.safetensors")
    assert all("lora_" in name for name in tensors)
    loaded, _, _ = load_network(tmp_path / "net.safetensors")
    for name, p in loaded.named_parameters():
        assert torch.equal(p, dict(net.named_parameters())[name].half().float()), name


def test_a_missing_or_other_base_is_refused(tmp_path):
    lorun_beside_its_base(tmp_path)
    other, config = random_network("shared")
    save_network(other, config, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="trained on another base.safetensors"):
        load_network(tmp_path / "net.safetensors")
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must lie beside it"):
        load_network(tmp_path / "net.safetensors")


def test_every_truncation_is_refused(tmp_path):
    net, config = random_network()
    save_network(net, config, tmp_path / "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut.safetensors: damaged"):
            load_network(cut)


def test_every_flipped_bit_is_refused(tmp_path):
    net, config = random_network("shared")
    save_network(net, config, tmp_path / "net.safetensors")
    whole = bytearray((tmp_path / "net.safetensors").read_bytes())
    flipped = tmp_path / "flipped.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    # Spaces that pad the header carry nothing: a flip there is the one that changes no content.
    content = len(bytes(whole[:header]).rstrip(b" "))
    positions = [*random.integers(0, content, 150), *random.integers(header, len(whole), 50)]
    for position in positions:
        bit = 1 << int(random.integers(8))
        whole[position] ^= bit
        flipped.write_bytes(whole)
        with pytest.raises(CheckpointError):
            load_network(flipped)
        whole[position] ^= bit


def test_other_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a LoRun model"):
        load_network(tmp_path / "foreign.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(tmp_path / "pickle.pt")
    with pytest.raises(FileNotFoundError, match="no such model file"):
        load_network(tmp_path / "none.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    net, config = random_network()
    path = tmp_path / "net.safetensors"
    save_network(net, config, path)
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_network(net, config, path, notes={"newer": True})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("changes", [{"gamma": 150.0, "variant": "lorun"}, {"stages": 2.5}, {"block": 32.5}])
def test_a_config_that_builds_no_network_is_named_with_its_file(tmp_path, changes):
    config = {"task": "cs", "ratio": 0.1, "block": 8, "width": 4, "stages": 1, "variant": "shared"} | changes
    path = tmp_path / "bad.safetensors"
    write_tensors({}, {"config": config, "notes": {}}, path)
    with pytest.raises(CheckpointError, match="bad.safetensors: .*config is not one this version knows"):
        load_network(path)
