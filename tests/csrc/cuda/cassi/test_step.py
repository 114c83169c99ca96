"""The CUDA kernels of CASSI, executed on the CPU by the emulation in tests/cuda_on_host.

Every input and output lies between NaN guards, and so does shared memory, which starts as NaN.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "cuda_on_host"))
import emulator  # noqa: E402
from cassi_launchers import DTYPES, Cassi, accumulator  # noqa: E402

from lorun_kernels import reference  # noqa: E402

if emulator.compiler() is None:
    pytest.skip("needs g++ to compile the kernels for the CPU", allow_module_level=True)

WHOLE_SHARED_MEMORY = 227 * 1024
# Rounding of the output for the 16-bit types; of sums of up to 256 terms for the others.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
STEP = {"pgd": reference.cassi_pgd_step, "hqs": reference.cassi_hqs_step}


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int] = (2, 7, 2, 13)
    step: int | tuple[int, ...] = 2
    mask: str = "2-D"
    layout: str = "contiguous"

    @property
    def offsets(self) -> list[int]:
        return reference.band_offsets(
            self.step if isinstance(self.step, int) else list(self.step), self.shape[1]
        )

    @property
    def measured(self) -> tuple[int, int, int]:
        batch, _, height, width = self.shape
        return batch, height, width + max(self.offsets)

    def cube(self, dtype: torch.dtype) -> torch.Tensor:
        batch, bands, height, width = self.shape
        if self.layout == "channels_last":
            return torch.randn(batch, height, width, bands).to(dtype).permute(0, 3, 1, 2)
        if self.layout == "sliced":
            return torch.randn(batch, bands + 2, height, width + 3).to(dtype)[:, 1:-1, :, 1:-2]
        if self.layout == "sliced channels_last":
            wide = torch.randn(batch, height, width, bands + 3).to(dtype)
            return wide[..., 1:-2].permute(0, 3, 1, 2)
        if self.layout == "aligned slice":
            wide = torch.randn(batch, height, width, bands + 8).to(dtype)
            return wide[..., 4:-4].permute(0, 3, 1, 2)
        if self.layout == "even columns":
            return torch.randn(batch, bands, height, 2 * width).to(dtype)[..., ::2]
        if self.layout == "expanded":
            return torch.randn(1, 1, height, width).to(dtype).expand(self.shape)
        return torch.randn(self.shape).to(dtype)

    def mask_values(self, dtype: torch.dtype) -> torch.Tensor:
        """A mask that is closed in some places, and at one column in all bands."""
        batch, bands, height, width = self.shape
        shape = {
            "2-D": (height, width),
            "3-D": (bands, height, width),
            "per sample": self.shape,
            "2-D per sample": (batch, 1, height, width),
        }[self.mask]
        mask = torch.rand(shape) * (torch.rand(shape) > 0.3)
        mask[..., width // 2 :: 7] = 0
        return mask.to(dtype)

    def scales(self, dtype: torch.dtype) -> torch.Tensor:
        return (torch.rand(self.shape[0], dtype=torch.float64) + 0.25).to(accumulator(dtype))


CASES = {
    "plain": Case(),
    "3-D": Case(mask="3-D"),
    "per sample": Case(mask="per sample"),
    "one pixel": Case((1, 1, 1, 1)),
    "one column": Case((2, 3, 3, 1), step=1),
    "one band": Case((1, 1, 3, 31), step=3, layout="channels_last"),
    "two bands, no step": Case((2, 2, 1, 33), step=0, mask="3-D"),
    "2-D per sample": Case(mask="2-D per sample"),
    "20 columns": Case((1, 3, 2, 20)),
    "32 columns": Case((1, 3, 2, 32), step=1),
    "28 bands": Case((1, 28, 2, 5)),
    "29 bands, channels last": Case((2, 29, 1, 5), step=3, layout="channels_last"),
    "31 bands, channels last": Case((1, 31, 2, 13), step=1, layout="channels_last", mask="3-D"),
    "32 bands, channels last": Case((2, 32, 2, 9), layout="channels_last", mask="per sample"),
    "28 bands, channels last": Case((1, 28, 2, 33), layout="channels_last"),
    "irregular": Case((2, 5, 2, 13), step=(4, 0, 9, 4, 40)),
    "irregular 3-D": Case((1, 4, 3, 5), step=(7, 2, 2, 0), mask="3-D", layout="channels_last"),
    "sliced": Case(layout="sliced"),
    "sliced channels last": Case(layout="sliced channels_last"),
    "aligned slice": Case((2, 12, 2, 5), layout="aligned slice"),
    "even columns": Case(layout="even columns", mask="3-D"),
    "expanded": Case(layout="expanded"),
    "wider than a block": Case((1, 2, 1, 650), step=1),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    sources = [*emulator.kernels("cassi"), emulator.HERE / "cassi_bindings.cpp"]
    return emulator.load(tmp_path_factory.mktemp("cuda_on_host"), sources)


@pytest.fixture
def cassi(library):
    library.cuda_on_host_set_shared_limit(WHOLE_SHARED_MEMORY)
    return Cassi(library)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["pgd", "hqs"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def assert_close(relative_error):
    def check(value: torch.Tensor, expected: torch.Tensor) -> None:
        assert value.shape == expected.shape
        assert relative_error(value, expected) <= TOLERANCE[value.dtype]

    return check


def loop_forward(x, mask, offsets):
    """Phi x band by band, in float64."""
    batch, bands, height, width = x.shape
    y = torch.zeros(batch, height, width + max(offsets), dtype=torch.float64)
    for c, offset in enumerate(offsets):
        y[..., offset : offset + width] += mask.double().expand(x.shape)[:, c] * x[:, c].double()
    return y


def loop_adjoint(y, mask, offsets, shape):
    windows = [y[..., offset : offset + shape[-1]] for offset in offsets]
    return mask.double() * torch.stack(windows, 1).double()


def check_operators(cassi, case, dtype, assert_close):
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


def check_step(cassi, kind, case, dtype, assert_close):
    x, mask, scale = case.cube(dtype), case.mask_values(dtype), case.scales(dtype)
    y = torch.randn(case.measured).to(dtype)
    expected = expected_step(kind, case, x, y, mask, scale)
    given = mask.expand(case.shape)
    for like in (torch.empty_like(x), x.new_empty(case.shape)):
        out, residual = cassi.step(kind, x, y, given, scale, case.offsets, like)
        assert_close(out, expected)
        assert_close(residual, loop_forward(x, mask, case.offsets) - y.double())


def expected_step(kind, case, x, y, mask, scale):
    x, y, mask, scale = (value.double() for value in (x, y, mask.expand(case.shape), scale))
    return STEP[kind](x, y, mask, scale, case.offsets)


def backward_operands(kind, case, dtype):
    """(grad, residual, x, mask, scale) and the gradients by name, from autograd in float64."""
    x, mask, scale = case.cube(dtype), case.mask_values(dtype), case.scales(dtype)
    y = torch.randn(case.measured).to(dtype)
    grad = case.cube(dtype)
    leaves = [value.double().detach().clone().requires_grad_() for value in (x, y, mask, scale)]
    expected_step(kind, case, *leaves).backward(grad.double())
    residual = (loop_forward(x, mask, case.offsets) - y.double()).to(accumulator(dtype))
    expected = dict(zip(("x", "y", "mask", "scale"), (leaf.grad for leaf in leaves), strict=True))
    return (grad, residual, x, mask, scale), expected


def check_step_backward(cassi, kind, case, dtype, assert_close):
    (grad, residual, x, mask, scale), expected = backward_operands(kind, case, dtype)
    likes = {
        "x": torch.empty_like(grad),
        "y": torch.empty(case.measured, dtype=dtype),
        "mask": mask.to(accumulator(dtype)).expand(case.shape),
        "scale": scale.new_empty(case.shape[0], case.shape[2]),
    }
    arguments = (kind, grad, residual, x, mask.expand(case.shape), scale, case.offsets)
    gradients = cassi.step_backward(*arguments, likes)
    assert_close(gradients["x"], expected["x"])
    assert_close(gradients["y"], expected["y"])
    assert_close(gradients["mask"], expected["mask"].expand(case.shape))
    assert_close(gradients["scale"].sum(1), expected["scale"])


def test_operators(cassi, case, dtype, assert_close):
    check_operators(cassi, case, dtype, assert_close)


def test_step(cassi, kind, case, dtype, assert_close):
    check_step(cassi, kind, case, dtype, assert_close)


def test_step_backward(cassi, kind, case, dtype, assert_close):
    check_step_backward(cassi, kind, case, dtype, assert_close)


FALLBACK_CASES = [
    Case((2, 31, 1, 13), step=1),
    Case((1, 31, 2, 13), step=1, mask="3-D", layout="channels_last"),
    Case((1, 33, 1, 13), step=0, mask="per sample", layout="sliced"),
]


@pytest.mark.parametrize("case", FALLBACK_CASES, ids=lambda case: f"{case.mask} {case.layout}")
def test_rows_that_do_not_fit_in_shared_memory(library, cassi, case, kind, dtype, assert_close):
    # Room for the measured rows of the backward pass and for its sum, not for a row of the cube.
    limit = 176 * torch.empty((), dtype=accumulator(dtype)).element_size()
    assert limit < case.shape[1] * case.shape[3] * dtype.itemsize
    library.cuda_on_host_set_shared_limit(limit)
    check_operators(cassi, case, dtype, assert_close)
    check_step(cassi, kind, case, dtype, assert_close)
    check_step_backward(cassi, kind, case, dtype, assert_close)
    given = (
        case.cube(dtype),
        torch.randn(case.measured).to(dtype),
        case.mask_values(dtype),
        case.scales(dtype),
    )
    x, y, mask, scale = given
    out, _ = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets)
    assert_close(out, expected_step(kind, case, *given))


def test_measured_rows_that_do_not_fit_are_refused(library, cassi):
    library.cuda_on_host_set_shared_limit(64)
    case = Case()
    with pytest.raises(emulator.KernelError, match="cudaError 1"):
        cassi.adjoint(
            torch.zeros(case.measured), torch.zeros(case.shape), case.offsets, torch.zeros(case.shape)
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "sliced channels_last"])
def test_step_in_place(cassi, kind, layout, dtype, assert_close):
    case = Case(layout=layout)
    given = (
        case.cube(dtype),
        torch.randn(case.measured).to(dtype),
        case.mask_values(dtype),
        case.scales(dtype),
    )
    x, y, mask, scale = given
    out, residual = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets, with_residual=False)
    assert residual is None
    assert_close(out, expected_step(kind, case, *given))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_256_bands(cassi, kind, layout, assert_close):
    case = Case((1, 256, 1, 3), step=1, layout=layout)
    check_operators(cassi, case, torch.float32, assert_close)
    check_step(cassi, kind, case, torch.float32, assert_close)
    check_step_backward(cassi, kind, case, torch.float32, assert_close)


def test_257_bands_are_refused(cassi):
    x = torch.zeros(1, 257, 1, 1)
    with pytest.raises(emulator.KernelError, match="cudaError 1"):
        cassi.forward(x, x, [0] * 256)


@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (2, 3, 0, 5)])
def test_empty_problems_launch_nothing(cassi, shape):
    x = torch.zeros(shape)
    assert cassi.forward(x, torch.zeros(1, 3, 1, 5).expand(shape), [0, 1, 2]).numel() == 0


def test_hqs_leaves_alone_what_no_open_mask_reaches(cassi):
    """With mu = 0 the weight of such a pixel is 1 / 0."""
    case = Case((1, 3, 1, 9))
    x, y = torch.randn(case.shape), torch.randn(case.measured)
    mask = torch.zeros(1, 9)
    mask[0, :3] = 0.5
    scale = torch.zeros(1)
    out, residual = cassi.step("hqs", x, y, mask.expand(case.shape), scale, case.offsets, torch.empty_like(x))
    assert torch.equal(out[..., 3:], x[..., 3:])
    # With mu = 0, what was measured is explained in full.
    reached = torch.zeros(case.measured, dtype=torch.bool)
    reached[..., :7] = True
    explained = loop_forward(out, mask, case.offsets)
    torch.testing.assert_close(explained[reached], y[reached].double(), rtol=0, atol=1e-5)
    likes = {
        "x": torch.empty_like(x),
        "mask": torch.empty(1, 9).expand(case.shape),
        "scale": torch.empty(1, 1),
    }
    arguments = ("hqs", torch.ones_like(x), residual, x, mask.expand(case.shape), scale, case.offsets)
    gradients = cassi.step_backward(*arguments, likes)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_one_scale_for_all_samples(cassi, kind, assert_close):
    case = Case()
    x, mask, y = case.cube(torch.float32), case.mask_values(torch.float32), torch.randn(case.measured)
    scale = torch.tensor([0.7]).expand(case.shape[0])
    out, _ = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets, torch.empty_like(x))
    assert scale.stride() == (0,)
    assert_close(out, expected_step(kind, case, x, y, mask, scale))


@pytest.mark.parametrize("wanted", ["x", "y", "mask", "scale"])
def test_gradients_that_are_not_wanted(cassi, kind, wanted, assert_close):
    """One output alone, and none of the inputs that it does not need."""
    case = Case(layout="channels_last")
    (grad, residual, x, mask, scale), expected = backward_operands(kind, case, torch.float32)
    likes = {
        "x": torch.empty_like(grad),
        "y": torch.empty(case.measured),
        "mask": torch.empty(mask.shape).expand(case.shape),
        "scale": scale.new_empty(case.shape[0], case.shape[2]),
    }
    needs_residual = wanted in ("mask", "scale")
    gradients = cassi.step_backward(
        kind,
        grad,
        residual if needs_residual else None,
        x if wanted == "mask" else None,
        mask.expand(case.shape),
        scale,
        case.offsets,
        {wanted: likes[wanted]},
    )
    value = gradients[wanted].sum(1) if wanted == "scale" else gradients[wanted]
    assert_close(value, expected[wanted].expand(value.shape))


def test_inputs_with_infinities_stay_where_they_are(cassi):
    """Columns that a measured pixel does not see do not reach it, not even as 0 * inf."""
    case = Case((1, 2, 1, 6), step=3)
    x, mask = torch.ones(case.shape), torch.ones(1, 6)
    x[0, 0, 0, 0] = torch.inf
    y = cassi.forward(x, mask.expand(case.shape), case.offsets)
    assert torch.equal(y.isinf(), torch.tensor([[[True] + [False] * 8]]))
