"""Every Triton kernel compiled for GPUs that are not here, within the budgets of budgets.py."""

from __future__ import annotations

import re

import pytest
import torch

from tests.lorun_kernels.triton.budgets import ARCHS, BUDGETS, LAUNCHES, SHARED_MEMORY, Budget, cases
from tests.triton_workers import triton_workers

pytest.importorskip("triton", reason="Triton is not installed")


def usages(launch: str, arch: int) -> list:
    """Runs in a worker: (case, usage) of every kernel that a launch starts, over all cases."""
    from tests.lorun_kernels.triton.compiler import compile_launches

    def launched(case):
        return compile_launches(lambda: LAUNCHES[launch](case), arch)

    return [(case, usage) for case in cases(launch) for usage in launched(case)]


@pytest.fixture(scope="module")
def compiled():
    """launch, arch -> (case, usage) of its kernels."""
    with triton_workers(interpret=False) as pool:
        pending = {(launch, arch): pool.submit(usages, launch, arch) for launch in LAUNCHES for arch in ARCHS}
        return {key: future.result() for key, future in pending.items()}


def test_every_kernel_has_a_budget(compiled):
    used = {
        (launch, usage.kernel, case.kind) for (launch, _), found in compiled.items() for case, usage in found
    }
    assert used == {(budget.launch, budget.kernel, budget.kind) for budget in BUDGETS}


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: f"{b.launch}, {b.kernel}, {b.kind}")
@pytest.mark.parametrize("arch", ARCHS)
def test_kernel_stays_within_its_budget(compiled, budget: Budget, arch):
    registers = budget.registers[ARCHS.index(arch)]
    found = [
        (case, usage)
        for case, usage in compiled[budget.launch, arch]
        if (usage.kernel, case.kind) == (budget.kernel, budget.kind)
    ]
    for case, usage in found:
        print(
            f"{budget.launch}, {usage.kernel}, sm_{arch}, {case.kind} {case.shape} {case.dtype}: "
            f"{usage.warps} warps, {usage.registers} of {registers} registers, {usage.spills} of 0 bytes "
            f"spilled, {usage.shared} of {budget.shared} bytes shared"
        )
    for _, usage in found:
        assert usage.registers <= registers
        assert usage.spills == 0
        assert usage.shared <= min(budget.shared, SHARED_MEMORY[arch])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("launch", ["cassi forward", "cassi adjoint", "cassi pgd", "cassi hqs backward"])
def test_bfloat16_is_rounded_to_nearest(compiled, launch, arch):
    """Unlike in the interpreter: by a conversion, or by a product that narrows, whose default this is."""
    for case, usage in compiled[launch, arch]:
        narrowing = [re.match(r"(?:cvt|fma|mul)(\.r\w+)?\.bf16", name) for name in usage.instructions]
        roundings = {match[1] for match in narrowing if match}
        assert roundings <= {".rn", None}
        assert bool(roundings) == (case.dtype == torch.bfloat16)


@pytest.mark.parametrize("arch", ARCHS)
def test_an_even_step_moves_two_columns_at_once(compiled, arch):
    """The 256 columns of the usual cubes are aligned, and so is every band that an even step has shifted."""
    for case, usage in compiled["cassi pgd", arch]:
        if case.layout == "contiguous" and case.shape[-1] == 256:
            # Two bfloat16 are one word.
            pair = "v2.b32" if case.dtype == torch.float32 else "b32"
            assert f"ld.global.{pair}" in usage.instructions
            assert f"st.global.{pair}" in usage.instructions
            assert "st.global.b16" not in usage.instructions


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("launch", ["lora forward", "lora grad input", "lora grad adapter"])
def test_the_products_run_on_tensor_cores(compiled, launch, arch):
    """Except the exact products of float32; a kernel that Triton turned into a trap has none."""
    kernels = ("_conv_kernel", "_stationary_kernel", "_adapter_kernel")
    seen = set()
    for case, usage in compiled[launch, arch]:
        if usage.kernel in kernels:
            products = any(re.match(r"mma|wgmma|tcgen05\.mma", name) for name in usage.instructions)
            assert products == (case.kind != "float32")
            seen.add(usage.kernel)
    assert seen


@pytest.mark.parametrize("arch", (80, 90))
def test_w_stays_in_the_kernel_where_it_fits(compiled, arch):
    kernels = {case: usage.kernel for case, usage in compiled["lora forward", arch]}
    stays = {
        (case.channels, case.out)
        for case, kernel in kernels.items()
        if kernel == "_stationary_kernel" and case.kind == "16-bit"
    }
    assert stays == {(2, 28), (28, 28), (56, 56), (28, 1)}


@pytest.mark.parametrize("arch", ARCHS)
def test_28_channels_move_four_at_once(compiled, arch):
    """56 bytes a pixel are not a multiple of 16: Triton has to be told what divides the strides."""
    for case, usage in compiled["lora forward", arch]:
        if (case.channels, case.out) == (28, 28) and usage.kernel != "_merge_kernel":
            pair = "v2.b32" if case.kind == "16-bit" else "v4.b32"
            assert f"st.global.{pair}" in usage.instructions
            assert "st.global.b16" not in usage.instructions
