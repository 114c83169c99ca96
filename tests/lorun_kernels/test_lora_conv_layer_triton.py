"""The public low-rank layers reach the Triton kernels, in the interpreter, or ATen if there is no kernel."""

from __future__ import annotations

import pytest
import torch

CHECKS = "tests.lorun_kernels.layers_on_triton:"

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_with_every_option(interpret, layout, dtype):
    interpret(CHECKS + "check_layer", layout, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(interpret, layout):
    interpret(CHECKS + "check_opcheck", layout)


@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
def test_what_is_not_a_number_stays_so(interpret, activation):
    interpret(CHECKS + "check_not_a_number", activation)


def test_an_image_without_a_batch(interpret):
    interpret(CHECKS + "check_unbatched")


def test_a_base_that_is_trained(interpret):
    interpret(CHECKS + "check_trained_base")


def test_what_has_no_kernel_goes_through_aten(interpret):
    interpret(CHECKS + "check_what_has_no_kernel")
