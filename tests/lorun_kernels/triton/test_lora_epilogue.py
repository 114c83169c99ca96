"""Bias, activation and residual of every kernel in Triton's interpreter, against their definition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lorun_kernels.triton.lora_checks import ACTIVATIONS, Problem
from tests.lorun_kernels.triton.lora_problems import HALF, SMALL

CHECKS = "tests.lorun_kernels.triton.lora_checks:"
EPILOGUES = {
    f"{activation}, {name}": replace(
        problem, activation=activation, residual=residual, bias=not residual, preactivation=not residual
    )
    for activation in ACTIVATIONS
    for name, problem, residual in [
        ("streaming, residual", Problem(second=2), True),
        ("streaming, preactivation", Problem(), False),
        ("stationary, residual", Problem(dtype=HALF), True),
        ("stationary, preactivation", Problem(dtype=HALF), False),
        ("depthwise, residual", SMALL, True),
        ("depthwise, preactivation", SMALL, False),
    ]
}


@pytest.mark.parametrize("problem", EPILOGUES.values(), ids=EPILOGUES.keys())
def test_epilogue_equals_the_definition(interpret, problem):
    interpret(CHECKS + "check_forward", problem)
