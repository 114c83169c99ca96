"""physics.BlockCS against a Phi of the whole image that is built by brute force."""

import numpy as np
import pytest
import scipy.io
import torch

from lorun.physics import BlockCS, GaussianNoise


def dense_matrix(physics: BlockCS, height: int, width: int) -> torch.Tensor:
    """Phi of a whole image by brute force: block by block and pixel by pixel, zero beyond the border."""
    phi, side = physics.matrix().detach(), physics.block
    across, down = -(-width // side), -(-height // side)
    dense = torch.zeros(phi.shape[0], down, across, height, width, dtype=phi.dtype)
    for row in range(height):
        for column in range(width):
            pixel = (row % side) * side + column % side
            dense[:, row // side, column // side, row, column] = phi[:, pixel]
    return dense.reshape(-1, height * width)


@pytest.mark.parametrize("height, width", [(8, 8), (16, 24), (9, 17), (1, 1), (7, 20)])
@pytest.mark.parametrize("adapter_rank", [0, 3])
def test_A_and_adjoint_are_the_brute_force_matrix(height, width, adapter_rank):
    physics = BlockCS(0.3, block=8, adapter_rank=adapter_rank).double()
    if adapter_rank:
        torch.nn.init.normal_(physics.phi_up)
    dense = dense_matrix(physics, height, width)
    x = torch.rand(2, 1, height, width, dtype=torch.float64)
    y = physics.A(x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ dense.T, rtol=1e-12, atol=1e-12)
    back = physics.A_adjoint(y, (height, width))
    torch.testing.assert_close(back.flatten(1), y.flatten(1) @ dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio, rows", [(0.01, 11), (0.04, 41), (0.1, 103), (0.25, 256), (0.5, 512)])
def test_rows_are_the_fields_convention(ratio, rows):
    physics = BlockCS(ratio)
    assert physics.phi.shape == (rows, 1024)
    gram = physics.phi @ physics.phi.T
    torch.testing.assert_close(gram, torch.eye(rows), rtol=0, atol=1e-5)


def test_the_adapter_starts_equal_and_freezes_phi():
    physics = BlockCS(0.25)
    before = physics.matrix().clone()
    physics.add_adapter(4)
    assert torch.equal(physics.matrix(), before)
    trained = {name for name, p in physics.named_parameters() if p.requires_grad}
    assert trained == {"phi_up", "phi_down"}


def test_a_full_phi_that_is_trained_has_a_rate_of_its_own():
    physics = BlockCS(0.25)
    assert [*physics.parameter_groups()] == ["phi_lr"]
    assert [id(p) for p in physics.parameter_groups()["phi_lr"]] == [id(physics.phi)]
    assert BlockCS(0.25, learned=False).parameter_groups() == {}
    assert BlockCS(0.25, adapter_rank=4).parameter_groups() == {}


def test_the_state_dict_holds_phi_and_no_noise():
    assert [*BlockCS(0.25, noise=GaussianNoise(0.1)).state_dict()] == ["phi"]


@pytest.mark.parametrize("percent, rows", [(1, 10), (4, 43), (10, 109), (25, 272)])
def test_ista_nets_33x33_matrices_load(lorun_data, percent, rows):
    phi = scipy.io.loadmat(lorun_data / f"peers/phi_1089/phi_0_{percent}_1089.mat")["phi"]
    physics = BlockCS(percent / 100, block=33, phi=torch.from_numpy(phi), learned=False)
    x = np.random.default_rng(0).random((33, 66))
    y = physics.A(torch.from_numpy(x).float()[None, None])
    expected = phi @ x[:, 33:].reshape(-1)
    assert y.shape == (1, rows, 1, 2)
    np.testing.assert_allclose(y[0, :, 0, 1].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert not physics.phi.requires_grad


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: BlockCS(0), "ratio: expected a fraction"),
        (lambda: BlockCS(25), "0.25 for 25 %"),
        (lambda: BlockCS(), "give a sampling ratio"),
        (lambda: BlockCS(0.25, block=0), "block: expected"),
        (lambda: BlockCS(0.25, phi=torch.zeros(272, 1089)), "phi: expected"),
        (lambda: BlockCS(0.5, phi=torch.zeros(256, 1024)), "phi: expected 512 rows"),
        (lambda: BlockCS(0.25, adapter_rank=257), "adapter_rank: expected 1 to 256"),
        (lambda: BlockCS(0.25).A(torch.zeros(1, 3, 32, 32)), "one-channel image"),
        (lambda: BlockCS(0.25).A(torch.zeros(32, 32)), "one-channel image"),
        (lambda: BlockCS(0.25).A(torch.zeros(1, 1, 0, 32)), "at least one pixel"),
        (lambda: BlockCS(0.25).A_adjoint(torch.zeros(1, 103, 2, 2)), "another ratio"),
        (lambda: BlockCS(0.25).A_adjoint(torch.zeros(1, 256, 1, 1), (33, 32)), "size: expected at most"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()
