"""Images of more elements than 32 bits count, in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests.lorun_kernels.triton.lora_checks import Problem
from tests.lorun_kernels.triton.lora_problems import SMALL

CHECKS = "tests.lorun_kernels.triton.lora_checks:"


@pytest.mark.parametrize("problem", [Problem(7, second=3, sliced=True), SMALL], ids=["full", "depthwise"])
def test_wide_indices_equal_the_definition(interpret, problem):
    interpret(CHECKS + "check_wide_indices", problem)
