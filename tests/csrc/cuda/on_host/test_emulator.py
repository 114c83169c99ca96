"""The emulation of CUDA on the CPU: it finds planted errors, and no race in the kernels."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "cuda_on_host"))
import emulator  # noqa: E402

if emulator.compiler() is None:
    pytest.skip("needs g++ to compile the kernels for the CPU", allow_module_level=True)

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


def test_an_asynchronous_copy_is_nan_until_it_was_waited_for(planted):
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
    command = [
        emulator.compiler(),
        *emulator.FLAGS,
        *emulator.INCLUDES,
        "-fsyntax-only",
        "-x",
        "c++",
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "weak declaration of" in result.stderr


def watch(program: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the launches of `program` under ThreadSanitizer, which exits with 66 after a report."""
    where = subprocess.run(
        [emulator.compiler(), "-print-file-name=libtsan.so"], capture_output=True, text=True
    )
    if not Path(where.stdout.strip()).is_absolute():
        pytest.skip("needs ThreadSanitizer (libtsan), which this g++ lacks")
    sources = [*emulator.kernels(program.stem.split("_")[0]), program]
    built = emulator.build(folder / "races", sources, "-fsanitize=thread", *flags)
    result = subprocess.run([built], capture_output=True, text=True, timeout=120)
    if "FATAL: ThreadSanitizer" in result.stderr:
        pytest.skip(f"ThreadSanitizer cannot run on this machine: {result.stderr.splitlines()[0]}")
    return result


@pytest.mark.parametrize("program", emulator.RACES, ids=lambda path: path.stem)
def test_the_kernels_have_no_race(program, tmp_path):
    result = watch(program, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("program", emulator.RACES, ids=lambda path: path.stem)
def test_without_barriers_the_race_check_reports(program, tmp_path):
    result = watch(program, tmp_path, "-DCUDA_ON_HOST_WITHOUT_SYNC")
    assert result.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in result.stderr
