"""Both phases on snapshots of spectral cubes; what all tasks share is in test_training.py."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from lorun.checkpoint import load_network
from lorun.data import CASSI_WAVELENGTHS, spectral_crops
from lorun.data.locate import find_data
from lorun.data.spectral_crops import list_cubes
from lorun.networks import NetworkConfig, build_network
from lorun.report import MEBI, report
from lorun.tasks.cassi import samples
from lorun.tasks.cassi.samples import SpectralSamples
from lorun.tasks.cassi.settings import CASSITraining, SpectralData
from lorun.training import Phase, TrainConfig, load_recipe, train

NETWORK = NetworkConfig(task="cassi", algorithm="hqs", width=4, stages=2, gamma=50)
CPU = torch.device("cpu")
ONE_STEP = Phase(steps=(1,), stages=(1,), batch=(1,), crop=(8,))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A mask, a photograph, and cubes that may be small because little of them is held out."""
    monkeypatch.setattr(spectral_crops, "HELD_OUT_ROWS", 16)
    monkeypatch.setattr(samples, "VALIDATION_SIZE", (16, 24))
    folder = tmp_path / "data"
    for name in ("cubes", "photos"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("LORUN_DATA", str(folder))
    random = np.random.default_rng(0)
    shades = np.kron(random.random((28, 8, 6)), np.ones((8, 8)))
    np.savez(folder / "cubes" / "a.npz", cube=np.moveaxis(shades, 0, -1), wavelengths=CASSI_WAVELENGTHS)
    for name in ("a.png", "b.png"):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / "photos" / name)
    scipy.io.savemat(folder / "mask.mat", {"mask": random.random((40, 44)).astype(np.float32)})
    return folder


def tiny(**changes) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(
            name="tiny",
            network=NETWORK,
            phase1=Phase(steps=(2, 1), stages=(1, 2), batch=(2, 1), crop=(8, 12), crop_width=(24, 16)),
            phase2=Phase(steps=(2,), stages=(2,), batch=(2,), crop=(8,), crop_width=(16,)),
            data=("cubes",),
            task_settings=CASSITraining(SpectralData(mask="mask.mat", synthetic=("photos",), noise="shot")),
            loss="psnr",
            precision="bfloat16",
            save_every=2,
            device="cpu",
        ),
        **changes,
    )


def with_spectral(**changes) -> TrainConfig:
    spectral = dataclasses.replace(tiny().task_settings.spectral, **changes)
    return tiny(phase1=ONE_STEP, phase2=ONE_STEP, task_settings=CASSITraining(spectral))


def samples_of(**changes) -> SpectralSamples:
    config = with_spectral(**changes)
    return SpectralSamples(config.network, config.data, config.task_settings, config.seed)


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stopped_run_of_both_phases_ends_as_an_unbroken_one(data, tmp_path, train_until):
    final = train(tiny(), tmp_path / "whole")
    whole, config, notes = load_network(final)
    base = load_network(tmp_path / "whole" / "tiny-shared2.safetensors")[0]
    assert final.name == "tiny-lorun2.safetensors" and config == NETWORK and notes["training_steps"] == 5
    for name, p in base.denoiser.named_parameters():
        assert torch.equal(p, dict(whole.denoiser.named_parameters())[name]), name
    assert all(torch.isfinite(p).all() for p in whole.parameters())
    assert all(view.bottom.first.lora_up.abs().sum() > 0 for view in whole.denoisers)
    assert all(entry.get("psnr", 0) >= 0 for entry in entries(tmp_path / "whole" / "phase2.jsonl"))

    for stop_at in (1, 3):  # once in each phase, the second time on top of the first
        train_until(stop_at, tiny(), tmp_path / "stopped")
    resumed = load_network(train(tiny(), tmp_path / "stopped"))[0]
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    "spectral, changes",
    [
        ({"noise": "gaussian", "sigma": 0.1}, {"precision": "float32", "loss": "l1"}),
        ({"noise": "none", "synthetic": ()}, {}),
    ],
)
def test_other_noise_loss_and_precision(data, tmp_path, spectral, changes):
    config = dataclasses.replace(with_spectral(**spectral), **changes)
    net = load_network(train(config, tmp_path / "run"))[0]
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_noise_is_the_samples_own(data):
    kinds = ("none", 0), ("gaussian", 0.3), ("shot", 0), ("shot", 0)
    samples = [samples_of(noise=noise, sigma=sigma).sample(5, 2, (8, 16), CPU) for noise, sigma in kinds]
    clean, gaussian, shot, again = (sample.physics(sample.images) for sample in samples)
    for sample in samples:
        assert torch.equal(sample.images, samples[0].images) and sample.size == (8, 16)
        torch.testing.assert_close(sample.physics.A(sample.images), clean)
    assert clean.shape == (2, 8, 16 + 2 * 27)
    assert torch.equal(shot, again)
    assert (gaussian - clean).std().item() == pytest.approx(0.3, rel=0.1)
    # Photons come in steps of the sensor's range, 28 / 2.4, by 2048.
    photons = shot / (28 / 2.4 / 2048)
    torch.testing.assert_close(photons, photons.round(), rtol=0, atol=1e-2)
    assert 0.01 < (shot - clean).std() < 1


