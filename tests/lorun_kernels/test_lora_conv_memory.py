"""What a layer keeps for its backward pass, by saved-tensor hooks and by resident size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorun_kernels import lora_conv2d, lora_linear

LONG_RUN = """
import sys

import torch
from lorun_kernels import lora_conv2d

def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20

# W is 2.25 MiB, the input 64 KiB: 200 kept Ws would be 450 MiB.
layout = getattr(torch, sys.argv[1])
image = torch.randn(1, 256, 8, 8).to(memory_format=layout).requires_grad_()
weight = torch.randn(256, 256, 3, 3).to(memory_format=layout)
up = torch.randn(768, 6, requires_grad=True)
down = torch.randn(6, 768, requires_grad=True)

def call():
    return lora_conv2d(image, weight, up, down, padding=1)

call().sum().backward()
before = resident_mib()
outputs = [call() for _ in range(200)]
kept = resident_mib() - before
torch.stack(outputs).sum().backward()
del outputs
for _ in range(200):
    call().sum().backward()
print(kept, resident_mib() - before)
"""


def saved_storages(call) -> dict[int, int]:
    """Address and bytes of every storage that autograd keeps while `call` runs."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return kept


def assert_keeps_only(call, image, weight, up, down):
    kept = saved_storages(call)
    kept.pop(weight.untyped_storage().data_ptr(), None)
    assert set(kept) <= {t.untyped_storage().data_ptr() for t in (image, up, down)}
    assert sum(kept.values()) <= sum(t.untyped_storage().nbytes() for t in (image, up, down))


@pytest.mark.parametrize("frozen", [True, False])
def test_convolution_keeps_only_the_input_and_the_small_matrices(conv_sample, frozen):
    image, weight, up, down, bias = conv_sample.tensors(requires_grad=True)
    weight.requires_grad_(not frozen)
    call = lambda: lora_conv2d(image, weight, up, down, bias, *conv_sample.options)  # noqa: E731
    assert_keeps_only(call, image, weight, up, down)


def test_autocast_keeps_no_copy_of_the_parameters(make_conv_sample):
    sample = make_conv_sample()
    _, weight, up, down, bias = sample.tensors(requires_grad=True)
    image = sample.tensors(torch.bfloat16)[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        call = lambda: lora_conv2d(image, weight, up, down, bias, *sample.options)  # noqa: E731
        assert_keeps_only(call, image, weight, up, down)


def test_linear_keeps_only_the_input_and_the_small_matrices():
    shapes = [(5, 7, 12), (9, 12), (9, 2), (2, 12)]
    image, weight, up, down = (torch.randn(shape, requires_grad=True) for shape in shapes)
    assert_keeps_only(lambda: lora_linear(image, weight, up, down), image, weight, up, down)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident size is read from /proc")
# The first setting makes malloc return what is freed: resident is then what is alive. By default glibc leaves
# holes, under a plain convolution too (up to 110 MiB here); merged weights among them would be 450 MiB.
@pytest.mark.parametrize("setting, slack", [({"MALLOC_MMAP_THRESHOLD_": "65536"}, 10), ({}, 150)])
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_resident_size_over_200_calls_holds_no_merged_weight(layout, setting, slack):
    command = [sys.executable, "-c", LONG_RUN, layout]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | setting
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, after = map(float, result.stdout.split())
    outputs = 12.5
    assert kept <= outputs + slack
    assert after <= outputs + slack
