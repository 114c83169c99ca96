"""StageWeights in Triton's interpreter: a stage is merged, and differentiated, in one launch."""

from __future__ import annotations

import pytest
import torch

CHECKS = "tests.lorun_kernels.layers_on_triton:"


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_stage_weights_merge_in_one_launch(interpret, form, dtype):
    interpret(CHECKS + "check_stages", form, dtype)


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_gradients_of_a_stage_in_one_launch(interpret, form, dtype):
    interpret(CHECKS + "check_gradients_of_a_stage", form, dtype)


def test_some_gradients_of_a_stage(interpret):
    interpret(CHECKS + "check_some_gradients_of_a_stage")


def test_stages_that_move_to_another_dtype(interpret):
    interpret(CHECKS + "check_stages_that_move_to_another_dtype")


def test_an_adapter_that_changed_before_the_backward_pass_is_noticed(interpret):
    interpret(CHECKS + "check_a_changed_adapter_is_noticed")


def test_a_stage_compiles_with_its_gradients(interpret):
    interpret(CHECKS + "check_compiled_stage")
