import dataclasses
import json

import pytest
import torch
from PIL import Image
from skimage.data import camera

from lorun.checkpoint import load_network
from lorun.data import PhotoCrops
from lorun.networks import NetworkConfig
from lorun.tasks.cs.settings import CSTraining
from lorun.training import Phase, TrainConfig, load_recipe, train
from lorun.training.schedule import learning_rate


@pytest.fixture
def photos(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    for index in range(4):
        Image.fromarray(camera()[index * 100 : index * 100 + 128, 100:300]).save(folder / f"{index}.png")
    monkeypatch.setenv("LORUN_DATA", str(tmp_path / "data"))
    return folder


def tiny(**changes) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(
            name="tiny",
            network=NetworkConfig(ratio=0.1, block=8, width=4, stages=3, gamma=50),
            phase1=Phase(steps=(4, 4), stages=(2, 3), batch=(4, 2), crop=(16, 32), lr=2e-3),
            phase2=Phase(steps=(6,), stages=(3,), batch=(2,), crop=(32,), lr=2e-3),
            data=("photos",),
            save_every=2,
            device="cpu",
        ),
        **changes,
    )


def curve(path):
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def watched_psnr(path):
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry["psnr"] for entry in entries if "psnr" in entry]


def test_both_phases_run_and_only_phase_1_changes_the_base(photos, tmp_path):
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
    assert len(curve(tmp_path / "run" / "phase1.jsonl")) == 8
    assert Image.open(tmp_path / "run" / "curves.png").size[0] > 400


def test_both_phases_raise_the_psnr_of_held_out_photographs(photos, tmp_path):
    longer = Phase(steps=(60,), stages=(2,), batch=(4,), crop=(32,), lr=5e-3)
    config = tiny(
        task_settings=CSTraining("random"),
        phase1=longer,
        phase2=dataclasses.replace(longer, stages=(3,)),
    )
    train(config, tmp_path / "run")
    first, second = (watched_psnr(tmp_path / "run" / f"{phase}.jsonl") for phase in ("phase1", "phase2"))
    assert first[-1] > first[0] + 1
    assert second[-1] > first[-1] + 1


@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_stopped_run_ends_as_an_unbroken_one(photos, tmp_path, train_until, stop_at):
    whole = load_network(train(tiny(), tmp_path / "whole"))[0]
    train_until(stop_at, tiny(), tmp_path / "stopped")
    resumed = load_network(train(tiny(), tmp_path / "stopped"))[0]
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name
    for phase in ("phase1.jsonl", "phase2.jsonl"):
        assert curve(tmp_path / "whole" / phase) == curve(tmp_path / "stopped" / phase)


@pytest.mark.parametrize("variant", ["shared", "block"])
def test_the_baselines_train_for_as_many_steps(photos, tmp_path, variant):
    config = tiny()
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, variant=variant))
    net, saved, notes = load_network(train(config, tmp_path / "run"))
    assert saved.variant == variant and notes["training_steps"] == 14
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_phi_may_train_through_an_adapter(photos, tmp_path):
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
def test_what_phase_2_would_refuse_is_refused_at_once(photos, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(photos, tmp_path):
    train(tiny(), tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train(tiny(seed=1), tmp_path / "run")


def test_a_line_cut_by_a_kill_does_not_stop_a_run(photos, tmp_path):
    out = tmp_path / "run"
    whole = load_network(train(tiny(), out))[0]
    (out / "phase2.state").unlink()
    log = out / "phase2.jsonl"
    log.write_text(log.read_text() + '{"step": 7, "lo')
    again = load_network(train(tiny(), out))[0]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert len(curve(log)) == 6


def test_a_damaged_state_says_how_to_go_on(photos, tmp_path):
    train(tiny(), tmp_path / "run")
    state = tmp_path / "run" / "phase2.state"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(ValueError, match="phase2.state: damaged; remove it to start this phase anew"):
        train(tiny(), tmp_path / "run")


def test_a_start_that_fails_claims_nothing(photos, tmp_path):
    with pytest.raises(ValueError, match="device"):
        train(tiny(device="warp"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(tiny(), tmp_path / "run").is_file()


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_loadable(photos, tmp_path, monkeypatch):
    real_batch = PhotoCrops.batch

    def poisoned(self, index, count, side):
        batch = real_batch(self, index, count, side)
        return batch * float("nan") if index == 3 else batch

    monkeypatch.setattr(PhotoCrops, "batch", poisoned)
    with pytest.raises(FloatingPointError, match="last checkpoint"):
        train(tiny(), tmp_path / "run")
    monkeypatch.setattr(PhotoCrops, "batch", real_batch)
    assert train(tiny(), tmp_path / "run").is_file()


def test_the_learning_rate_warms_up_and_falls():
    phase = Phase(steps=(60, 40), stages=(3, 9), batch=(8, 8), crop=(32, 32), lr=1.0)
    rates = [learning_rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rates[-1] == pytest.approx(0.01, abs=0.001)
    assert [phase.segment(step) for step in (0, 59, 60, 99)] == [0, 0, 1, 1]


def test_the_shipped_recipe_is_the_papers_network():
    config = load_recipe("cs25-unet")
    assert (config.network.ratio, config.network.stages, config.network.gamma) == (0.25, 9, 10)
    assert not any("set11" in folder for folder in config.data)


@pytest.mark.parametrize(
    "text, words",
    [
        ("seeds = 1", "unknown setting 'seeds'"),
        ("[phase1]\nsteps = [1, 2]", "as many steps as stages"),
        ("[phase1]\nsteps = [0]", "every entry of steps must be at least 1"),
        ("[phase1]\nlr = -1.0", "lr must be above 0"),
        ("[network]\ngamma = -3", "gamma: expected"),
        ("[network]\ntask = 'mri'", "task: expected"),
        ("seed = [", "bad.toml"),
        ("network = 5", "network: expected a table"),
        ("data = 'photos'", "data: expected a list of str"),
        ("phi_start = 'principle'", "phi_start: expected"),
        ("[phase1]\nsteps = [1.5]", "steps: expected a list of int"),
        ("seed = 'one'", "seed: expected int"),
    ],
)
def test_bad_recipes_say_what_was_expected(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_recipe(path)


def test_missing_data_and_recipes_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set LORUN_DATA"):
        train(tiny(), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="one of .*cs25-unet"):
        load_recipe("cs99")
