"""The public low-rank layers reach the Triton kernels, in the interpreter, and ATen where there is none."""

from __future__ import annotations

import pytest
import torch
from triton_workers import triton_workers

pytest.importorskip("triton", reason="Triton is not installed")

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def check(name: str, *arguments) -> None:
    """Runs in a worker: the first import of Triton is there, after its mode is set."""
    import lora_public_checks

    getattr(lora_public_checks, name)(*arguments)


@pytest.fixture(scope="module")
def interpret():
    with triton_workers(interpret=True, count=1) as pool:
        yield lambda *arguments: pool.submit(check, *arguments).result()


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_with_every_option(interpret, layout, dtype):
    interpret("check_layer", layout, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(interpret, layout):
    interpret("check_opcheck", layout)


@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
def test_what_is_not_a_number_stays_so(interpret, activation):
    interpret("check_not_a_number", activation)


def test_an_image_without_a_batch(interpret):
    interpret("check_unbatched")


def test_a_base_that_is_trained(interpret):
    interpret("check_trained_base")


def test_linear_layers(interpret):
    interpret("check_linear")


def test_what_has_no_kernel_goes_through_aten(interpret):
    interpret("check_what_has_no_kernel")


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_stage_weights_merge_in_one_launch(interpret, form, dtype):
    interpret("check_stages", form, dtype)


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_gradients_of_a_stage_in_one_launch(interpret, form, dtype):
    interpret("check_gradients_of_a_stage", form, dtype)


def test_some_gradients_of_a_stage(interpret):
    interpret("check_some_gradients_of_a_stage")


def test_stages_that_move_to_another_dtype(interpret):
    interpret("check_stages_that_move_to_another_dtype")


def test_an_adapter_that_changed_before_the_backward_pass_is_noticed(interpret):
    interpret("check_a_changed_adapter_is_noticed")


def test_a_stage_compiles_with_its_gradients(interpret):
    interpret("check_compiled_stage")
