import dataclasses

import pytest
import torch
from PIL import Image

from lorun.checkpoint import load_network
from lorun.networks import NetworkConfig
from lorun.tasks.cs.settings import CSTraining
from lorun.training import Phase, train


def test_both_phases_run_and_only_phase_1_changes_the_base(photos, tiny, logged, tmp_path):
    final = train(tiny(), tmp_path / "run")
    assert final == tmp_path / "run" / "tiny-lorun3.safetensors"
    base, base_config, notes = load_network(tmp_path / "run" / "tiny-shared3.safetensors")
    net, config, final_notes = load_network(final)
    assert (base_config.variant, config.variant) == ("shared", "lorun")
    assert (notes["training_steps"], final_notes["training_steps"]) == (8, 14)
    for name, p in base.denoiser.named_parameters():
        assert torch.equal(p, dict(net.denoiser.named_parameters())[name]), name
    moved = [view.bottom.first.lora_up.abs().sum() > 0 for view in net.denoisers]
    assert all(moved)
    assert not torch.equal(base.physics.phi, net.physics.phi)
    assert len(logged(tmp_path / "run" / "phase1.jsonl")) == 8
    assert Image.open(tmp_path / "run" / "curves.png").size[0] > 400


def test_both_phases_raise_the_psnr_of_held_out_photographs(photos, tiny, logged, tmp_path):
    longer = Phase(steps=(60,), stages=(2,), batch=(4,), crop=(32,), lr=5e-3)
    config = tiny(
        task_settings=CSTraining("random"),
        phase1=longer,
        phase2=dataclasses.replace(longer, stages=(3,)),
    )
    train(config, tmp_path / "run")
    first, second = (logged(tmp_path / "run" / f"{phase}.jsonl", "psnr") for phase in ("phase1", "phase2"))
    assert first[-1] > first[0] + 1
    assert second[-1] > first[-1] + 1


@pytest.mark.parametrize("variant", ["shared", "block"])
def test_the_baselines_train_for_as_many_steps(photos, tiny, tmp_path, variant):
    config = tiny()
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, variant=variant))
    net, saved, notes = load_network(train(config, tmp_path / "run"))
    assert saved.variant == variant and notes["training_steps"] == 14
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_phi_may_train_through_an_adapter(photos, tiny, tmp_path):
    config = tiny()
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, phi_rank=2))
    net, _, _ = load_network(train(config, tmp_path / "run"))
    base, _, _ = load_network(tmp_path / "run" / "tiny-shared3.safetensors")
    assert torch.equal(net.physics.phi, base.physics.phi)
    assert net.physics.phi_up.abs().sum() > 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"network": NetworkConfig(ratio=0.1, block=8, width=4, stages=2, gamma=50)}, "the network has 2"),
        ({"network": NetworkConfig(ratio=0.1, block=8, width=4, stages=3, gamma=101)}, "gamma"),
        ({"phase2": Phase(steps=(1,), stages=(3,), batch=(1,), crop=(999,))}, "use smaller crops"),
    ],
)
def test_what_phase_2_would_refuse_is_refused_at_once(photos, tiny, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_fails_claims_nothing(photos, tiny, tmp_path):
    with pytest.raises(ValueError, match="device"):
        train(tiny(device="warp"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(tiny(), tmp_path / "run").is_file()


def test_missing_data_is_named(photos, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set LORUN_DATA") as caught:
        train(tiny(), tmp_path / "run")
    assert caught.value.argument == "data"
