import dataclasses
import json

import pytest

from lorun.networks import NetworkConfig
from lorun.training import TrainConfig, load_recipe
from lorun.training.recipe import config_from_dict, config_to_dict


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


def test_recipes_that_do_not_exist_list_those_that_ship():
    with pytest.raises(FileNotFoundError, match="one of .*cs25-unet"):
        load_recipe("cs99")


@pytest.mark.parametrize("name", ["cs25-unet", "cassi-unet", "cassi-real-unet"])
def test_a_config_goes_into_a_file_and_back(name):
    config = load_recipe(name)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_files_that_list_the_settings_of_all_tasks_are_read():
    """Model files and run folders from before every task had settings of its own."""
    spectral = {"mask": "cassi/mask/tsa_sim_mask_256.mat", "synthetic": [], "synthetic_share": 0.3}
    stored = config_to_dict(TrainConfig()) | {"spectral": spectral | {"noise": "none", "sigma": 0.0}}
    stored["network"] |= {"bands": 28, "step": 2}
    assert config_from_dict(json.loads(json.dumps(stored))) == TrainConfig()
    stored["network"]["bands"] = 31
    with pytest.raises(ValueError, match="bands"):
        config_from_dict(json.loads(json.dumps(stored)))


def test_a_partial_table_of_another_tasks_defaults_is_left_out():
    assert config_from_dict({"spectral": {"noise": "none"}}) == TrainConfig()
    with pytest.raises(ValueError, match="unknown setting 'spectral'"):
        config_from_dict({"spectral": {"noise": "shot"}})
    with pytest.raises(ValueError, match="settings: expected a table"):
        config_from_dict([1])


def test_settings_of_the_task_have_defaults():
    assert type(TrainConfig(network=NetworkConfig("cassi")).task_settings).__name__ == "CASSITraining"


def test_a_config_holds_the_settings_of_its_task():
    with pytest.raises(ValueError, match="task_settings: task cassi takes CASSITraining, got CSTraining"):
        dataclasses.replace(TrainConfig(), network=NetworkConfig("cassi"))
