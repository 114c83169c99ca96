import dataclasses

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from PIL import Image

from lorun.errors import ArgumentError
from lorun.physics import SuperResolution
from lorun.physics.blur_kernels import gaussian_kernel
from lorun.tasks.sr.options import SREval, SRRestore
from lorun.tasks.sr.scenes import open_photo, restore_inputs, simulated, table_inputs, table_scenes


def save(path, size=(48, 60), mode="RGB"):
    channels = {"RGB": 3, "LA": 2, "RGBA": 4}.get(mode, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels)).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).convert(mode).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return save(tmp_path / "photo.png")


def test_a_photograph_is_enlarged_as_it_is(photo):
    options = SRRestore(scale=3, kernel="gaussian:1.2", noise=0.02)
    scene = open_photo(photo, options, 3)
    assert scene.size == (144, 180) and scene.truth is None and not scene.grey
    np.testing.assert_array_equal(
        scene.y[:, :48, :60], np.asarray(Image.open(photo)).transpose(2, 0, 1) / np.float32(255)
    )
    assert scene.y.shape[1] > 48 and scene.y.shape[2] > 60  # continued
    assert scene.physics.scale == 3 and scene.physics.noise_level == pytest.approx(0.02)
    assert torch.equal(scene.physics.kernel, gaussian_kernel(1.2))


def test_a_good_one_is_made_smaller_as_scipy_does(photo):
    scene = open_photo(photo, SRRestore(scale=2, kernel="gaussian:1.2", simulate=True), 3)
    assert scene.size == (48, 60) and scene.y is None
    kernel = gaussian_kernel(1.2).double().numpy()
    expected = [scipy.ndimage.convolve(b, kernel, mode="wrap")[::2, ::2] for b in scene.truth.astype(float)]
    np.testing.assert_allclose(simulated(scene.truth, scene.physics)[0], expected, atol=1e-6)


def test_simulated_noise_is_the_same_for_every_method():
    truth, kernel = np.full((3, 64, 64), 0.5, np.float32), torch.ones(1, 1)
    noisy = SuperResolution(kernel, 2, noise_level=0.1)
    first, again = simulated(truth, noisy), simulated(truth, noisy)
    assert torch.equal(first, again)
    assert (first - simulated(truth, SuperResolution(kernel, 2))).std().item() == pytest.approx(0.1, rel=0.05)


def test_grey_photographs_stay_grey_and_a_grey_model_takes_luma(tmp_path, photo):
    grey = save(tmp_path / "grey.png", mode="L")
    scene = open_photo(grey, SRRestore(), 3)
    assert scene.grey and len(scene.y) == 3 and scene.notes == ()
    scene = open_photo(photo, SRRestore(), 1)
    assert len(scene.y) == 1 and scene.notes == ("colour became grey, as this model restores",)


def test_notes_say_what_became_of_the_kernel(tmp_path, photo):
    np.save(tmp_path / "k.npy", np.ones((4, 4)))
    scene = open_photo(photo, SRRestore(kernel=str(tmp_path / "k.npy")), 3)
    assert [note.split(",")[0] for note in scene.notes] == [
        "the kernel was divided by its sum",
        "the centre of the 4x4 kernel is row 2",
    ]


def test_a_table_has_a_row_for_each_scale_and_a_column_for_each_kernel(tmp_path):
    save(tmp_path / "a.png", (50, 60))
    save(tmp_path / "b.png", (49, 49), "L")
    options = SREval(scales=(2, 3), kernels=("gaussian:1.2", "bicubic"))
    scenes = table_scenes(tmp_path, options, 3)
    assert [(scene.name, scene.cell, scene.size) for scene in scenes] == [
        ("a.png", ("x2", "gaussian:1.2"), (48, 56)),
        ("b.png", ("x2", "gaussian:1.2"), (48, 48)),
        ("a.png", ("x2", "bicubic"), (48, 56)),
        ("b.png", ("x2", "bicubic"), (48, 48)),
        ("a.png", ("x3", "gaussian:1.2"), (48, 48)),
        ("b.png", ("x3", "gaussian:1.2"), (48, 48)),
        ("a.png", ("x3", "bicubic"), (48, 48)),
        ("b.png", ("x3", "bicubic"), (48, 48)),
    ]
    assert all(scene.truth.shape == (3, *scene.size) for scene in scenes)
    assert scenes[4].physics.scale == 3


def test_different_kernels_have_different_columns_and_the_same_one_has_one(tmp_path):
    photo = save(tmp_path / "a.png")
    np.savez(tmp_path / "k.npz", one=np.ones((3, 3)), two=np.ones((5, 5)))
    np.save(tmp_path / "k.npy", np.ones((2, 7, 7)))
    specs = tuple(f"{tmp_path}/{spec}" for spec in ("k.npz:1", "k.npy:1", "k.npz"))
    scenes = table_scenes(photo, SREval(scales=(2, 2), kernels=(*specs, "none", "none")), 3)
    assert [scene.cell[1].removeprefix(f"{tmp_path}/") for scene in scenes] == [
        *("k.npz:1", "k.npy:1", "k.npz:2", "none")
    ]
    assert [tuple(scene.measured_by.kernel.shape) for scene in scenes] == [(3, 3), (7, 7), (5, 5), (1, 1)]


