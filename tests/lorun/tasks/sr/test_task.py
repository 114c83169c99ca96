import csv

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from lorun import metrics
from lorun.checkpoint import save_network
from lorun.cli import main
from lorun.networks import build_network, network_config
from lorun.physics.bicubic import enlarge
from lorun.tasks import TASKS
from lorun.tasks.sr.options import SRRestore
from lorun.tasks.sr.settings import SRNetwork

TASK = TASKS["sr"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut()[0:96, 180:276]).save(folder / "colour.png")
    Image.fromarray(astronaut()[100:196, 180:276, 1]).save(folder / "grey.png")
    return folder


@pytest.fixture
def model(tmp_path):
    config = network_config("sr", width=4, stages=2)
    path = tmp_path / "tiny.safetensors"
    save_network(build_network(config), config, path)
    return path


def test_photographs_come_out_larger_in_their_own_colours(photos, model, tmp_path, capsys):
    out = tmp_path / "out.png"
    for name, shape in (("colour.png", (288, 288, 3)), ("grey.png", (288, 288))):
        arguments = (
            f"restore {photos / name} --model {model} --scale 3 --kernel gaussian:1 --noise 0.01 -o {out}"
        )
        assert main(arguments.split()) == 0
        printed = capsys.readouterr().out
        assert printed == f"{out}: 288x288 pixels restored by {model} (LoRun-2 in colour)\n"
        assert np.asarray(Image.open(out)).shape == shape


