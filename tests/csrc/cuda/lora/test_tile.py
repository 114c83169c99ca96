"""The tile interface of csrc/cuda/lora/tile.cuh: its plain loops, and its tensor-core form, instruction by
instruction as the PTX ISA describes them."""

from __future__ import annotations

import ctypes

import pytest
import torch

from ..on_host import emulator
from .cases import MODES, UNIT, to_tf32

TILE, PITCH = 16, 40
FORMS = {"plain loops": [], "tensor cores": emulator.DEVICE_FORM}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS.keys())
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tile")
    return emulator.load(folder, [emulator.TESTS / "lora/tile_products.cu"], *request.param)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", MODES)
def test_product(library, name, transposed):
    dtype, tf32 = MODES[name]
    depth = 32 // dtype.itemsize
    lines, length = (depth, TILE) if transposed else (TILE, depth)
    stored = [torch.full((TILE, PITCH), torch.nan, dtype=dtype) for _ in range(2)]
    for operand in stored:
        operand[:lines, :length] = torch.randn(lines, length).to(dtype)
    out = torch.full((TILE, TILE), torch.nan)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*stored, out)]
    product = getattr(library, f"product_{name}")
    emulator.run(library, product, *pointers[:2], ctypes.c_bool(transposed), pointers[2])
    left, right = ((to_tf32(t) if tf32 else t).double()[:lines, :length] for t in stored)
    expected = left.T @ right if transposed else left @ right.T
    magnitude = left.abs().T @ right.abs() if transposed else left.abs() @ right.abs().T
    assert bool(((out.double() - expected).abs() <= depth * UNIT[torch.float32] * magnitude).all())
