"""csrc/cuda/cassi/bindings.cpp: what reaches a launcher, and what a wrong direct call is told.

The bindings are compiled for CPU tensors, with launchers that record their arguments.
"""

from pathlib import Path

import pytest
import torch

from .. import bindings_on_cpu

STREAM = 77
OFFSETS = [4, 0, 1]
B, C, H, W, MEASURED = 2, 3, 5, 6, 10

pytestmark = bindings_on_cpu.NEEDS_NVCC


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = Path(__file__).with_name("bindings_on_cpu.cpp")
    return bindings_on_cpu.load(source, tmp_path_factory.mktemp("bindings"))


@pytest.fixture
def ops(library):
    return torch.ops.lorun_cuda_on_cpu


def view(tensor, dims=4):
    """How a launcher sees a tensor; an absent one as null."""
    return [0] * (dims + 1) if tensor is None else [tensor.data_ptr(), *tensor.stride()]


def problem(dtype_code):
    return [B, C, H, W, MEASURED, dtype_code, *OFFSETS]


def last_call(library):
    return [int(word) for word in library.last_call().split()]


def cube(dtype=torch.float32):
    """Channels last, and with a gap between rows, so that no two strides are alike."""
    return torch.randn(B, H + 1, W, C, dtype=dtype)[:, 1:].permute(0, 3, 1, 2)


def measurement(dtype=torch.float32):
    return torch.randn(B, H, MEASURED + 1, dtype=dtype)[:, :, 1:]


def repeated_mask(dtype=torch.float32):
    return torch.randn(H, W, dtype=dtype).expand(B, C, H, W)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(("code", "dtype"), list(enumerate(DTYPES)), ids=str)
def test_products_reach_their_launchers(ops, library, code, dtype):
    x, y, mask = cube(dtype), measurement(dtype), repeated_mask(dtype)
    ops.cassi_forward(x, mask, OFFSETS, y)
    assert last_call(library) == [*problem(code), *view(x), *view(mask), *view(y), STREAM]
    ops.cassi_adjoint(y, mask, OFFSETS, x)
    assert last_call(library) == [*problem(code), *view(y), *view(mask), *view(x), STREAM]
    grad_mask = repeated_mask(torch.float64 if dtype == torch.float64 else torch.float32)
    ops.cassi_mask_grad(x, y, OFFSETS, grad_mask)
    assert last_call(library) == [*problem(code), *view(x), *view(y), *view(grad_mask), STREAM]


@pytest.mark.parametrize("hqs", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_step_reaches_its_launcher(ops, library, hqs, wanted):
    x, y, mask, out = (
        cube(torch.bfloat16),
        measurement(torch.bfloat16),
        cube(torch.bfloat16),
        cube(torch.bfloat16),
    )
    scale = torch.rand(1).expand(B)
    residual = measurement() if wanted else None
    ops.cassi_step(x, y, mask, scale, OFFSETS, hqs, out, residual)
    expected = [*problem(3), int(hqs), *view(x), *view(y), *view(mask), *view(scale), *view(out)]
    assert last_call(library) == [*expected, *view(residual, 3), STREAM]


@pytest.mark.parametrize("wanted", ["grad_x", "grad_y", "grad_mask", "grad_scale", "all"])
def test_a_step_backward_reaches_its_launcher(ops, library, wanted):
    grad, mask, scale = cube(), repeated_mask(), torch.rand(B, 2)[:, 0]
    results = {
        "grad_x": cube(),
        "grad_y": measurement(),
        "grad_mask": repeated_mask(),
        "grad_scale": torch.empty(B, H),
    }
    gx, gy, gm, gs = (tensor if wanted in (name, "all") else None for name, tensor in results.items())
    residual = measurement() if gm is not None or gs is not None else None
    x = cube() if gm is not None else None
    ops.cassi_step_backward(grad, residual, x, mask, scale, OFFSETS, True, gx, gy, gm, gs)
    expected = [*problem(1), 1, *view(grad), *view(residual, 3), *view(x), *view(mask), *view(scale)]
    expected += [*view(gx), *view(gy, 3), *view(gm), 0 if gs is None else gs.data_ptr(), STREAM]
    assert last_call(library) == expected


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"x": torch.ones(B, C, H, W, dtype=torch.int32)},
            "x must be Double, Float, Half or BFloat16, got Int",
        ),
        (
            {"x": torch.ones(C, H, W)},
            r"x must be \(B, C, H, W\), not empty, with at most 256 bands, got Float",
        ),
        ({"x": torch.ones(B, 0, H, W), "offsets": []}, "not empty"),
        ({"x": torch.ones(1, 257, 1, 1), "offsets": [0] * 257}, "with at most 256 bands"),
        ({"offsets": [0, 1]}, "offsets must hold one offset per band, 3, got 2"),
        ({"offsets": [0, 1, -1]}, r"offsets must be from 0 to 2\^31 - 1, got from -1 to 1"),
        ({"offsets": [0, 1, 2**31]}, "got from 0 to 2147483648"),
        ({"y": torch.ones(B, H, W)}, r"y must be Float \(2, 5, 10\), got Float \(2, 5, 6\)"),
        ({"mask": torch.ones(H, W)}, r"mask must be Float \(2, 3, 5, 6\), got Float \(5, 6\)"),
        ({"mask": torch.ones(B, C, H, W).half()}, r"mask must be Float .*, got Half"),
    ],
)
def test_a_wrong_argument_is_named(ops, change, sentence):
    arguments = {"x": cube(), "mask": repeated_mask(), "offsets": OFFSETS, "y": measurement()} | change
    with pytest.raises(RuntimeError, match=sentence):
        ops.cassi_forward(**arguments)


def test_a_wrong_scale_or_sum_is_named(ops):
    grad, mask, residual = cube(), repeated_mask(), measurement()
    call = [grad, residual, None, mask, torch.rand(B), OFFSETS, False, None, None, None]
    with pytest.raises(RuntimeError, match="grad_scale must be contiguous"):
        ops.cassi_step_backward(*call, torch.empty(H, B).T)
    with pytest.raises(RuntimeError, match=r"grad_scale must be Float \(2, 5\), got Float \(2\)"):
        ops.cassi_step_backward(*call, torch.empty(B))
    call[1] = None
    with pytest.raises(RuntimeError, match="residual must be given if grad_mask or grad_scale is wanted"):
        ops.cassi_step_backward(*call, torch.empty(B, H))
    call[1], call[9] = residual, torch.empty(B, C, H, W)
    with pytest.raises(RuntimeError, match="x must be given if grad_mask is wanted"):
        ops.cassi_step_backward(*call, None)
    with pytest.raises(RuntimeError, match=r"scale must be Float \(2\), got Double \(2\)"):
        ops.cassi_step(grad, residual, mask, torch.rand(B).double(), OFFSETS, False, grad, None)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (209, "contains no code for this GPU; rebuild LoRun"),
        (1, "cannot launch a kernel: the launcher's error"),
    ],
)
def test_a_failed_launch_raises(ops, library, error, sentence):
    library.fail_with(error)
    try:
        with pytest.raises(RuntimeError, match=sentence):
            ops.cassi_forward(cube(), repeated_mask(), OFFSETS, measurement())
    finally:
        library.fail_with(0)
