"""The shipped models: their size, their parameters, and what they reach on Set11."""

from pathlib import Path

import pytest
import torch

import lorun
from lorun.checkpoint import load_network
from lorun.data import list_photos, read_grey
from lorun.evaluate import averages, evaluate
from lorun.zoo import MODELS, load_model, model_for_ratio, model_path

# Shared-9 by the same recipe and for the same number of steps in all, both phases without adapters.
SHARED_AFTER_ALL_STEPS = Path(__file__).parents[1] / "data" / "cs25-unet-shared9-2300-steps.safetensors"


def test_they_weigh_under_4_mb_in_all():
    assert sum(path.stat().st_size for path in MODELS.glob("*.safetensors")) < 4_000_000


def test_the_names_are_listed_and_created():
    assert lorun.list_models() == ["cs25-unet-lorun9", "cs25-unet-shared9"]
    net = lorun.create_model("cs25-unet-lorun9")
    assert (net.variant, net.stages, net.training) == ("lorun", 9, False)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    fresh = lorun.create_model("cs25-unet-lorun9", pretrained=False)
    assert fresh.denoisers[0].last.lora_up.abs().sum() == 0
    assert model_for_ratio(0.25) == "cs25-unet-lorun9"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="called 'cs1'; expected one of cs25-unet-lorun9"):
        lorun.create_model("cs1")


def test_they_were_never_trained_on_the_test_images():
    for name in lorun.list_models():
        notes = load_network(model_path(name))[2]
        assert notes["data"] and not any("set11" in folder or "test" in folder for folder in notes["data"])


def test_set11_at_25_percent(lorun_data):
    images = {path.stem: read_grey(path) for path in list_photos(lorun_data / "test" / "set11")}
    assert len(images) == 11
    names = ("cs25-unet-shared9", "cs25-unet-lorun9", str(SHARED_AFTER_ALL_STEPS))
    scores = evaluate(images, {name: lorun.Restorer(load_model(name)[0]) for name in names})
    base, adapted, control = (s.psnr for s in averages(scores) if "start" not in s.method)
    assert adapted >= 30.5
    assert adapted > base and adapted > control


def test_the_control_was_trained_for_as_many_steps():
    control = load_network(SHARED_AFTER_ALL_STEPS)[2]["training_steps"]
    assert control == load_network(model_path("cs25-unet-lorun9"))[2]["training_steps"] == 2300