def test_a_good_one_is_made_smaller_and_compared(photos, model, tmp_path, capsys):
    out = tmp_path / "out.png"
    arguments = f"restore {photos / 'colour.png'} --task sr --model {model} --compare bicubic --figures"
    assert main([*arguments.split(), "--simulate", "--kernel", "gaussian:1.2", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "96x96 pixels restored" in printed and "dB (sr-rgb); pictures: " in printed
    restored, truth = (
        np.asarray(Image.open(path)).transpose(2, 0, 1) / 255 for path in (out, photos / "colour.png")
    )
    assert f"PSNR {metrics.psnr(restored, truth, 'sr-rgb', 2):.2f} dB" in printed
    assert (tmp_path / "out-comparison.png").is_file()


def test_the_table_has_kernels_across_and_scales_down(photos, model, tmp_path, capsys):
    paths = tmp_path / "table.csv", tmp_path / "table.md"
    arguments = f"eval {photos} --task sr --models bicubic {model} --scales 2 3 --kernels gaussian:1 none"
    assert main([*arguments.split(), "-o", str(paths[0]), "-o", str(paths[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == paths[1].read_text().splitlines()
    assert lines[0] == "| | method | gaussian:1 | none | average |"
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| x2", "| x2", "| x3", "| x3"]
    assert lines[7] == "PSNR in dB by protocol sr-rgb, means over 2 images."
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    of_cell = [
        float(row["psnr_db"])
        for row in rows
        if (row["method"], row["row"], row["column"]) == ("bicubic", "x3", "none")
    ]
    assert len(of_cell) == 2
    shown = lines[4].split(" | ")
    assert shown[1] == "bicubic" and float(shown[3]) == pytest.approx(np.mean(of_cell), abs=0.006)
    means = [float(number) for number in shown[2:4]]
    assert float(shown[4].strip(" |")) == pytest.approx(np.mean(means), abs=0.011)


def test_bicubic_is_aligned_with_the_pixels_that_were_kept():
    y = torch.rand(1, 3, 8, 9)
    physics = TASK.physics(SRNetwork())
    physics.scale, physics.kernel = 2, torch.ones(1, 1)
    assert torch.equal(TASK.untrained["bicubic"](y, physics), enlarge(y, 2))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--kernel {folder}/zeros.npy", "expected a sum above 0, got 0; it would leave no image (--kernel)"),
        (
            "--kernel {folder}/row.npy",
            "expected a kernel, (kh, kw) of at least 2x2; the file holds `array` (1, 9) (--kernel)",
        ),
        ("--kernel {folder}/large.npy", "kernel: expected one within the image of 192x192 pixels, got 200x3"),
        ("--kernel gaussian:0", "'gaussian:0' is no kernel"),
        ("--noise -0.01", "where white is 1, got -0.01; 25 of 255 is 0.098 (--noise)"),
        ("--scale 5 --simulate", "scale: expected one that divides the photograph's 96x96 pixels, got 5"),
        ("--noise 25", "noise: expected a standard deviation of 0 to 1, where white is 1, got 25"),
        ("--scale 8 --simulate --kernel none", "image larger than the border of 64 pixels on every side"),
        ("--scale 0", "scale: expected a whole number of at least 1, such as 2, got 0 (--scale)"),
        ("--tile 100", "tile: expected at least 208 pixels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(photos, model, tmp_path, capsys, arguments, words):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "zeros.npy", np.zeros((3, 3)))
    np.save(folder / "row.npy", np.ones((1, 9)))
    np.save(folder / "large.npy", np.ones((200, 3)))
    out = tmp_path / "out.png"
    call = f"restore {photos / 'colour.png'} --task sr --model {model} {arguments.format(folder=folder)}"
    assert main([*call.split(), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not out.exists()


def test_small_photographs_are_restored_although_ssim_is_not_defined(model, tmp_path, capsys):
    out, pixels = (
        tmp_path / "out.png",
        np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8),
    )
    Image.fromarray(pixels).save(tmp_path / "small.png")
    call = f"restore {tmp_path / 'small.png'} --model {model} --simulate --kernel none --figures -o {out}"
    assert main(call.split()) == 0
    assert "dB (sr-rgb)" in capsys.readouterr().out and (tmp_path / "out-comparison.png").is_file()


def test_one_pixel_has_a_picture(model, tmp_path):
    Image.fromarray(np.full((1, 1, 3), 99, np.uint8)).save(tmp_path / "one.png")
    call = f"restore {tmp_path / 'one.png'} --model {model} --scale 1 --kernel none --figures"
    assert main([*call.split(), "-o", str(tmp_path / "out.png")]) == 0


def test_the_psnr_of_a_grey_photograph_is_that_of_the_saved_image(photos, tmp_path, capsys):
    out = tmp_path / "out.png"
    call = (
        f"restore {photos / 'grey.png'} --task sr --model bicubic --simulate --kernel gaussian:1 --noise 0.03"
    )
    assert main([*call.split(), "-o", str(out)]) == 0
    saved, truth = (np.asarray(Image.open(path))[None] / 255 for path in (out, photos / "grey.png"))
    assert f"PSNR {metrics.psnr(saved, truth, 'sr-rgb', 2):.2f} dB" in capsys.readouterr().out


def test_tables_keep_no_images(photos, monkeypatch):
    kept = []
    monkeypatch.setattr(type(TASK), "save_table_images", lambda self, images, *_: kept.append(images))
    assert main(f"eval {photos} --task sr --models bicubic --scales 2 --kernels none".split()) == 0
    assert kept == []


def test_a_kernel_of_another_sum_is_normalised_and_said_so(photos, model, tmp_path, capsys):
    np.save(tmp_path / "k.npy", np.ones((2, 2)))
    call = f"restore {photos / 'colour.png'} --task sr --model {model} --kernel {tmp_path / 'k.npy'}"
    assert main([*call.split(), "-o", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert (
        "; the kernel was divided by its sum, 4; the centre of the 2x2 kernel is row 1, column 1" in printed
    )


def test_models_of_different_colours_are_run_apart():
    TASK.check_models({"a": SRNetwork(), "b": SRNetwork()})
    with pytest.raises(ValueError, match="some restore colour and others grey, a in colour, b in grey"):
        TASK.check_models({"a": SRNetwork(), "b": SRNetwork(channels=1)})


def test_every_denoiser_of_the_settings_makes_a_network():
    for denoiser in ("resunet", "unet"):
        for algorithm, start in (("hqs", 0.05), ("pgd", 1.0)):
            settings = SRNetwork(denoiser=denoiser, width=4, stages=2, algorithm=algorithm)
            net = build_network(settings)
            torch.testing.assert_close(net.step_size, torch.full((2,), start))
            scene_physics = TASK.physics(settings).for_size((16, 16))
            assert net(torch.rand(1, 3, 8, 8), physics=scene_physics).shape == (1, 3, 16, 16)
    assert TASK.default_model(SRRestore(), {}) == "sr-resunet-lorun9"
