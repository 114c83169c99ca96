"""physics.CASSI against a dense Phi that is built entry by entry, for every form of mask and step."""

import copy

import pytest
import torch
from torch import Tensor

import lorun_kernels as lk
from lorun.denoisers import UNet
from lorun.physics import CASSI, GaussianNoise
from lorun.physics.cassi import nearest_column
from lorun.physics.smooth_start import smooth_start
from lorun.unfolding import UnfoldingNetwork

BATCH, BANDS, HEIGHT, WIDTH = 2, 4, 3, 5
CUBE = (BATCH, BANDS, HEIGHT, WIDTH)
STEPS = [2, 0, 3, [3, 0, 7, 3]]


@pytest.fixture(params=[2, 3, 4], ids=["(H, W)", "(C, H, W)", "(B, C, H, W)"])
def mask(request) -> Tensor:
    """A third of the mask is closed, and one row."""
    mask = torch.rand(CUBE[4 - request.param :], dtype=torch.float64)
    mask = mask * (torch.rand_like(mask) > 1 / 3)
    mask[..., 0, :] = 0
    return mask


@pytest.fixture(params=STEPS, ids=str)
def physics(request, mask) -> CASSI:
    return CASSI(mask, BANDS, request.param)


def offsets_of(physics: CASSI) -> list[int]:
    return [physics.step * band for band in range(BANDS)] if isinstance(physics.step, int) else physics.step


def dense_phi(physics: CASSI) -> Tensor:
    """Phi of every sample, (B, H * W', C * H * W)."""
    offsets = offsets_of(physics)
    full = physics.mask.expand(CUBE)
    phi = torch.zeros(BATCH, HEIGHT, WIDTH + max(offsets), BANDS, HEIGHT, WIDTH, dtype=torch.float64)
    for band, offset in enumerate(offsets):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                phi[:, row, column + offset, band, row, column] = full[:, band, row, column]
    return phi.flatten(3).flatten(1, 2)


def draw(physics: CASSI) -> tuple[Tensor, Tensor]:
    x = torch.randn(CUBE, dtype=torch.float64)
    return x, torch.randn(BATCH, HEIGHT, WIDTH + max(offsets_of(physics)), dtype=torch.float64)


def times(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", matrix, x.flatten(1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.view_as(found), rtol=1e-10, atol=1e-12)


def test_A_and_its_adjoint_are_the_dense_phi(physics):
    phi, (x, y) = dense_phi(physics), draw(physics)
    close(physics.A(x), times(phi, x))
    close(physics.A_adjoint(y), times(phi.mT, y))
    assert torch.equal(physics(x), physics.A(x))


def test_gram_is_the_diagonal_of_phi_phi_t(physics):
    phi = dense_phi(physics)
    gram = physics.gram().expand(BATCH, HEIGHT, -1)
    close(torch.diag_embed(gram.flatten(1)), phi @ phi.mT)


def test_hqs_step_without_a_penalty_measures_y_where_anything_was_measured(physics):
    w, y = draw(physics)
    measured = physics.gram().expand_as(y) > 0
    found = physics.A(physics.hqs_step(w, y, 0.0))
    close(found[measured], y[measured])
    assert not measured.all() and torch.equal(found[~measured], torch.zeros_like(y[~measured]))


def test_a_stored_shifted_mask_is_its_own_calibration():
    flat = torch.rand(HEIGHT, WIDTH, dtype=torch.float64)
    ideal = lk.shift(flat.expand(BANDS, HEIGHT, WIDTH), 2)
    calibrated = ideal * (0.9 + 0.2 * torch.rand_like(ideal))
    physics = CASSI.from_shifted(calibrated, 2, start="adjoint")
    x = torch.rand(CUBE, dtype=torch.float64)
    coded = lk.shift(x, 2) * calibrated
    close(physics.A(x), coded.sum(1))
    assert (physics.bands, physics.start_from, tuple(physics.mask.shape)) == (BANDS, "adjoint", CUBE[1:])
    assert not torch.allclose(physics.A(x), CASSI(flat, BANDS).A(x))
    close(CASSI.from_shifted(ideal).A(x), CASSI(flat, BANDS).A(x))


def test_the_starts_by_hand():
    mask = torch.tensor([[1.0, 0.5]])
    y = torch.tensor([[[3.0, 4.0, 5.0]]])
    # Two bands, one column apart: ones measure 1, 0.5 + 1 and 0.5.
    expected = {
        "adjoint": [[3, 2], [4, 2.5]],
        "shift_back": [[3, 4], [4, 5]],
        "average": [[3, 4 / 1.5], [4 / 1.5, 10]],
    }
    for start, bands in expected.items():
        expected_start = torch.tensor(bands, dtype=torch.float32).reshape(1, 2, 1, 2)
        found = CASSI(mask, 2, 1, start=start).start(y)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected_start, msg=start)


