"""A run that takes a second: photographs, and its settings."""

import dataclasses
import json

import pytest
from PIL import Image
from skimage.data import camera

from lorun.networks import NetworkConfig
from lorun.training import Phase, TrainConfig


@pytest.fixture
def photos(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    for index in range(4):
        Image.fromarray(camera()[index * 100 : index * 100 + 128, 100:300]).save(folder / f"{index}.png")
    monkeypatch.setenv("LORUN_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def tiny():
    """tiny(**changes): the settings of a run on `photos`."""

    def settings(**changes) -> TrainConfig:
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

    return settings


@pytest.fixture
def logged():
    """logged(path, key): what a log says, step by step."""

    def read(path, key="loss"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [entry[key] for entry in entries if key in entry]

    return read
