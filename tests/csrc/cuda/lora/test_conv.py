"""csrc/cuda/lora/conv.cu, executed on the CPU by the emulation in on_host.

Every tensor lies between NaN guards, and so does shared memory, which starts as NaN.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ..on_host import emulator
from .cases import (
    CASES,
    MODES,
    REAL_LAYERS,
    SHAPES,
    Case,
    check_conv,
    check_grad_input,
)
from .launchers import Adapted, LoraConv, UnguardedCall, problem_view

WHOLE_SHARED_MEMORY = 227 * 1024
SOURCES = ["conv.cu", "depthwise.cu"]


def load(folder: Path, *flags: str) -> ctypes.CDLL:
    kernels = [emulator.CUDA / "lora" / name for name in SOURCES]
    return emulator.load(folder, [*kernels, emulator.TESTS / "lora/launchers.cpp"], *flags)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return load(tmp_path_factory.mktemp("lora_on_host"))


@pytest.fixture(scope="module")
def device_form(tmp_path_factory):
    return load(tmp_path_factory.mktemp("device_form"), *emulator.DEVICE_FORM)


@pytest.fixture
def lora(library):
    library.cuda_on_host_set_shared_limit(WHOLE_SHARED_MEMORY)
    library.cuda_on_host_set_multiprocessors(2)
    return LoraConv(library)


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def mode(request) -> tuple[torch.dtype, bool]:
    return request.param


# Both sizes of elements see every shape.
PAIRS = {
    f"{name}-{mode}": (case, MODES[mode])
    for name, case in CASES.items()
    for mode in (("float32", "bfloat16") if name in SHAPES else MODES)
}


@pytest.mark.parametrize(("case", "mode"), PAIRS.values(), ids=PAIRS.keys())
def test_conv(lora, case, mode):
    check_conv(lora, case, *mode)


@pytest.mark.parametrize(("case", "mode"), PAIRS.values(), ids=PAIRS.keys())
def test_grad_input(lora, case, mode):
    check_grad_input(lora, case, *mode)


DEVICE_FORM_CASES = {
    "28 to 28": Case((28, 28), size=(1, 2, 10), activation="gelu", residual=True),
    "12 to 40, strided": Case((12, 40), size=(1, 3, 8), stride=(2, 1)),
    "two inputs, 1x1": Case((40, 5), kernel=(1, 1), padding=(0, 0), second=8, size=(2, 4, 8)),
}


@pytest.mark.parametrize("case", DEVICE_FORM_CASES.values(), ids=DEVICE_FORM_CASES.keys())
@pytest.mark.parametrize("mode", list(MODES.values())[1:], ids=list(MODES)[1:])
def test_with_the_instructions_of_tensor_cores(device_form, case, mode):
    lora = LoraConv(device_form)
    check_conv(lora, case, *mode)
    check_grad_input(lora, case, *mode)


DIVIDED_OTHERWISE = {
    "narrow slices": (Case((28, 56), size=(1, 4, 9)), 60, 1),
    "a tap at a time": (Case((8, 8), dilation=(9, 9), padding=(9, 9), size=(1, 4, 20)), 40, 1),
    "weights merged again": (Case((40, 28), size=(2, 4, 9), stride=(1, 2)), 16, 1),
    "weights merged again, strided": (Case((12, 40), stride=(2, 2), second=4), 13, 1),
    "up in two rounds": (Case((12, 60), size=(1, 2, 3), rank=12), 227, 1),
    "up does not fit": (Case((5, 7), size=(1, 2, 3), rank=200), 227, 1),
    "small tiles": (Case((28, 56), size=(2, 18, 9), activation="gelu", residual=True), 227, 100),
}


@pytest.mark.parametrize(
    ("case", "shared_kib", "multiprocessors"), DIVIDED_OTHERWISE.values(), ids=DIVIDED_OTHERWISE.keys()
)
def test_devices_on_which_the_problem_is_divided_otherwise(
    library, lora, case, shared_kib, multiprocessors, mode
):
    library.cuda_on_host_set_shared_limit(shared_kib * 1024)
    library.cuda_on_host_set_multiprocessors(multiprocessors)
    check_conv(lora, case, *mode)
    check_grad_input(lora, case, *mode)


def plan_of(
    lora: LoraConv, case: Case, dtype: torch.dtype, shared_kib: int = 227, multiprocessors: int = 132
):
    whole = torch.empty((), dtype=dtype).expand(case.size[0], case.channels[0], *case.size[1:])
    adapted = case.adapted(dtype)
    problem = problem_view(whole, case.out_size, adapted.weight, case.geometry, case.second, False)
    return lora.plan(problem, adapted, shared_kib * 1024, multiprocessors)


def test_the_divisions_are_those_that_are_meant(lora):
    """Otherwise the test above would show nothing."""
    plans = {
        name: plan_of(lora, case, torch.float32, shared, count)
        for name, (case, shared, count) in DIVIDED_OTHERWISE.items()
    }
    assert plans["narrow slices"].slices > 1 and plans["narrow slices"].resident
    assert not plans["a tap at a time"].whole and plans["a tap at a time"].resident
    assert not plans["weights merged again"].resident
    assert not plans["weights merged again, strided"].resident
    assert 0 < plans["up in two rounds"].staged_outs < 60
    assert plans["up does not fit"].resident and plans["up does not fit"].staged_outs == 0
    assert (plans["small tiles"].warps, plans["small tiles"].columns) == (2, 1)


@pytest.mark.parametrize("name", REAL_LAYERS)
def test_real_layers_merge_their_weights_once(lora, name):
    case = replace(REAL_LAYERS[name], size=(8, 256, 256))
    plan = plan_of(lora, case, torch.bfloat16)
    assert (plan.warps, plan.whole, plan.resident) == (8, 1, 1)
    assert plan.staged_outs > 0
    assert plan.slices * plan.columns * 16 < case.channels[1] + 32


def test_two_blocks_of_the_28_channel_layer_fit_beside_each_other(lora):
    plan = plan_of(lora, Case((28, 28), size=(8, 256, 256)), torch.bfloat16)
    assert plan.stages == 3 and 2 * (plan.shared + 1024) <= 228 * 1024


def test_shared_memory_that_is_too_small_is_refused(library, lora):
    library.cuda_on_host_set_shared_limit(1024)
    with pytest.raises(emulator.KernelError, match="cudaError 1"):
        check_conv(lora, Case(), torch.float32, False)


@pytest.mark.parametrize("size", [(0, 4, 5), (2, 0, 5)])
def test_empty_images_launch_nothing(lora, size):
    case = Case(size=size, padding=(0, 1), kernel=(1, 3))
    adapted = case.adapted(torch.float32)
    image, out = case.image(5, size[1:], torch.float32), case.out_image(torch.float32)
    output, _ = lora.conv(image, adapted, case.geometry, out)
    grad, _ = lora.grad_input(out, adapted, case.geometry, image)
    assert output.numel() == grad.numel() == 0


def test_infinities_reach_their_neighbours_only(lora, mode):
    """Not even as 0 * inf: neither through channels that do not exist nor through another tile."""
    dtype, tf32 = mode
    case = Case((5, 7), size=(1, 20, 20))
    adapted = Adapted(torch.ones(7, 5, 3, 3, dtype=dtype))
    image = torch.ones(1, 5, 20, 20, dtype=dtype).to(memory_format=torch.channels_last)
    image[0, 2, 15, 15] = torch.inf
    output, _ = lora.conv(image, adapted, case.geometry, case.out_image(dtype), tf32=tf32)
    reached = torch.zeros(1, 7, 20, 20, dtype=torch.bool)
    reached[:, :, 14:17, 14:17] = True
    assert torch.equal(output.isinf(), reached)
    assert not bool(output.isnan().any())


def test_nan_passes_through_every_activation(lora):
    case = Case((5, 7), size=(1, 2, 2))
    image = torch.full((1, 5, 2, 2), torch.nan).to(memory_format=torch.channels_last)
    for activation in ("relu", "gelu", "leaky_relu"):
        adapted = case.adapted(torch.float32)
        output, _ = lora.conv(
            image, adapted, case.geometry, case.out_image(torch.float32), activation=activation
        )
        assert bool(output.isnan().all())


def test_images_beyond_2_31_elements(library, lora):
    """Samples so far apart that a 32-bit offset would be wrong; only their own pages are touched."""
    del lora
    shape, far = (2, 8, 4, 5), 2**31 + 64
    strides = (far, 1, 40, 8)

    def distant() -> torch.Tensor:
        return torch.empty(far + 160, dtype=torch.bfloat16).as_strided(shape, strides)

    case = Case((8, 8), size=(2, 4, 5), bias=False)
    adapted = case.adapted(torch.bfloat16)
    image, output = distant(), distant()
    image.copy_(torch.randn(shape))
    LoraConv(library, UnguardedCall).conv(image, adapted, case.geometry, output)
    near, _ = LoraConv(library).conv(
        image.contiguous(memory_format=torch.channels_last),
        adapted,
        case.geometry,
        case.out_image(torch.bfloat16),
    )
    assert torch.equal(output.contiguous(), near.contiguous())
