"""`lorun restore --task cassi` and `lorun info` on spectral models, through the command line."""

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from lorun.checkpoint import load_network, save_network
from lorun.cli import main
from lorun.data import CASSI_WAVELENGTHS, interpolate_bands
from lorun.data.array_files import ArrayReader
from lorun.metrics import psnr
from lorun.networks import NetworkConfig, build_network
from lorun.tasks.cassi.gap_tv import gap_tv
from lorun.tasks.cassi.real_scenes import without_borders
from lorun.tasks.cassi.restorer import SpectralRestorer, camera_of, from_real, measure, snapshot_tensor

RANDOM = np.random.default_rng(0)
MASK = (0.1 + 0.9 * (RANDOM.random((24, 20)) > 0.5)).astype(np.float32)


def scene(bands: int, height: int = 24, width: int = 20) -> np.ndarray:
    """Some smooth cube (C, H, W)."""
    rows, columns = np.indices((height, width))
    waves = [np.sin(rows / 7 + band / bands) * np.cos(columns / 5 - band / bands) for band in range(bands)]
    return (0.5 + 0.4 * np.stack(waves)).astype(np.float32)


def save_model(path, bands: int) -> None:
    """A network of which nothing is trained, and which yet changes what it sees."""
    torch.manual_seed(bands)
    config = NetworkConfig(
        task="cassi", algorithm="hqs", bands=bands, width=4, stages=2, variant="shared", gamma=50
    )
    net = build_network(config)
    torch.nn.init.normal_(net.denoiser.last.weight, std=0.02)
    save_network(net, config, path)


