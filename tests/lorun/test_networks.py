import pytest

from lorun.networks import NetworkConfig, build_network, network_config, read_network_config
from lorun.physics import CASSI, BlockCS
from lorun.tasks import DEFAULT_TASK, TASKS


def test_a_config_has_the_settings_of_its_task():
    assert network_config() == TASKS[DEFAULT_TASK].network()
    config = network_config("cassi", bands=31, stages=2, width=4)
    assert (config.task, config.bands, config.label) == ("cassi", 31, "LoRun-2")
    assert NetworkConfig is network_config  # the name that found its way into scripts


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"task": "mri"}, "task: expected one of cs, cassi, sr, got 'mri'"),
        ({"task": "cs", "bands": 31}, "bands: no setting of task cs; expected one of task, .*ratio"),
        ({"task": "cassi", "ratio": 0.25}, "ratio: no setting of task cassi"),
        ({"denoiser": "mlp"}, 'denoiser: expected "unet" or "transformer", got \'mlp\''),
        ({"variant": "both"}, 'variant: expected "shared" or "block" or "lorun"'),
        ({"stages": 0}, "stages: expected at least 1, got 0"),
        ({"gamma": float("inf")}, "gamma: expected a percentage above 0"),
        ({"task": "cassi", "bands": 0}, "bands: expected at least 1"),
        ({"task": "cassi", "step": -1}, "step: expected an int of at least 0"),
        ({"phi_rank": 257}, "phi_rank: expected 0 to 256, the rows of Phi, got 257"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        network_config(**arguments)


def test_files_that_list_the_settings_of_all_tasks_are_read():
    config = read_network_config({"task": "cs", "bands": 28, "step": 2, "ratio": 0.25, "block": 32})
    assert config == network_config("cs")
    with pytest.raises(ValueError, match="bands: no setting of task cs"):
        read_network_config({"task": "cs", "bands": 31})
    with pytest.raises(ValueError, match="task: expected one of"):
        read_network_config({"task": "mri"})


def test_networks_are_built_by_their_task():
    net = build_network(network_config(ratio=0.1, block=8, width=4, stages=2, phi_rank=2))
    assert isinstance(net.physics, BlockCS) and net.physics.adapter_rank == 2
    assert (
        build_network(network_config(ratio=0.1, block=8, phi_rank=2, variant="shared")).physics.adapter_rank
        == 0
    )
    for algorithm, start in (("pgd", 2 / 8), ("hqs", 0.5)):
        net = build_network(network_config("cassi", bands=8, width=4, stages=2, algorithm=algorithm))
        assert isinstance(net.physics, CASSI) and net.denoiser.takes_correction
        assert net.step_size.tolist() == pytest.approx([start] * 2)
