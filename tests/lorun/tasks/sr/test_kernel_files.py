import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from lorun.errors import ArgumentError, MissingDataError
from lorun.physics.blur_kernels import bicubic_kernel, gaussian_kernel, motion_kernel
from lorun.tasks.sr.kernel_files import find_kernel, find_kernels, read_kernels

BOX = np.full((3, 5), 1 / 15)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("gaussian:1.2", gaussian_kernel(1.2)),
        ("gaussian:2,1,30", gaussian_kernel((2, 1), 30)),
        ("motion:7", motion_kernel(np.random.default_rng(7))),
        ("bicubic", bicubic_kernel(3)),
        ("none", torch.ones(1, 1)),
    ],
)
def test_generated_kernels_by_name(spec, expected):
    found = find_kernel(spec, 3)
    assert torch.equal(found.kernel, expected) and found.name == spec and found.notes == ()


@pytest.mark.parametrize("suffix", [".mat", ".npy", ".npz"])
def test_a_kernel_in_an_array_file(in_folder, suffix):
    path = in_folder / f"k{suffix}"
    save = {
        ".mat": lambda: scipy.io.savemat(path, {"name": "box", "k": BOX, "sigma": 2.0}),
        ".npy": lambda: np.save(path, BOX),
        ".npz": lambda: np.savez(path, anything=BOX),
    }
    save[suffix]()
    found = find_kernel(path.name, 2)
    np.testing.assert_allclose(found.kernel, BOX, rtol=1e-6)
    assert found.name == path.name


def test_a_kernel_in_an_image_is_its_brightness(in_folder):
    pixels = np.zeros((5, 5), np.uint8)
    pixels[2, 1:4] = (50, 100, 50)
    Image.fromarray(pixels).save(in_folder / "k.png")
    found = find_kernel("k.png", 2)
    np.testing.assert_allclose(found.kernel[2], [0, 0.25, 0.5, 0.25, 0], atol=1e-6)
    assert "divided by its sum, 0.7843" in found.notes[0]


def test_cells_and_stacks_hold_several(in_folder):
    boxes = [np.full((side, side), 1 / side**2) for side in (3, 5)]
    cell = np.empty((1, 2), object)
    cell[0, :] = boxes
    scipy.io.savemat(in_folder / "cell.mat", {"kernels": cell})
    np.save(in_folder / "first.npy", np.stack([boxes[1]] * 4))
    scipy.io.savemat(in_folder / "last.mat", {"k": np.stack([boxes[1]] * 4, 2)})
    assert [tuple(found.kernel.shape) for found in read_kernels(in_folder / "cell.mat")] == [(3, 3), (5, 5)]
    assert find_kernel("cell.mat:2", 2).kernel.shape == (5, 5)
    for name in ("first.npy", "last.mat"):
        found = find_kernels(name, 2)
        assert [one.name for one in found] == [f"{name}:{number}" for number in range(1, 5)]
        assert all(one.kernel.shape == (5, 5) for one in found)
    with pytest.raises(ArgumentError, match=r"cell.mat holds 2 kernels; say which, such as cell.mat:1"):
        find_kernel("cell.mat", 2)
    with pytest.raises(ArgumentError, match="holds 2, counted from 1; there is no number 3"):
        find_kernel("cell.mat:3", 2)


def test_the_published_twelve(lorun_data):
    published = scipy.io.loadmat(lorun_data / "sr/kernels_12.mat")["kernels"].ravel()
    found = find_kernels("12", 2)
    assert [one.name for one in found] == [str(number) for number in range(1, 13)]
    for one, kernel in zip(found, published, strict=True):
        np.testing.assert_allclose(one.kernel, kernel, rtol=1e-6)
        assert one.notes == ()


def test_one_of_the_published_twelve(lorun_data):
    found = find_kernel("12:9", 2)
    assert found.name == "9" and torch.equal(found.kernel, find_kernels("12", 2)[8].kernel)
    with pytest.raises(
        ArgumentError, match="kernel: 12 holds 12 kernels; say which, such as 12:1 for the first"
    ):
        find_kernel("12", 2)


def test_the_published_twelve_lie_under_lorun_data(in_folder, monkeypatch):
    monkeypatch.setenv("LORUN_DATA", str(in_folder))
    with pytest.raises(MissingDataError, match=r"sr/kernels_12.mat: no such file; set LORUN_DATA"):
        find_kernels("12", 2)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("gaussian:-1", "'gaussian:-1' is no kernel .width: expected one or two standard deviations above 0"),
        ("gaussian:a", "'gaussian:a' is no kernel"),
        ("gaussian:1,2", "expected one width, or two and an angle, got 2 numbers"),
        ("motion:x", "'motion:x' is no kernel"),
        ("blurry", "kernel: expected a file, such as k.mat .* got 'blurry'"),
        (
            "text.mat",
            "text.mat: expected a kernel, .kh, kw. of at least 2x2; the file holds no array of numbers",
        ),
        ("row.npy", r"expected a kernel, .kh, kw. of at least 2x2; the file holds `array` \(1, 9\)"),
        ("black.png", "black.png: expected a sum above 0, got 0"),
    ],
)
def test_what_is_no_kernel(in_folder, spec, words):
    scipy.io.savemat(in_folder / "text.mat", {"kernel": "a gaussian"})
    np.save(in_folder / "row.npy", np.ones((1, 9)))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(in_folder / "black.png")
    with pytest.raises(ArgumentError, match=words) as raised:
        find_kernel(spec, 2)
    assert raised.value.argument == "kernel"


def test_a_file_that_is_not_there(in_folder):
    for name in ("k.mat", "k.png", "k.mat:2"):
        with pytest.raises(FileNotFoundError, match="k.*: no such file"):
            find_kernel(name, 2)
