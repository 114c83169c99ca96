"""The gradients of the convolution's adapter in Triton's interpreter, against their definition."""

from __future__ import annotations

import pytest

from tests.lorun_kernels.triton.lora_problems import FULL

CHECKS = "tests.lorun_kernels.triton.lora_checks:"
DETERMINISTIC = [
    *("factored, float16", "1 x 1, factored", "3 x 5", "sliced, two inputs, float16", "C = 31, float16"),
    *("many tiles", "stride 2, padding 1"),
]


@pytest.mark.parametrize("problem", FULL.values(), ids=FULL.keys())
def test_equals_the_definition(interpret, problem):
    interpret(CHECKS + "check_grad_adapter", problem)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_adapter_gradients_without_atomics(interpret, name):
    interpret(CHECKS + "check_grad_adapter", FULL[name], True)