def test_the_average_start_restores_a_grey_cube_wherever_its_row_sees_light(physics):
    physics.start_from = "average"
    grey = torch.full(CUBE, 0.7, dtype=torch.float64)
    y = physics.A(grey)
    lit = (y > 0).any(-1).double()[:, None, :, None]
    close(physics.start(y), lit * grey)


def test_the_nearest_measured_column_by_hand():
    measured = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    # Of two columns at the same distance, the left one.
    assert nearest_column(measured).tolist() == [[2, 2, 2, 2, 2, 6, 6, 6], [0] * 8]


def test_the_smooth_start_begins_at_the_average(physics):
    _, y = draw(physics)
    average = CASSI(physics.mask, BANDS, physics.step, start="average").start(y)
    physics.start_from = "smooth"
    assert physics.start(y).is_contiguous(memory_format=torch.channels_last)
    close(physics.start(y), smooth_start(physics, y, average))


@pytest.mark.parametrize("start", ["average", "adjoint"])
def test_for_another_size_it_has_an_open_mask(start):
    noise = GaussianNoise(0.1)
    physics = CASSI(bands=3, step=[0, 1, 4], start=start, noise=noise)
    other = physics.for_size((6, 5))
    assert physics.size is None and other.size == (6, 5)
    assert torch.equal(other.mask, torch.ones(6, 5))
    assert (other.bands, other.step, other.start_from, other.noise) == (3, [0, 1, 4], start, noise)
    assert other.for_size((6, 5)) is other
    assert other.double().for_size((2, 7)).mask.dtype == torch.float64


def test_for_its_size_a_camera_with_a_mask_for_each_sample_measures_one_image():
    physics = CASSI(torch.rand(2, 3, 6, 5), 3)
    assert physics.for_size((6, 5)).A(torch.rand(1, 3, 6, 5)).shape == (1, 6, 9)


def test_the_mask_moves_with_the_module_but_is_no_weight():
    physics = CASSI(torch.rand(HEIGHT, WIDTH), BANDS)
    assert physics.state_dict() == {} and list(physics.parameters()) == []
    x = torch.rand(CUBE, dtype=torch.float64)
    assert copy.deepcopy(physics).double().A(x).dtype == torch.float64
    assert physics.to("meta").A(x.float().to("meta")).device.type == "meta"
    net = UnfoldingNetwork(CASSI(bands=BANDS), UNet(BANDS, 4), 2)
    other = UnfoldingNetwork(CASSI(torch.rand(HEIGHT, WIDTH), BANDS), UNet(BANDS, 4), 2)
    assert not any("mask" in name for name in other.state_dict())
    net.load_state_dict(other.state_dict())


@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_a_network_takes_its_mask_at_the_call(algorithm):
    denoiser = UNet(BANDS, 4)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    net = UnfoldingNetwork(CASSI(bands=BANDS), denoiser, 2, "shared", algorithm)
    own = CASSI(torch.rand(HEIGHT, WIDTH), BANDS)
    y = own.A(torch.rand(CUBE))
    with pytest.raises(ValueError, match="holds no mask.*physics=CASSI"):
        net(y)
    restored = net(y, physics=own)
    assert restored.shape == CUBE
    net.physics = own
    assert torch.equal(net(y), restored)
    assert not torch.equal(net(y, physics=CASSI(torch.rand(HEIGHT, WIDTH), BANDS)), restored)