def mat(path, **arrays) -> None:
    """A .mat file, cubes as (H, W, C)."""
    scipy.io.savemat(path, {k: np.moveaxis(v, 0, -1) if v.ndim == 3 else v for k, v in arrays.items()})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder of good and bad files, which no test writes into."""
    folder = tmp_path_factory.mktemp("lab")
    save_model(folder / "four.safetensors", 4)
    save_model(folder / "all.safetensors", 28)
    mat(folder / "mask.mat", mask=MASK)
    mat(folder / "large.mat", mask=np.ones((60, 60)))
    mat(folder / "cube.mat", img=scene(4))
    mat(folder / "scene.mat", meas_real=measure(scene(4), MASK) / 4)
    mat(folder / "sum.mat", meas=measure(scene(4), MASK))

    mat(folder / "cube31.mat", cube=scene(31))
    mat(folder / "dice.mat", img=scene(28, 28, 28))
    mat(folder / "turned.mat", img=scene(4).transpose(1, 2, 0))
    mat(folder / "whole.mat", img=(scene(4) * 255).astype(np.uint8), meas=np.ones((24, 26), np.uint16))
    for name, value in (("nan", np.nan), ("negative", -0.1), ("bright", 4095.0)):
        cube, y = scene(4), measure(scene(4), MASK)
        cube[1, 2, 3], y[2, 3] = value, value
        mat(folder / f"{name}.mat", img=cube, meas=y)
    mat(folder / "raw.mat", meas_real=4095 * RANDOM.random((24, 26)))
    mat(folder / "black.mat", meas_real=np.zeros((24, 26)))
    shipped = (folder / "cube.mat").read_bytes()
    (folder / "cut.mat").write_bytes(shipped[: len(shipped) // 2])
    weights = (folder / "four.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "photos").mkdir()
    Image.new("L", (32, 32), 99).save(folder / "photos" / "photo.png")
    return folder


@pytest.fixture
def restore(lab, tmp_path, monkeypatch, capsys):
    """Run `lorun restore --task cassi ARGUMENTS -o out.mat`; returns what it wrote and printed."""
    monkeypatch.chdir(lab)

    def run(arguments: str) -> tuple[dict, str]:
        out = tmp_path / "out.mat"
        code = main(["restore", *arguments.split(), "--task", "cassi", "-o", str(out)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        cubes = {k: np.moveaxis(v, -1, 0) for k, v in scipy.io.loadmat(out).items() if not k.startswith("__")}
        return cubes, printed.out

    return run


def method(lab, bands: int = 4) -> SpectralRestorer:
    name = {4: "four", 28: "all"}[bands]
    return SpectralRestorer(load_network(lab / f"{name}.safetensors")[0])


def test_a_cube_is_measured_and_restored_with_pictures(lab, restore, tmp_path):
    found, printed = restore(
        "cube.mat --mask mask.mat --model four.safetensors --figures --compare gap-tv --wavelengths 450 650"
    )
    expected = method(lab).restore(measure(scene(4), MASK), MASK)
    np.testing.assert_array_equal(found["pred"], expected)
    np.testing.assert_array_equal(found["truth"], scene(4))
    quality = psnr(expected, scene(4), "cassi-mst")
    assert (
        "4 bands of 24x20 pixels restored by four.safetensors (Shared-2 with 4 bands, 2 columns apart), "
        f"PSNR {quality:.2f} dB (cassi-mst)" in printed
    )
    for name in ("out-comparison.png", "out-bands.png"):
        assert name in printed and Image.open(tmp_path / name).size[0] > 300
    assert len(printed.splitlines()) == 1


def test_a_real_snapshot_is_scaled_as_the_field_does(lab, restore, tmp_path):
    y = measure(scene(4), MASK) / 4
    arguments = "--meas scene.mat --mask mask.mat --model four.safetensors"
    found, printed = restore(arguments)
    assert "PSNR" not in printed and set(found) == {"pred"}
    assert not list(tmp_path.glob("*.png"))
    expected = method(lab).restore(*without_borders(from_real(y, 4), MASK, 4, 2))
    np.testing.assert_array_equal(found["pred"], expected)
    np.testing.assert_array_equal(restore(f"{arguments} --scale real")[0]["pred"], expected)
    as_sum = restore(f"{arguments} --scale sum")[0]["pred"]
    np.testing.assert_array_equal(as_sum, method(lab).restore(y, MASK))


def test_other_snapshots_are_sums(lab, restore):
    y = measure(scene(4), MASK)
    arguments = "--meas sum.mat --mask mask.mat --model four.safetensors"
    found, _ = restore(arguments)
    np.testing.assert_array_equal(found["pred"], method(lab).restore(y, MASK))
    as_real = restore(f"{arguments} --scale real --range {y.max():.9f}")[0]["pred"]
    expected = method(lab).restore(*without_borders(from_real(y / y.max(), 4), MASK, 4, 2))
    np.testing.assert_allclose(as_real, expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, files",
    [("--meas scene.mat", ["mask.mat", "scene.mat"]), ("cube.mat --tile 84", ["cube.mat", "mask.mat"])],
)
def test_each_file_is_read_once(restore, monkeypatch, arguments, files):
    read, paths = ArrayReader.read, []
    monkeypatch.setattr(
        ArrayReader, "read", lambda self, path, *more: paths.append(str(path)) or read(self, path, *more)
    )
    restore(f"{arguments} --mask mask.mat --model four.safetensors")
    assert sorted(paths) == files


def test_thirty_one_bands_are_interpolated_with_wavelengths(restore):
    found, _ = restore("cube31.mat --layout hwc --mask mask.mat --model gap-tv --wavelengths 400 700")
    expected = interpolate_bands(scene(31), np.arange(400, 701, 10.0), np.array(CASSI_WAVELENGTHS))
    np.testing.assert_array_equal(found["truth"], expected)
    camera = camera_of(MASK, 28, 2)
    cube = gap_tv(snapshot_tensor(measure(expected, MASK), camera), camera)[0]
    np.testing.assert_array_equal(found["pred"], cube.numpy())


def test_the_literatures_bands_have_pictures_without_more(lab, restore, tmp_path):
    y = measure(scene(28), MASK)
    mat(tmp_path / "scene.mat", meas=y)
    restore(f"--meas {tmp_path / 'scene.mat'} --mask mask.mat --model all.safetensors --figures")
    assert (tmp_path / "out-comparison.png").is_file() and (tmp_path / "out-bands.png").is_file()


def test_stored_wavelengths_serve_pictures_of_other_band_counts(restore, tmp_path):
    mat(tmp_path / "stated.mat", cube=scene(4), wavelengths=np.array([[450.0, 500, 550, 600]]))
    restore(f"{tmp_path / 'stated.mat'} --mask mask.mat --model four.safetensors --figures")
    assert (tmp_path / "out-bands.png").is_file()


def test_a_large_scene_in_tiles_is_the_scene(restore, tmp_path):
    mat(tmp_path / "cube.mat", img=scene(4, 136, 148))
    mat(tmp_path / "mask.mat", mask=(RANDOM.random((136, 148)) > 0.5).astype(np.float32))
    arguments = f"{tmp_path / 'cube.mat'} --mask {tmp_path / 'mask.mat'} --model four.safetensors"
    whole, tiled = (restore(arguments + tile)[0]["pred"] for tile in ("", " --tile 100"))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-4)


def test_npz_goes_out_and_comes_in(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    options = ["--task", "cassi", "--mask", "mask.mat", "--model", "four.safetensors"]
    assert main(["restore", "cube.mat", *options, "-o", str(first)]) == 0
    assert main(["restore", str(first), "--key", "truth", *options, "-o", str(second)]) == 0
    with np.load(first) as one, np.load(second) as two:
        assert one["pred"].shape == (24, 20, 4)
        np.testing.assert_array_equal(one["pred"], two["pred"])


def test_info_counts_a_spectral_model(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    assert main(["info", "four.safetensors", "--size", "16", "16"]) == 0
    printed = capsys.readouterr().out
    for words in ("Shared-2, hqs, task cassi with 4 bands, 2 columns apart", "2 stages", "GMAC", "at 16x16"):
        assert words in printed
    assert "Phi" not in printed


FOUR = "--task cassi --mask mask.mat --model four.safetensors"
ALL = "--task cassi --mask mask.mat --model all.safetensors"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            f"restore {FOUR}",
            "input, meas: expected either a cube, .* or a snapshot (meas), got neither (--meas)",
        ),
        (f"restore cube.mat --meas scene.mat {FOUR}", "got both"),
        ("restore cube.mat --task cassi --model four.safetensors", "mask: .* give its file (--mask)"),
        (f"restore none.mat {FOUR}", "none.mat: no such file"),
        (f"restore --meas none.mat {FOUR}", "none.mat: no such file"),
        ("restore cube.mat --task cassi --mask none.mat --model four.safetensors", "none.mat: no such file"),
        (
            "restore --meas scene.mat --task cassi --mask large.mat --model four.safetensors",
            "scene.mat: is 24x26 pixels, where a mask of 60x60 and 4 bands 2 columns apart make 60x66; give",
        ),
        (
            "restore cube.mat --task cassi --mask large.mat --model four.safetensors",
            "cube.mat: is 24x20 pixels, the mask 60x60; crop one to the other",
        ),
        (f"restore --meas scene.mat {ALL}", "28 bands 2 columns apart make 24x74; give this camera's mask"),
        (f"restore turned.mat {FOUR}", "leaves open which axis is the bands; pass layout, .* (--layout)"),
        (f"restore dice.mat {ALL}", "the shape (28, 28, 28) leaves open which axis is the bands"),
        (f"restore cube31.mat {ALL}", "pass layout, .* (--layout)"),
        (
            f"restore cube31.mat --layout hwc {ALL}",
            "cube31.mat: has 31 bands and states no wavelengths, the model restores 28; give wavelengths, .* "
            "(--wavelengths)",
        ),
        (
            f"restore cube31.mat --wavelengths 500 700 --layout hwc {ALL}",
            "cube31.mat: wavelengths: cannot inter",
        ),
        (f"restore cube31.mat --wavelengths 700 400 --layout hwc {ALL}", "expected ascending numbers"),
        (f"restore cube31.mat --wavelengths 0.4 0.7 --layout hwc {ALL}", "multiply micrometres by 1000"),
        (f"restore cube31.mat --wavelengths 400 500 700 {ALL}", "expected one for each band, got 3"),
        (
            f"restore cube31.mat --layout hwc --wavelengths 400 700 {FOUR}",
            "has 31 bands, the model restores 4",
        ),
        (f"restore whole.mat {FOUR}", "holds integers (uint8, up to"),
        (f"restore --meas whole.mat {FOUR}", "holds integers (uint16, up to 1); pass range, .* (--range)"),
        (f"restore nan.mat {FOUR}", "nan.mat: `img`: holds NaN or Inf"),
        (f"restore --meas nan.mat {FOUR}", "nan.mat: `meas`: holds NaN or Inf"),
        (f"restore negative.mat {FOUR}", "`img`: holds negative values"),
        (f"restore --meas negative.mat {FOUR}", "`meas`: holds negative values"),
        (f"restore bright.mat {FOUR}", "expected floats in [0, 1], got up to 4095; pass range, .* (--range)"),
        (
            f"restore --meas bright.mat {FOUR}",
            "holds values up to 4095, where 4 bands in [0, 1] add up to 4 at",
        ),
        (f"restore --meas raw.mat {FOUR}", "raw.mat: y: 100% of the snapshot is above 1, up to 40"),
        (f"restore --meas black.mat {FOUR}", "black.mat: y: the snapshot is black"),
        (f"restore cut.mat {FOUR}", "cut.mat: damaged or not a .mat"),
        (f"restore --meas cut.mat {FOUR}", "cut.mat: damaged or not a .mat"),
        ("restore cube.mat --task cassi --mask cut.mat --model four.safetensors", "cut.mat: damaged or not"),
        (
            f"restore cube.mat --key img2 {FOUR}",
            "key: no array is called `img2`; the file holds `img` .* (--key)",
        ),
        (
            f"restore cube.mat --mask-key code {FOUR}",
            "no array is called `code`; the file holds `mask` .* (--mask-key)",
        ),
        (f"restore photos/photo.png {FOUR}", "expected a file that ends in .mat"),
        ("restore cube.mat --task cassi --mask mask.mat --model cut.safetensors", "cut.safetensors: damaged"),
        (
            "restore cube.mat --task cassi --mask mask.mat --model cassi99",
            "no shipped model is called 'cassi99'",
        ),
        (
            "restore cube.mat --task cassi --mask mask.mat --model cs25-unet-lorun9",
            "cs25-unet-lorun9: is a model for task cs, not cassi; for cassi these ship: cassi-unet-lorun9",
        ),
        (f"restore cube.mat {FOUR} -o OUT/out.png", "out.png: expected a name that ends in .mat or .npz"),
        (f"restore cube.mat {FOUR} -o none/out.mat", "no such folder to write out.mat into"),
        (f"restore cube.mat {FOUR} -o cube.mat", "cube.mat: is the input; choose another name"),
        (f"restore cube.mat {FOUR} -o ../lab0/mask.mat", "mask.mat: is the input"),
        (f"restore --meas scene.mat {FOUR} -o scene.mat", "scene.mat: is the input"),
        (
            f"restore cube.mat --figures {FOUR}",
            "figures: the wavelengths of these bands are not known; give them .* (--wavelengths)",
        ),
        (f"restore cube.mat --compare gap-tv {FOUR}", "compare: is for the pictures; .* (--figures)"),
        (
            f"restore cube.mat --figures --compare a b c d e f {FOUR}",
            "compare: pictures hold 6 methods at most, got 7",
        ),
        (
            f"restore cube.mat --figures --compare all.safetensors {FOUR}",
            "four.safetensors (4 bands, step 2), all.safetensors (28 bands, step 2); run them apart",
        ),
        (f"restore cube.mat --tile 8 {FOUR}", "tile: expected at least 84 pixels"),
        (f"restore cube.mat --scale real {FOUR}", "scale: is for a snapshot (meas), .* (--scale)"),
        (f"restore --meas scene.mat --layout hwc {FOUR}", "layout: is for a cube, .* (--layout)"),
        (f"restore cube.mat --ratio 0.5 {FOUR}", "--ratio is an option of task cs, this is for task cassi"),
        (f"restore cube.mat --measurement y.npz {FOUR}", "--measurement is an option of task cs"),
        (f"restore cube.mat --device warp {FOUR}", "device: 'warp' is not usable"),
        (
            "restore photos/photo.png --mask mask.mat --tile 200 -o OUT/a.png",
            "--mask is an option of task cassi, this is for task cs",
        ),
        ("restore -o OUT/a.png", "input: name an image or an .npz measurement"),
        (
            "restore photos/photo.png --task cs --model four.safetensors -o OUT/a.png",
            "four.safetensors: is a model for task cassi, not cs; for cs these ship: cs25-unet-lorun9",
        ),
        (
            "restore photos/photo.png --task cs --model gap-tv -o OUT/a.png",
            "no shipped model is called 'gap-tv'",
        ),
        (
            "eval photos --task cs --models four.safetensors",
            "four.safetensors: is a model for task cassi, not cs; for cs these ship: cs25-unet-lorun9",
        ),
        ("info cut.safetensors", "cut.safetensors: damaged"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(lab, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(lab)
    before = sorted(path.name for path in lab.rglob("*"))
    given = arguments.replace("OUT", str(tmp_path)).split()
    if given[0] == "restore" and "-o" not in given:
        given += ["-o", str(tmp_path / "out.mat")]
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1, printed
    position = 0
    for part in words.split(".*"):
        position = printed.err.find(part.strip(), position)
        assert position >= 0, (part, printed.err)
    assert not list(tmp_path.iterdir()) and sorted(path.name for path in lab.rglob("*")) == before
