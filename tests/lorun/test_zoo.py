"""The shipped models: their size, their parameters, and what they reach on Set11 and on CAVE feathers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lorun
from lorun.checkpoint import load_network
from lorun.data import (
    CASSI_WAVELENGTHS,
    interpolate_bands,
    read_cube,
    read_mask,
)
from lorun.evaluate import averages, evaluate
from lorun.tasks import TASKS
from lorun.tasks.task import Scene
from lorun.zoo import MODELS, load_methods, model_path, shipped_for

# Shared-9 by the same recipe and for the same number of steps in all, both phases without adapters.
SHARED_AFTER_ALL_STEPS = Path(__file__).parents[1] / "data" / "cs25-unet-shared9-2300-steps.safetensors"
CASSI_SHARED_AFTER_ALL_STEPS = SHARED_AFTER_ALL_STEPS.with_name("cassi-unet-shared9-1200-steps.safetensors")


@pytest.mark.parametrize("task, most", [("cs25", 4_000_000), ("cassi", 8_000_000), ("sr", 4_000_000)])
def test_they_weigh_little(task, most):
    assert 0 < sum(path.stat().st_size for path in MODELS.glob(f"{task}-*.safetensors")) < most


def test_the_names_are_listed_and_created():
    assert lorun.list_models() == [
        "cassi-unet-lorun9",
        "cassi-unet-shared9",
        "cs25-unet-lorun9",
        "cs25-unet-shared9",
        "sr-resunet-lorun9",
        "sr-resunet-shared9",
    ]
    net = lorun.create_model("cs25-unet-lorun9")
    assert (net.variant, net.stages, net.training) == ("lorun", 9, False)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    fresh = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    assert fresh.denoisers[0].last.lora_up.abs().sum() == 0
    cs = TASKS["cs"]
    assert cs.default_model(cs.restore_options(), shipped_for("cs")) == "cs25-unet-lorun9"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="called 'cs1'; expected one of cassi-unet-lorun9"):
        lorun.create_model("cs1")


def test_they_were_never_trained_on_the_test_images():
    for name in lorun.list_models():
        notes = load_network(model_path(name))[2]
        assert notes["data"]
        assert not any(word in path for path in notes["data"] for word in ("set11", "test", "feathers"))


def test_tiles_are_for_networks():
    with pytest.raises(ValueError, match="tile: is for networks, and gap-tv and smooth-start work on whole"):
        load_methods(["gap-tv", "smooth-start"], TASKS["cassi"], tile=200)


def test_set11_at_25_percent(lorun_data):
    task = TASKS["cs"]
    scenes = task.scenes(lorun_data / "test" / "set11", task.eval_options(), None)
    assert len(scenes) == 11
    names = ("cs25-unet-shared9", "cs25-unet-lorun9", str(SHARED_AFTER_ALL_STEPS))
    scores, _ = evaluate(task, scenes, load_methods(names, task)[0], "cs")
    base, adapted, control = (s.psnr for s in averages(scores) if "start" not in s.method)
    assert adapted >= 30.5
    assert adapted > base and adapted > control


def test_the_control_was_trained_for_as_many_steps():
    control = load_network(SHARED_AFTER_ALL_STEPS)[2]["training_steps"]
    assert control == load_network(model_path("cs25-unet-lorun9"))[2]["training_steps"] == 2300


def test_cassi_on_feathers(lorun_data):
    """README's table but for Block-9: 2 dB above GAP-TV are asked of models trained on a CPU."""
    cube = read_cube(lorun_data / "hsi" / "test" / "cave_feathers.npz")
    whole = interpolate_bands(cube.values, cube.wavelengths, np.array(CASSI_WAVELENGTHS))
    mask = read_mask(lorun_data / "cassi" / "mask" / "tsa_sim_mask_256.mat")
    camera = lorun.physics.CASSI(torch.from_numpy(mask))
    scenes = [
        Scene("quadrant", (256, 256), whole[:, top : top + 256, left : left + 256], physics=camera)
        for top in (0, 256)
        for left in (0, 256)
    ]
    task, control = TASKS["cassi"], str(CASSI_SHARED_AFTER_ALL_STEPS)
    methods, _ = load_methods(["cassi-unet-lorun9", "smooth-start", "gap-tv", control], task)
    scores, _ = evaluate(task, scenes, methods, "cassi-mst")
    quality = {score.method: score.psnr for score in averages(scores)}
    assert quality["cassi-unet-lorun9"] > quality["gap-tv"] + 3.5
    assert quality["cassi-unet-lorun9"] > quality["smooth-start"] + 0.5
    assert quality[control] > quality["smooth-start"] + 0.5


def test_the_cassi_control_was_trained_for_as_many_steps():
    control = load_network(CASSI_SHARED_AFTER_ALL_STEPS)[2]["training_steps"]
    assert control == load_network(model_path("cassi-unet-lorun9"))[2]["training_steps"] == 1200
