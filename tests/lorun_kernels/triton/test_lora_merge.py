"""The merge of a layer and of a stage in Triton's interpreter, against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.lorun_kernels.triton.lora_checks import Problem
from tests.lorun_kernels.triton.lora_problems import DEPTHWISE, HALF

CHECKS = "tests.lorun_kernels.triton.lora_checks:"
LAYERS = [
    Problem(28, 28, rank=3),
    Problem(2, 28, weight_layout="channels_last"),
    Problem(28, 1, kernel=(1, 1), form="factored", scaling=-0.5),
    Problem(5, 7, kernel=(3, 5), weight_layout="transposed"),
    DEPTHWISE,
    replace(DEPTHWISE, form="factored"),
]


@pytest.mark.parametrize("problem", LAYERS)
def test_merge_equals_the_definition(interpret, problem):
    interpret(CHECKS + "check_merge", problem)


def test_merge_rounds_to_the_images_dtype(interpret):
    interpret(CHECKS + "check_merge", replace(LAYERS[0], dtype=HALF, weight_dtype=torch.float32))


def test_merging_a_stage_equals_merging_its_layers(interpret):
    interpret(CHECKS + "check_merge_stage", LAYERS)


def test_gradients_of_a_stage_equal_those_of_its_layers(interpret):
    interpret(CHECKS + "check_merge_stage_backward", LAYERS)