def camera(*shape: int, **options) -> CASSI:
    return CASSI(torch.rand(shape or (HEIGHT, WIDTH)), **({"bands": BANDS} | options))


def bad_mask(value: float) -> Tensor:
    mask = torch.rand(HEIGHT, WIDTH)
    mask[1, 2] = value
    return mask


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: camera(256, 256, bands=28).check_measurement(torch.zeros(1, 660, 714)), "256, 310.*660"),
        (lambda: camera(660, 660, bands=28).start(torch.zeros(1, 256, 310)), "y: expected .B, 660, 714"),
        (lambda: camera().start(torch.zeros(1, HEIGHT, WIDTH)), "the mask and the step of this camera"),
        (lambda: camera(step=[0, 1, 1, 2]).A_adjoint(torch.zeros(1, HEIGHT, WIDTH)), "y: expected .B, 3, 7"),
        (lambda: camera().A_adjoint(torch.zeros(HEIGHT, WIDTH + 6)), "y: expected .B, 3, 11"),
        (
            lambda: camera(2, *CUBE[1:]).start(torch.zeros(3, HEIGHT, WIDTH + 6)),
            "expected 2 measurements.*got 3",
        ),
        (lambda: camera().A(torch.zeros(1, 31, HEIGHT, WIDTH)), "a cube .B, 4, 3, 5.*interpolate"),
        (lambda: camera().A(torch.zeros(1, BANDS, HEIGHT, WIDTH + 1)), "crop the cube or the mask"),
        (lambda: camera().A(torch.zeros(BANDS, HEIGHT, WIDTH)), "x: expected a cube"),
        (lambda: camera(31, HEIGHT, WIDTH), "mask: expected 4 bands in dimension 0"),
        (lambda: camera(BATCH, 31, HEIGHT, WIDTH), "mask: expected 4 bands in dimension 1"),
        (lambda: camera(7), "mask: expected .H, W., .C, H, W."),
        (lambda: camera(0, 7), "mask: expected .H, W."),
        (lambda: CASSI(bad_mask(float("nan")), BANDS), "mask: expected finite values"),
        (lambda: CASSI(bad_mask(float("inf")), BANDS), "mask: expected finite values"),
        (lambda: CASSI(bad_mask(-0.1), BANDS), "mask: expected finite values of at least 0"),
        (lambda: CASSI(torch.zeros(HEIGHT, WIDTH), BANDS), "some above it"),
        (lambda: CASSI(bands=BANDS).A(torch.zeros(CUBE)), "holds no mask"),
        (lambda: CASSI(bands=BANDS).start(torch.zeros(1, 3, 11)), "holds no mask"),
        (lambda: CASSI(bands=BANDS).gram(), "holds no mask"),
        (lambda: camera(start="zero"), "start: expected one of .*average, shift_back, adjoint"),
        (lambda: CASSI.from_shifted(torch.rand(HEIGHT, WIDTH)), "mask: expected a shifted mask"),
        (lambda: CASSI.from_shifted(torch.rand(9, 3, 16)), "wider than the largest offset"),
        (lambda: camera(bands=0), "bands: expected at least 1, got 0"),
        (lambda: camera(step=-1), "step: expected an int of at least 0 columns.*got -1"),
        (lambda: camera(step=1.5), "step: expected.*got 1.5"),
        (lambda: camera(step=[0, 1]), "one for each of 4 bands, got .0, 1."),
        (lambda: camera(step=[0, 1, -2, 3]), "step: expected"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("mask", [torch.ones(3, 5, dtype=torch.int64), [[1.0]]], ids=["integers", "a list"])
def test_a_mask_is_a_floating_point_tensor(mask):
    with pytest.raises(TypeError, match="mask: expected a floating-point tensor"):
        CASSI(mask, BANDS)


@pytest.mark.parametrize("start", ["smooth", "average", "shift_back", "adjoint"])
def test_a_measurement_has_the_masks_dtype(start):
    physics = CASSI(torch.rand(4, 9), 3, start=start)
    with pytest.raises(TypeError, match="y: expected the mask's torch.float32, got torch.bfloat16"):
        physics.start(torch.rand(1, 4, 13).bfloat16())
