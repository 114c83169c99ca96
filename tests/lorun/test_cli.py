import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.data import camera

import lorun
from lorun.cli import main

LORUN = "cs25-unet-lorun9"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(camera()[200:264, 200:270]).save(path)
    return path


def run(*arguments):
    """Run the command in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "lorun.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_restore_beats_its_start_and_takes_its_own_measurement(photo, tmp_path, capsys):
    out, measured = tmp_path / "out.png", tmp_path / "y.npz"
    assert main(["restore", str(photo), "-o", str(out), "--measurement", str(measured)]) == 0
    assert "LoRun-9" in capsys.readouterr().out
    truth, restored = np.asarray(Image.open(photo)) / 255, np.asarray(Image.open(out)) / 255
    restorer = lorun.Restorer(lorun.create_model(LORUN))
    start = restorer.start(restorer.measure(truth))
    assert lorun.metrics.psnr(restored, truth, "cs") > lorun.metrics.psnr(start, truth, "cs")
    again = tmp_path / "again.png"
    assert main(["restore", str(measured), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_info_counts_the_saving(capsys):
    assert main(["info", LORUN, "--size", "64", "64"]) == 0
    printed = capsys.readouterr().out
    for words in ("9 stages", "base denoiser", "adapters", "Phi", "GMAC", "saves 69", "1.424"):
        assert words in printed
    assert main(["info"]) == 0
    assert LORUN in capsys.readouterr().out


def test_eval_writes_the_table(photo, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo.rename(folder / "photo.png")
    table = tmp_path / "table.csv"
    assert main(["eval", str(folder), "--models", LORUN, "cs25-unet-shared9", "-o", str(table)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| photo.png |") == 4 and printed.count("| average |") == 4
    assert table.read_text().startswith("image,method,psnr_db")


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == lorun.__version__


def test_help_has_an_example_for_every_command():
    for command in ("demo", "train", "eval", "restore", "info"):
        result = run(command, "--help")
        assert result.returncode == 0 and f"$ lorun {command}" in result.stdout


def bad_files(folder):
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / "pixel.png")
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(folder / "nan.tif")
    (folder / "broken.png").write_bytes(b"not a picture")
    np.savez(folder / "nan.npz", y=np.full((256, 1, 1), np.nan, np.float32), size=np.array([32, 32]))
    np.savez(folder / "other.npz", y=np.zeros((103, 1, 1), np.float32), size=np.array([32, 32]))
    np.savez(folder / "keyless.npz", z=np.zeros(3))
    np.savez(folder / "zero.npz", y=np.zeros((256, 0, 0), np.float32), size=np.array([0, 0]))
    np.savez(folder / "object.npz", y=np.array([{}], dtype=object), size=np.array([32, 32]))
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "large.npz", y=np.full((256, 1, 1), 1e300), size=np.array([32, 32]))
    (folder / "folder.png").mkdir()
    (folder / "broken.npz").write_bytes(b"PK not an archive")
    shipped = (lorun.zoo.MODELS / "cs25-unet-shared9.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(shipped[: len(shipped) // 2])
    flipped = bytearray(shipped)
    flipped[len(shipped) // 2] ^= 4
    (folder / "flipped.safetensors").write_bytes(flipped)
    (folder / "full").mkdir()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("restore none.png -o out.png", "none.png: no such file"),
        ("restore pixel.png -o out.png", "at least 8x8 pixels, got 1x1"),
        ("restore nan.tif -o out.png", "NaN or Inf"),
        ("restore broken.png -o out.png", "not a readable image"),
        ("restore nan.npz -o out.png", "the measurement holds NaN"),
        ("restore other.npz -o out.png", "another ratio"),
        ("restore keyless.npz -o out.png", "lacks the key"),
        ("restore broken.npz -o out.png", "not a readable .npz"),
        ("restore photo.png -o out.jpg", "ends in .png"),
        ("restore photo.png -o none/out.png", "no such folder"),
        (
            "restore photo.png -o out.png --ratio 0.1",
            "no shipped model restores ratio 0.1; expected",
        ),
        ("restore photo.png -o out.png --model cs99", "no shipped model is called 'cs99'; expected one of"),
        ("restore photo.png -o out.png --model cut.safetensors", "cut.safetensors: damaged"),
        ("restore photo.png -o out.png --model flipped.safetensors", "flipped.safetensors: damaged"),
        ("restore photo.png -o out.png --model none.safetensors", "no such model file"),
        ("restore photo.png -o out.png --device warp", "device: 'warp' is not usable"),
        ("restore photo.png -o full", "ends in .png"),
        ("info cs99", "expected one of"),
        ("eval full", "holds no image"),
        ("eval none", "no such folder"),
        ("train --recipe cs99 --out run", "no such recipe"),
        ("train --out run --data none", "set LORUN_DATA"),
        ("train --out run --network.gamma -1", "gamma: expected a percentage above 0"),
        ("train --out run --phase1.lr fast", "could not convert string to float"),
        ("train --out run --network.stages 0", "stages: expected at least 1"),
        ("train --out run --network.width 0", "width: expected at least 1"),
        ("train --out run --network.ratio 2", "ratio: expected a fraction"),
        ("train --out run --network.phi-rank 999", "phi_rank: expected 0 to 256"),
        ("train --out run --save-every 0", "save_every: expected at least 1"),
        ("train --out run --phase1.phi-lr -1", "phi_lr must be at least 0"),
        ("restore photo.png", "--out"),
        ("restore photo.png -o photo.png", "is the input"),
        ("restore large.npz -o out.png", "NaN, Inf or values beyond"),
        ("restore photo.png -o folder.png", "is a folder"),
        ("restore photo.png -o out.png --device meta", "device: 'meta' is not usable"),
        ("info cs25-unet-lorun9 --size 10000000 10000000", "not enough memory"),
        ("restore zero.npz -o out.png", "at least 1x1 pixels"),
        ("restore empty.npz -o out.png", "not a readable .npz"),
        ("restore object.npz -o out.png", "not a readable .npz"),
        ("info cs25-unet-lorun9 --size -4 7", "height and a width of at least 1"),
        ("eval . -o table.txt", "ends in .md or .csv"),
        ("paint photo.png", "demo, train, eval, restore, info"),
        ("train --out run --phase1.steps 1 2 3", "as many steps as stages"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(photo, tmp_path, monkeypatch, capsys, arguments, words):
    bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORUN_DATA", raising=False)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    try:
        code = main(arguments.split())
    except SystemExit as exit:  # tyro's own way out for what it could not parse
        code = exit.code
    printed = capsys.readouterr()
    assert code == 2
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            "restore --meas m.mat --mask m.mat -o o.mat --model cassi-unet-lorun8",
            "no shipped model is called",
        ),
        ("restore --meas m.mat -o o.mat --model none.safetensors", "none.safetensors: no such model file"),
        (
            "restore p.npz -o q.mat --task cs --task cassi",
            "mask: restoring snapshots takes the camera's mask",
        ),
        ("restore p.png -o q.png --task cassi --task cs --ratio 0.3", "no shipped model restores ratio 0.3"),
        ("train --out x --mask m", "Unrecognized options: --mask, m"),
    ],
)
def test_what_chooses_the_options_is_never_the_wrong_complaint(arguments, words, capsys):
    assert main(arguments.split()) == 2
    printed = capsys.readouterr().err
    assert words in printed and "is an option of task" not in printed


def test_a_process_ends_with_code_2_and_no_traceback(tmp_path):
    result = run("restore", tmp_path / "none.png", "-o", tmp_path / "out.png")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("lorun: error: ")
    assert run("restore").returncode == 2
