"""csrc/cuda/cassi/operators.cu, executed on the CPU by the emulation in on_host.

Every input and output lies between NaN guards, and so does shared memory, which starts as NaN.
"""

from __future__ import annotations

import pytest
import torch

from ..on_host import emulator
from .cases import Case, assert_close, loop_adjoint, loop_forward, shrink_shared_memory
from .launchers import accumulator


def check_operators(cassi, case, dtype):
    x, mask = case.cube(dtype), case.mask_values(dtype)
    y = torch.randn(case.measured).to(dtype)
    given = mask.expand(case.shape)
    assert_close(cassi.forward(x, given, case.offsets), loop_forward(x, mask, case.offsets))
    for like in (torch.empty_like(x), x.new_empty(case.shape)):
        adjoint = cassi.adjoint(y, given, case.offsets, like)
        assert_close(adjoint, loop_adjoint(y, mask, case.offsets, case.shape))
    wanted = mask.double().requires_grad_()
    loop_forward(x, wanted, case.offsets).backward(y.double())
    like = mask.to(accumulator(dtype)).expand(case.shape)
    assert_close(cassi.mask_grad(x, y, case.offsets, like), wanted.grad.expand(case.shape))


def test_operators(cassi, case, dtype):
    check_operators(cassi, case, dtype)


def test_rows_that_do_not_fit_in_shared_memory(library, cassi, large_case, dtype):
    shrink_shared_memory(library, large_case, dtype)
    check_operators(cassi, large_case, dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_256_bands(cassi, layout):
    check_operators(cassi, Case((1, 256, 1, 3), step=1, layout=layout), torch.float32)


def test_measured_rows_that_do_not_fit_are_refused(library, cassi):
    library.cuda_on_host_set_shared_limit(64)
    case = Case()
    with pytest.raises(emulator.KernelError, match="cudaError 1"):
        cassi.adjoint(
            torch.zeros(case.measured), torch.zeros(case.shape), case.offsets, torch.zeros(case.shape)
        )


def test_257_bands_are_refused(cassi):
    x = torch.zeros(1, 257, 1, 1)
    with pytest.raises(emulator.KernelError, match="cudaError 1"):
        cassi.forward(x, x, [0] * 256)


@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (2, 3, 0, 5)])
def test_empty_problems_launch_nothing(cassi, shape):
    x = torch.zeros(shape)
    assert cassi.forward(x, torch.zeros(1, 3, 1, 5).expand(shape), [0, 1, 2]).numel() == 0


def test_inputs_with_infinities_stay_where_they_are(cassi):
    """Columns that a measured pixel does not see do not reach it, not even as 0 * inf."""
    case = Case((1, 2, 1, 6), step=3)
    x, mask = torch.ones(case.shape), torch.ones(1, 6)
    x[0, 0, 0, 0] = torch.inf
    y = cassi.forward(x, mask.expand(case.shape), case.offsets)
    assert torch.equal(y.isinf(), torch.tensor([[[True] + [False] * 8]]))
