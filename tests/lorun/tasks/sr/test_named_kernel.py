import numpy as np
import pytest
import torch

from lorun.errors import ArgumentError
from lorun.tasks.sr.named_kernel import named_kernel


def test_a_kernel_that_sums_to_1_is_taken_as_it_is():
    found = named_kernel("a", np.full((3, 3), 1 / 9))
    assert found.notes == () and found.name == "a" and found.kernel.dtype == torch.float32
    torch.testing.assert_close(found.kernel, torch.full((3, 3), 1 / 9))


def test_another_sum_is_divided_by_and_the_centre_of_an_even_size_is_said():
    found = named_kernel("a", np.full((4, 3), 2, np.uint8))
    assert found.kernel.sum().item() == pytest.approx(1)
    assert found.notes == (
        "the kernel was divided by its sum, 24",
        "the centre of the 4x3 kernel is row 2, column 1, counted from 0",
    )


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((3, 3)), "kernel: k.mat: expected a sum above 0, got 0; it would leave no image"),
        (-np.ones((3, 3)), "expected a sum above 0, got -9"),
        (np.full((3, 3), np.nan), "kernel: k.mat: holds NaN or Inf"),
        (np.ones(9), r"kernel: k.mat: expected \(kh, kw\) numbers, got float64 \(9,\)"),
        (np.ones((3, 3), complex), r"expected \(kh, kw\) numbers, got complex128"),
        (np.ones((0, 3)), r"expected \(kh, kw\) numbers, got float64 \(0, 3\)"),
    ],
)
def test_what_is_no_kernel(array, words):
    with pytest.raises(ArgumentError, match=words):
        named_kernel("a", array, "k.mat")
