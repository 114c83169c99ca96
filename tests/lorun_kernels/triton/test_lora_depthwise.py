"""The depthwise convolution and its gradients in Triton's interpreter, against their definition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lorun_kernels.triton.lora_problems import DEPTHWISE, DEPTHWISES

CHECKS = "tests.lorun_kernels.triton.lora_checks:"


@pytest.mark.parametrize("problem", DEPTHWISES.values(), ids=DEPTHWISES.keys())
@pytest.mark.parametrize("result", ["forward", "grad_input", "grad_adapter"])
def test_equals_the_definition(interpret, result, problem):
    interpret(CHECKS + f"check_{result}", problem)


@pytest.mark.parametrize("name", ["depthwise", "depthwise, 1 x 1"])
def test_adapter_gradients_without_atomics(interpret, name):
    interpret(CHECKS + "check_grad_adapter", DEPTHWISES[name], True)


@pytest.mark.parametrize("result", ["forward", "grad_input"])
def test_without_an_adapter_the_weight_is_used_as_it_is(interpret, result):
    interpret(CHECKS + f"check_{result}", replace(DEPTHWISE, adapter=False))
