"""The emulation of CUDA on the CPU finds planted errors."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch

from . import emulator

SHARED = 1000


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return emulator.load(tmp_path_factory.mktemp("planted"), [emulator.HERE / "planted.cu"])


def write_shared(planted, index: int) -> None:
    emulator.run(planted, planted.planted_write_shared, ctypes.c_int64(SHARED), ctypes.c_int(index))


@pytest.mark.parametrize("index", [0, SHARED - 1])
def test_writes_inside_shared_memory_pass(planted, index):
    write_shared(planted, index)


@pytest.mark.parametrize(("index", "message"), [(-1, "before its shared"), (SHARED, "beyond the 1000 bytes")])
def test_a_write_outside_of_shared_memory_is_caught(planted, index, message):
    with pytest.raises(emulator.KernelError, match=message):
        write_shared(planted, index)


def test_unwritten_shared_memory_is_nan(planted):
    out = torch.zeros(1)
    emulator.run(planted, planted.planted_read_unwritten, ctypes.c_void_p(out.data_ptr()))
    assert bool(out.isnan())


def test_a_thread_that_leaves_before_the_barrier_is_caught(planted):
    with pytest.raises(emulator.KernelError, match="waited in __syncthreads"):
        emulator.run(planted, planted.planted_leave_early)


def test_a_thread_that_leaves_before_the_barrier_of_its_warp_is_caught(planted):
    with pytest.raises(emulator.KernelError, match="waited in __syncwarp"):
        emulator.run(planted, planted.planted_leave_warp_early)


def test_an_asynchronous_copy_is_nan_until_it_has_been_waited_for(planted):
    given, out = torch.tensor([2.0]), torch.zeros(2)
    pointers = ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr())
    emulator.run(planted, planted.planted_copy_async, *pointers)
    assert bool(out[0].isnan())
    assert out[1] == 2


# Elements 3, 4 and 5 of each row of 6 are a gap.
@pytest.mark.parametrize(("index", "inside"), [(0, True), (8, True), (-1, False), (3, False), (9, False)])
def test_a_write_outside_of_a_tensor_is_caught(planted, index, inside):
    guarded = emulator.Guarded(torch.zeros(2, 6)[:, :3])
    pointer = ctypes.c_void_p(guarded.tensor.data_ptr())
    emulator.run(planted, planted.planted_write_global, pointer, ctypes.c_int(index))
    if inside:
        guarded.check()
    else:
        with pytest.raises(emulator.KernelError, match=rf"elements \[{index}\]"):
            guarded.check()


def test_shared_memory_beyond_the_device_is_refused(planted):
    planted.cuda_on_host_set_shared_limit(SHARED - 1)
    try:
        with pytest.raises(emulator.KernelError, match="cudaError 1"):
            write_shared(planted, 0)
    finally:
        planted.cuda_on_host_set_shared_limit(227 * 1024)


def test_static_shared_memory_is_refused_by_the_compiler(tmp_path):
    """It would be neither shared nor guarded."""
    source = tmp_path / "static.cu"
    source.write_text(
        '#include "cuda/launch.cuh"\n__global__ void kernel() { __shared__ float row[4]; row[0] = 0; }'
    )
    options = [*emulator.FLAGS, *emulator.INCLUDES, "-fsyntax-only", "-x", "c++"]
    result = subprocess.run([emulator.compiler(), *options, source], capture_output=True, text=True)
    assert result.returncode != 0
    assert "weak declaration of" in result.stderr
