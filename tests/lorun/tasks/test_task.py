"""The seam: a further task, written here as one module, works in every shared room once it is in TASKS."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import camera
from torch import Tensor, nn

from lorun import metrics
from lorun.cli import main
from lorun.data import PhotoCrops, list_photos, read_grey
from lorun.data.locate import find_training_data
from lorun.denoisers import UNet
from lorun.physics import Physics
from lorun.tasks import TASKS
from lorun.tasks.task import (
    EvalOptions,
    NetworkSettings,
    Quality,
    RestoreOptions,
    Sample,
    Scene,
    Task,
    TrainingSettings,
)
from lorun.training import Phase, TrainConfig, train


class PixelMask(Physics):
    """y = mask * x: the pixels that were seen."""

    channels = 1

    def __init__(self, mask: Tensor | None = None):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    @property
    def size(self):
        return None if self.mask is None else tuple(self.mask.shape[-2:])

    def for_size(self, size):
        return PixelMask(torch.ones(size))

    def A(self, x):
        return self.mask * x

    def A_adjoint(self, y):
        return self.mask * y

    def start(self, y):
        return self.A_adjoint(y)

    def pgd_step(self, x, y, rho):
        return x - rho * self.A_adjoint(self.A(x) - y)

    def hqs_step(self, w, y, mu):
        return (self.A_adjoint(y) + mu * w) / (self.mask**2 + mu)

    def check_measurement(self, y):
        if tuple(y.shape[-2:]) != self.size:
            raise ValueError(f"y: expected {self.size} pixels, got {tuple(y.shape)}; give this mask's image")


@dataclass(frozen=True)
class InpaintingNetwork(NetworkSettings):
    task: Literal["inpainting"] = "inpainting"


@dataclass(frozen=True)
class InpaintingRestore(RestoreOptions):
    seen: float = 0.5
    """Share of the pixels that are seen."""


@dataclass(frozen=True)
class InpaintingEval(EvalOptions):
    protocol: Literal["cs"] = "cs"
    seen: float = 0.5


@dataclass(frozen=True)
class InpaintingTraining(TrainingSettings):
    seen: float = 0.5


class Inpainting(Task):
    name = "inpainting"
    title = "photographs with missing pixels"
    network = InpaintingNetwork
    training = InpaintingTraining
    protocols = ("cs",)
    suffixes = (".png",)
    untrained = {"leave-black": lambda y, physics: y}

    def physics(self, settings):
        return PixelMask()

    def denoiser(self, settings):
        return UNet(1, settings.width)

    def describe(self, settings):
        return "by a pixel mask"

    def restore_options(self):
        return InpaintingRestore()

    def default_model(self, options, shipped: Mapping):
        return "leave-black"

    def inputs(self, source, options):
        return [source]

    def open(self, source, options, physics):
        return scene_of(source, options.seen)

    def measurement(self, scene, physics):
        y = physics(torch.from_numpy(scene.truth)[None])
        physics.check_measurement(y)
        return y

    def save(self, out: Path, image, scene, y, options):
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(out)

    def pictures(self, out):
        return (out.with_name(f"{out.stem}-seen.png"),)

    def draw(self, out, scene, y, restored, start):
        Image.fromarray(np.rint(y[0, 0].numpy() * 255).astype(np.uint8)).save(self.pictures(out)[0])

    def eval_options(self):
        return InpaintingEval()

    def eval_inputs(self, source, options):
        return list_photos(source)

    def scenes(self, source, options, physics):
        return [scene_of(path, options.seen) for path in list_photos(source)]

    def psnr(self, image, scene, protocol):
        return metrics.psnr(image[0], scene.truth[0], protocol)

    def quality(self, image, scene, protocol):
        return Quality(self.psnr(image, scene, protocol), metrics.ssim(image[0], scene.truth[0], protocol))

    def samples(self, network, data, settings, seed):
        return InpaintingSamples(data, settings.seen, seed)


class InpaintingSamples:
    def __init__(self, data, seen, seed):
        self.photos, self.seen = PhotoCrops(find_training_data(data), seed), seen

    def check(self, sizes: Sequence, square: bool):
        self.photos.check_side(max(max(size) for size in sizes))

    def prepare(self, physics):
        pass

    def sample(self, index, count, size, device):
        return Sample(self.photos.batch(index, count, size[0]), PixelMask(pixel_mask(size, self.seen)))

    def held_out(self, device):
        return Sample(self.photos.held_out(32), PixelMask(pixel_mask((32, 32), self.seen)))


def pixel_mask(size, seen) -> Tensor:
    return (torch.rand(size, generator=torch.Generator().manual_seed(0)) < seen).float()


def scene_of(path: Path, seen: float) -> Scene:
    truth = read_grey(path)
    return Scene(path.name, truth.shape, truth=truth[None], physics=PixelMask(pixel_mask(truth.shape, seen)))


@pytest.fixture
def inpainting(monkeypatch):
    monkeypatch.setitem(TASKS, "inpainting", Inpainting())


@pytest.fixture
def photos(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(camera()[index * 100 : index * 100 + 64, 100:180]).save(folder / f"{index}.png")
    monkeypatch.setenv("LORUN_DATA", str(tmp_path / "data"))
    return folder


def test_a_third_task_trains_restores_and_evaluates(inpainting, photos, tmp_path, capsys):
    config = TrainConfig(
        name="tiny",
        network=InpaintingNetwork(width=4, stages=2, gamma=50),
        phase1=Phase(steps=(2,), stages=(2,), batch=(2,), crop=(32,)),
        phase2=Phase(steps=(1,), stages=(2,), batch=(2,), crop=(32,)),
        data=("photos",),
        task_settings=InpaintingTraining(seen=0.7),
    )
    model = train(config, tmp_path / "run")
    assert train(config, tmp_path / "run") == model  # from config.json, with the task's own settings
    with pytest.raises(ValueError, match="other settings"):
        train(dataclasses.replace(config, task_settings=InpaintingTraining()), tmp_path / "run")
    capsys.readouterr()

    # The model's file states its task: neither command needs --task.
    out = tmp_path / "out.png"
    arguments = (
        f"restore {photos / '0.png'} --model {model} --seen 0.7 --figures --compare leave-black -o {out}"
    )
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out
    assert "64x80 pixels restored by" in printed and "(LoRun-2 by a pixel mask), PSNR" in printed
    assert np.asarray(Image.open(out)).shape == (64, 80) and (tmp_path / "out-seen.png").is_file()

    table = tmp_path / "table.csv"
    assert main(f"eval {photos} --models {model} leave-black --seen 0.7 -o {table}".split()) == 0
    assert table.read_text().count("leave-black") == 4
    assert main(["info", str(model), "--size", "32", "32"]) == 0
    assert "task inpainting by a pixel mask" in capsys.readouterr().out


def test_help_lists_every_task_and_the_options_of_one(inpainting, capsys):
    with pytest.raises(SystemExit):
        main(["restore", "--help"])
    printed = capsys.readouterr().out
    assert "inpainting: photographs with missing pixels" in " ".join(printed.replace("│", " ").split())
    assert "--ratio" in printed and "--seen" not in printed
    with pytest.raises(SystemExit):
        main(["restore", "--task", "inpainting", "--help"])
    printed = capsys.readouterr().out
    assert "--seen" in printed and "--ratio" not in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("restore a.png -o b.png --task inpainting --ratio 0.5", "--ratio is an option of task cs"),
        ("restore a.png -o b.png --seen 0.5", "--seen is an option of task inpainting, this is for task cs"),
        ("restore a.png -o b.png --task mri", "task: expected one of cs, cassi, sr, inpainting, got 'mri'"),
        ("eval photos --task=inpainting --result c.mat", "--result is an option of task cassi"),
    ],
)
def test_the_parser_refuses_foreign_options(inpainting, capsys, arguments, words):
    assert main(arguments.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_keeps_the_contract(task):
    settings = task.network()
    assert TASKS[task.name] is task and settings.task == task.name
    assert task.eval_options().protocol == task.protocols[0]
    assert set(task.protocols) <= set(metrics.PROTOCOLS)
    assert isinstance(task.physics(settings), Physics) and isinstance(task.denoiser(settings), nn.Module)
    assert not set(vars(task.restore_options())) & {"model", "compare", "figures", "tile", "device", "out"}
