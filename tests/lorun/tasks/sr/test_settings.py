import pytest

from lorun.tasks.sr.settings import Degradation, SRNetwork, SRTraining
from lorun.training import load_recipe


def test_defaults_are_the_papers_network():
    network = SRNetwork()
    assert (network.denoiser, network.width, network.stages, network.algorithm) == ("resunet", 16, 9, "hqs")
    assert network.label == "LoRun-9" and SRTraining().degradation.scales == (2, 3, 4)


@pytest.mark.parametrize(
    "kind, values, words",
    [
        (SRNetwork, {"channels": 4}, "channels: expected 3, for colour, or 1, for grey, got 4"),
        (SRNetwork, {"denoiser": "transformer"}, 'denoiser: expected "resunet" or "unet"'),
        (Degradation, {"scales": ()}, "degradation.scales: expected at least one"),
        (Degradation, {"scales": (2, 0)}, "scale: expected a whole number of at least 1"),
        (Degradation, {"kernel_side": 24}, "degradation.kernel_side: expected an odd number above 1, got 24"),
        (Degradation, {"widths": (2.0, 1.0)}, "degradation.widths: expected the least and the largest"),
        (Degradation, {"motion": 0.9, "bicubic": 0.2}, "add up to 1 at most, got 0.9 and 0.2"),
        (Degradation, {"motion": float("nan")}, "add up to 1 at most, got nan"),
        (Degradation, {"noise": -0.1}, "degradation.noise: expected at least 0, got -0.1"),
        (Degradation, {"noise_free": 1.5}, "degradation.noise_free: expected a share of 0 to 1, got 1.5"),
    ],
)
def test_values_out_of_their_range(kind, values, words):
    with pytest.raises(ValueError, match=words):
        kind(**values)


def test_whole_numbers_are_widths_too(tmp_path):
    recipe = tmp_path / "my.toml"
    recipe.write_text('data = ["photos"]\n[network]\ntask = "sr"\n[degradation]\nwidths = [1, 3]\n')
    assert load_recipe(recipe).task_settings.degradation.widths == (1, 3)


def test_the_recipe_of_the_shipped_models_never_sees_what_it_is_tested_on():
    config = load_recipe("sr-resunet")
    assert config.network == SRNetwork() and config.task_settings.degradation.scales == (2, 3, 4)
    assert not any("set5" in name or "bsd" in name or "test" in name for name in config.data)