def test_masks_are_windows_of_the_mask(data):
    """Of a mask that is a slope, neighbours tell whether a window was turned over."""
    rows, columns = np.indices((40, 44))
    scipy.io.savemat(data / "mask.mat", {"mask": (64.0 * rows + columns) / 4096})
    cubes = samples_of()
    seen = set()
    for index in range(8):
        masks = cubes.sample(index, 3, (8, 16), CPU).physics.mask
        assert masks.shape == (3, 28, 8, 16) and torch.equal(masks[:, :1].expand_as(masks), masks)
        steps = masks[:, 0].diff(dim=1)[:, 0, 0], masks[:, 0].diff(dim=2)[:, 0, 0]
        seen |= {
            (round(down.item() * 4096), round(right.item() * 4096))
            for down, right in zip(*steps, strict=True)
        }
    assert seen == {(64, 1), (-64, 1), (64, -1), (-64, -1)}


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"network": dataclasses.replace(NETWORK, bands=5)},
            "bands: training interpolates cubes onto 28 bands",
        ),
        (
            {"phase2": dataclasses.replace(ONE_STEP, crop=(36,), crop_width=(48,))},
            "crop: the mask has 40x44 pixels, training takes 36x48 of them; use smaller crops",
        ),
        (
            {"task_settings": CASSITraining(SpectralData(mask="large.mat"))},
            "crop: no training cube holds 50x8 pixels; use smaller",
        ),
        (
            {"task_settings": CASSITraining(SpectralData(mask="small.mat"))},
            "mask: the mask has 8x8 pixels, training takes 16x24",
        ),
        (
            {"task_settings": CASSITraining(SpectralData(mask="none.mat"))},
            "LORUN_DATA .*, or change the setting spectral.mask",
        ),
        (
            {"task_settings": CASSITraining(SpectralData(mask="mask.mat", synthetic=("none",)))},
            "LORUN_DATA .*, or change the setting spectral.synthetic",
        ),
        ({"data": ("low.npz",)}, "data: no cube holds out 16x24 pixels from training"),
        ({"data": ("none",)}, "LORUN_DATA .*, or change the setting data"),
        ({"data": ("lego.npz",)}, "lego.npz: states no wavelengths and has 24 bands, not 28"),
        ({"data": ()}, "data: name at least one folder"),
        ({"phase2": dataclasses.replace(ONE_STEP, stages=(3,))}, "runs 3 of them, the network has 2"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(data, tmp_path, changes, words):
    scipy.io.savemat(data / "large.mat", {"mask": np.ones((64, 64))})
    scipy.io.savemat(data / "small.mat", {"mask": np.ones((8, 8))})
    np.savez(data / "low.npz", cube=np.zeros((40, 40, 28), np.float32))
    np.savez(data / "lego.npz", cube=np.zeros((64, 48, 24), np.float32))
    high = dataclasses.replace(ONE_STEP, crop=(50,), crop_width=(8,))
    changes = {"phase1": high if "large" in str(changes) else ONE_STEP, "phase2": ONE_STEP} | changes
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_the_papers_network():
    config = load_recipe("cassi-unet")
    network = config.network
    assert (network.task, network.algorithm, network.variant, network.stages) == ("cassi", "hqs", "lorun", 9)
    assert (network.bands, network.step, network.denoiser) == (28, 2, "unet")
    counted = report(build_network(network), (8, 8))
    assert counted.block_base / MEBI == pytest.approx(4.80, rel=0.02)  # Table IV: Block-9
    assert counted.denoisers / MEBI == pytest.approx(1.43, rel=0.02)  # and LoRun-9
    assert counted.phi == 0
    assert not any("feathers" in name or "test" in name for name in config.data)


def test_the_shipped_recipe_never_trains_on_the_test_cube(lorun_data):
    names = [path.stem for path in list_cubes(find_data(load_recipe("cassi-unet").data))]
    assert len(names) > 20 and not any("feathers" in name for name in names)
