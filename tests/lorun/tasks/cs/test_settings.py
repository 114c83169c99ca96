import pytest

from lorun.networks import NetworkConfig
from lorun.tasks.cassi.settings import CASSITraining, SpectralData
from lorun.tasks.cs.settings import CSNetwork, CSTraining
from lorun.training import TrainConfig


def test_compressive_sensing_reads_no_spectral_data():
    with pytest.raises(ValueError, match="task_settings: task cs takes CSTraining, got CASSITraining"):
        TrainConfig(task_settings=CASSITraining(SpectralData(noise="shot")))
    with pytest.raises(ValueError, match="bands: no setting of task cs"):
        NetworkConfig("cs", bands=31)


def test_bad_settings_say_what_was_expected():
    with pytest.raises(ValueError, match="ratio: expected a fraction"):
        CSNetwork(ratio=25)
    with pytest.raises(ValueError, match="block: expected at least 1"):
        CSNetwork(block=0)
    with pytest.raises(ValueError, match='phi_start: expected "principal" or "random"'):
        CSTraining("best")
