"""The convolution and the gradient of its inputs in Triton's interpreter, against their definition."""

from __future__ import annotations

import pytest
import torch

from tests.lorun_kernels.triton.lora_checks import Problem
from tests.lorun_kernels.triton.lora_problems import FULL, HALF

CHECKS = "tests.lorun_kernels.triton.lora_checks:"
PLAIN = {
    "float32": Problem(adapter=False),
    "float32, two inputs": Problem(7, 5, second=3, adapter=False, weight_layout="channels_last"),
    "float16, float32 weight": Problem(adapter=False, dtype=HALF, weight_dtype=torch.float32),
}


@pytest.mark.parametrize("problem", FULL.values(), ids=FULL.keys())
@pytest.mark.parametrize("result", ["forward", "grad_input"])
def test_equals_the_definition(interpret, result, problem):
    interpret(CHECKS + f"check_{result}", problem)


@pytest.mark.parametrize("problem", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("result", ["forward", "grad_input"])
def test_without_an_adapter_the_weight_is_used_as_it_is(interpret, result, problem):
    interpret(CHECKS + f"check_{result}", problem)
