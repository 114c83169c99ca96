"""`lorun eval --task cassi`, through the command line."""

import csv

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from lorun import metrics
from lorun.checkpoint import save_network
from lorun.cli import main
from lorun.networks import NetworkConfig, build_network
from lorun.tasks.cassi.task import mean_angle

MASK = np.random.default_rng(0).random((16, 20)).astype(np.float32)
SCENES = ["large.mat [0,0]", "large.mat [0,1]", "small.mat"]


def scene(height: int, width: int) -> np.ndarray:
    """(H, W, 3)"""
    rows, columns, band = np.indices((height, width, 3))
    return (0.5 + 0.4 * np.sin(rows / 7 + band) * np.cos(columns / 5)).astype(np.float32)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with cubes, a mask and a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cubes").mkdir()
    scipy.io.savemat("cubes/small.mat", {"img": scene(16, 20)})
    scipy.io.savemat("cubes/large.mat", {"img": scene(16, 40)})
    scipy.io.savemat("mask.mat", {"mask": MASK})
    torch.manual_seed(0)
    config = NetworkConfig(task="cassi", algorithm="hqs", bands=3, width=4, stages=1, variant="shared")
    save_network(build_network(config), config, "tiny.safetensors")
    return tmp_path


def run(arguments: str) -> int:
    return main(["eval", *arguments.split(), "--task", "cassi"])


@pytest.mark.parametrize("protocol", ["cassi-mst", "cassi-matlab", "cassi-float"])
def test_the_table_and_the_cubes_agree(lab, capsys, protocol):
    assert not run(
        f"cubes --mask mask.mat --models tiny.safetensors gap-tv tiny.safetensors --protocol {protocol} "
        "-o table.md -o table.csv --result Test_result.mat"
    )
    result = scipy.io.loadmat("Test_result.mat")
    pred, truth = result["pred"], result["truth"]
    assert pred.shape == truth.shape == (3, 16, 20, 3)
    np.testing.assert_array_equal(truth[0], scene(16, 40)[:, :20])
    np.testing.assert_array_equal(truth[2], scene(16, 20))

    rows = list(csv.DictReader((lab / "table.csv").open()))
    assert [row["image"] for row in rows] == [name for name in SCENES for _ in range(2)] + ["average"] * 2
    assert {row["protocol"] for row in rows} == {protocol}
    mine = [row for row in rows if row["method"] == "tiny.safetensors"]
    cubes = [(np.moveaxis(x, -1, 0), np.moveaxis(ref, -1, 0)) for x, ref in zip(pred, truth, strict=True)]
    scores = {
        "psnr_db": [metrics.psnr(x, ref, protocol) for x, ref in cubes],
        "ssim": [metrics.ssim(x, ref, protocol) for x, ref in cubes],
        "sam_degrees": [metrics.sam(x, ref) for x, ref in cubes],
    }
    for column, expected in scores.items():
        found = [float(row[column]) for row in mine]
        np.testing.assert_allclose(found, [*expected, np.mean(expected)], rtol=0, atol=1e-3)

    printed = capsys.readouterr().out
    assert printed == (lab / "table.md").read_text()
    assert printed.startswith(
        "| image | method | PSNR (dB) | SSIM | SAM (degrees) | seconds |\n|---|---|---:|"
    )
    assert printed.count("| gap-tv |") == 4 and printed.count("| average |") == 2
    assert f"by protocol {protocol}." in printed


def test_one_cube_and_tiles(lab, capsys):
    assert not run("cubes/small.mat --mask mask.mat --models tiny.safetensors --tile 84")
    printed = capsys.readouterr().out
    assert printed.count("tiny.safetensors") == 2 and "small.mat" in printed


