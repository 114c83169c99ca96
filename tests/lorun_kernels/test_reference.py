"""The definitions against formulas written out here; the backends are tested against the definitions."""

import pytest
import torch
import torch.nn.functional as F

from lorun_kernels import reference


def test_merging_is_equation_4_element_by_element():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 3)
    up, down = torch.randn(4 * 2, 2), torch.randn(2, 3 * 3)
    product = (up @ down).flatten()
    expected = weight.clone()
    for index in range(weight.numel()):
        expected.view(-1)[index] += 0.5 * product[index]
    torch.testing.assert_close(reference.merge_lora(weight, up, down, 0.5), expected)


def test_the_factored_form_is_two_convolutions():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 3, 6, 5).double(), torch.zeros(4, 3, 3, 3).double()
    up, down = torch.randn(4, 2).double(), torch.randn(2, 27).double()
    found = reference.lora_conv2d(x, weight, up, down, padding=1, form="factored")
    narrow = F.conv2d(x, down.view(2, 3, 3, 3), padding=1)
    torch.testing.assert_close(found, F.conv2d(narrow, up.view(4, 2, 1, 1)))


@pytest.mark.parametrize("step", [0, 2, [0, 3, 1]])
def test_cassi_is_a_sum_over_shifted_bands(step):
    torch.manual_seed(0)
    x, mask = torch.randn(1, 3, 2, 4).double(), torch.rand(2, 4).double()
    offsets = reference.band_offsets(step, 3)
    y = torch.zeros(1, 2, 4 + max(offsets)).double()
    for band, offset in enumerate(offsets):
        y[:, :, offset : offset + 4] += mask * x[:, band]
    torch.testing.assert_close(reference.cassi_forward(x, mask, step), y)


@pytest.mark.parametrize("name", [None, "relu", "gelu", "leaky_relu"])
def test_activations(name):
    z = torch.linspace(-2, 2, 9).double()
    by_hand = {
        None: z,
        "relu": z.clamp_min(0),
        "gelu": z * 0.5 * (1 + torch.erf(z / 2**0.5)),
        "leaky_relu": torch.where(z > 0, z, 0.2 * z),
    }
    torch.testing.assert_close(reference.activate(z, name, 0.2), by_hand[name])