def test_a_photograph_that_is_too_small_for_a_table_is_named_before_the_work(tmp_path):
    save(tmp_path / "large.png", (96, 96))
    save(tmp_path / "small.png", (24, 24))
    with pytest.raises(
        ArgumentError, match="kernel: expected one within small.png of 24x24 pixels, got 25x25"
    ):
        table_scenes(tmp_path, SREval(scales=(2,)), 3)
    with pytest.raises(
        ValueError, match="small.png: protocol sr-rgb needs at least 29x29 pixels at scale 3, got 24x24"
    ):
        table_scenes(tmp_path, SREval(scales=(3,), kernels=("none",)), 3)
    assert len(table_scenes(tmp_path, SREval("sr-y", (3,), ("none",)), 3)) == 2


def test_errors_name_the_option_that_the_command_has(tmp_path, monkeypatch):
    photo = save(tmp_path / "a.png")
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    for options, option in (
        (SREval(kernels=("12",)), "kernels"),
        (SREval(kernels=("blurry",)), "kernels"),
        (SREval(assumed="blurry"), "assumed"),
        (SREval(scales=(0,)), "scales"),
    ):
        with pytest.raises((ValueError, OSError)) as raised:
            table_scenes(photo, options, 3)
        assert raised.value.argument == option
    with pytest.raises(FileNotFoundError) as raised:
        open_photo(photo, SRRestore(kernel="12:1"), 3)
    assert raised.value.argument == "kernel"


def test_an_assumed_kernel_restores_what_others_have_blurred(tmp_path):
    save(tmp_path / "a.png")
    options = SREval(scales=(2,), kernels=("gaussian:1.2", "gaussian:2"), assumed="gaussian:1.6")
    for scene, width in zip(table_scenes(tmp_path, options, 3), (1.2, 2.0), strict=True):
        assert torch.equal(scene.measured_by.kernel, gaussian_kernel(width))
        assert torch.equal(scene.physics.kernel, gaussian_kernel(1.6))


@pytest.mark.parametrize(
    "options, words",
    [
        (
            SRRestore(noise=-0.01),
            "noise: expected a standard deviation of 0 to 1, where white is 1, got -0.01",
        ),
        (SRRestore(noise=float("nan")), "noise: expected"),
        (SRRestore(noise=25), "noise: expected .* got 25; 25 of 255 is 0.098"),
        (SRRestore(scale=0), "scale: expected a whole number of at least 1, such as 2, got 0"),
    ],
)
def test_numbers_that_make_no_sense(photo, options, words):
    with pytest.raises(ArgumentError, match=words):
        restore_inputs(photo, options)
    table = SREval(noise=options.noise, scales=(2, options.scale))
    with pytest.raises(ArgumentError, match=words):
        table_inputs(photo, table)


def test_calls_that_make_no_sense(photo):
    with pytest.raises(ValueError, match="input: name a photograph to enlarge"):
        restore_inputs(None, SRRestore())
    with pytest.raises(ValueError, match="scales, kernels: expected at least one of each"):
        table_inputs(photo, SREval(scales=()))


def test_the_kernel_file_is_an_input_too(tmp_path, photo):
    kernel = tmp_path / "k.png"
    save(kernel, mode="L")
    assert restore_inputs(photo, SRRestore(kernel=str(kernel))) == [photo, kernel]
    assert restore_inputs(photo, SRRestore(kernel=f"{kernel}:1")) == [photo, kernel]
    assert restore_inputs(photo, SRRestore()) == [photo]


def test_photographs_that_do_not_fit(tmp_path):
    odd, small = save(tmp_path / "odd.png", (49, 60)), save(tmp_path / "small.png", (10, 10))
    simulate = SRRestore(scale=2, simulate=True)
    with pytest.raises(ArgumentError, match="scale: .* divides the photograph's 49x60 .* crop .* to 48x60"):
        open_photo(odd, simulate, 3)
    scipy.io.savemat(tmp_path / "k.mat", {"k": np.ones((25, 25))})
    large = dataclasses.replace(SRRestore(), kernel=str(tmp_path / "k.mat"))
    with pytest.raises(
        ArgumentError, match="kernel: expected one within the image of 20x20 pixels, got 25x25"
    ):
        open_photo(small, large, 3)
    with pytest.raises(ValueError, match=r"small.png: expected at least 24x24 pixels for this scale"):
        table_scenes(small, SREval(scales=(3,)), 3)
    for mode in ("LA", "RGBA"):
        clear = save(tmp_path / "clear.png", mode=mode)
        with pytest.raises(ValueError, match=r"clear.png: image: has transparency .*\+A.* background first"):
            open_photo(clear, SRRestore(), 3)