def test_files_that_need_more_said_get_it(lab, capsys):
    whole = np.rint(scene(16, 20).transpose(2, 0, 1) * 4095).astype(np.uint16)
    scipy.io.savemat("whole.mat", {"a": whole, "b": whole, "code": MASK, "other": MASK})
    options = "--layout chw --range 4095 --key a --mask whole.mat --mask-key code --result out.npz"
    assert not run(f"whole.mat {options} --models tiny.safetensors")
    with np.load("out.npz") as result:
        np.testing.assert_allclose(result["truth"][0], scene(16, 20), atol=2e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            "cubes --models gap-tv",
            "mask: restoring snapshots takes the camera's mask; give its file (--mask)",
        ),
        ("none --mask mask.mat", "none: no such cube or folder of cubes"),
        ("empty --mask mask.mat", "empty: holds no cube; expected one of .h5"),
        ("cubes --mask none.mat --models tiny.safetensors", "none.mat: no such file"),
        (
            "odd.mat --mask mask.mat --models tiny.safetensors",
            "odd.mat: is 16x21 pixels, not a multiple of the",
        ),
        (
            "low.mat --mask mask.mat --models tiny.safetensors",
            "low.mat: is 8x20 pixels, not a multiple of the",
        ),
        (
            "cubes --mask mask.mat --models gap-tv",
            "has 3 bands and states no wavelengths, the model restores 28",
        ),
        ("cubes --mask mask.mat --models cs25-unet-lorun9", "is a model for task cs, not cassi"),
        ("cubes --mask mask.mat --models tiny.safetensors --tile 9", "tile: expected at least 84"),
        (
            "cubes --mask mask.mat --models tiny.safetensors -o table.txt",
            "table.txt: expected a name that ends in",
        ),
        ("cubes --mask mask.mat --models tiny.safetensors -o t.md -o none/t.csv", "none: no such folder"),
        ("cubes --mask mask.mat --models tiny.safetensors --result out.png", "ends in .mat or .npz"),
        (
            "cubes --mask mask.mat --models tiny.safetensors --result cubes/small.mat",
            "small.mat: is the input",
        ),
        ("cubes --mask mask.mat --models tiny.safetensors --result mask.mat", "mask.mat: is the input"),
        ("cubes --mask mask.mat --models tiny.safetensors --protocol cs", "invalid choice 'cs'"),
        ("cubes --mask mask.mat --models tiny.safetensors other.safetensors", "run them apart"),
        (
            "cubes --task cs --result out.mat --protocol cassi-float",
            "--result is an option of task cassi, this is for task cs",
        ),
        ("cubes --task cs --mask mask.mat", "--mask is an option of task cassi, this is for task cs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(lab, capsys, arguments, words):
    (lab / "empty").mkdir()
    scipy.io.savemat("odd.mat", {"img": scene(16, 21)})
    scipy.io.savemat("low.mat", {"img": scene(8, 20)})
    config = NetworkConfig(task="cassi", bands=3, step=1, width=4, stages=1, variant="shared")
    save_network(build_network(config), config, "other.safetensors")
    before = sorted(lab.rglob("*"))
    task = [] if "--task" in arguments else ["--task", "cassi"]
    assert main(["eval", *arguments.split(), *task]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and len(printed.err.splitlines()) == 1, printed.err
    assert printed.out == "" and sorted(lab.rglob("*")) == before


def test_scenes_too_small_for_the_window_are_refused_before_the_work(tmp_path, capsys):
    np.savez(tmp_path / "cube.npz", cube=np.ones((8, 9, 3)), wavelengths=[450.0, 550, 650])
    np.savez(tmp_path / "mask.npz", mask=np.ones((8, 9)))
    config = NetworkConfig(task="cassi", algorithm="hqs", bands=3, width=4, stages=1)
    save_network(build_network(config), config, tmp_path / "three.safetensors")
    options = f"--mask {tmp_path / 'mask.npz'} --models {tmp_path / 'three.safetensors'}"
    arguments = f"eval {tmp_path / 'cube.npz'} --task cassi {options} --protocol cassi-float"
    assert main(arguments.split()) == 2
    assert "ssim: expected at least 11x11 pixels" in capsys.readouterr().err


def test_a_black_scene_has_no_angle():
    black = np.zeros((3, 8, 8), np.float32)
    assert mean_angle(black + 1, black) is None
    assert mean_angle(black + 1, black + 0.5) == pytest.approx(0, abs=1e-4)


def test_a_folder_of_pictures_is_one_cube(lab, capsys):
    for parent in (lab, lab / "pictures"):
        folder = parent / "png"
        folder.mkdir(parents=True)
        for band in range(28):
            Image.fromarray(np.full((24, 64), 8 * band, np.uint8)).save(folder / f"b_{band:02d}.png")
    mask = np.random.default_rng(0).random((24, 64))
    np.savez(lab / "wide.npz", mask=mask)
    for cubes in ("png", "pictures"):
        arguments = f"{lab / cubes} --task cassi --mask {lab / 'wide.npz'} --models smooth-start --range 255"
        assert main(["eval", *arguments.split()]) == 0
        assert "| png | smooth-start |" in capsys.readouterr().out
