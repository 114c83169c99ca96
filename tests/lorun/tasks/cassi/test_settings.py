import pytest

from lorun.networks import NetworkConfig
from lorun.tasks.cassi.settings import CASSINetwork, SpectralData


def test_the_defaults_are_the_literatures_camera():
    assert (CASSINetwork().bands, CASSINetwork().step) == (28, 2)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"noise": "salt"}, 'noise: expected "none", "gaussian" or "shot", got'),
        ({"sigma": -1.0}, "sigma: expected at least 0, got -1"),
        ({"sigma": float("nan")}, "sigma: expected at least 0, got nan"),
    ],
)
def test_bad_spectral_settings_say_what_was_expected(settings, words):
    with pytest.raises(ValueError, match=words):
        SpectralData(**settings)


@pytest.mark.parametrize("noise, sigma", [("gaussian", 0.0), ("none", 0.1), ("shot", 0.1)])
def test_sigma_goes_with_gaussian_noise(noise, sigma):
    with pytest.raises(ValueError, match='sigma: goes with noise "gaussian"'):
        SpectralData(noise=noise, sigma=sigma)


@pytest.mark.parametrize("name, value", [("phi_rank", 5), ("ratio", 0.5), ("block", 16)])
def test_cassi_has_no_phi_to_set(name, value):
    with pytest.raises(ValueError, match=f"{name}: no setting of task cassi; expected one of task, .*bands"):
        NetworkConfig(task="cassi", **{name: value})
