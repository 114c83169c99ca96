"""csrc/cuda/lora/conv_adapter.cu and depthwise_adapter.cu, executed on the CPU by the emulation in on_host.

Every tensor lies between NaN guards, and so does shared memory, which starts as NaN; so does the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from lorun_kernels import reference

from ..on_host import emulator
from . import cases
from .adapter_launchers import LoraAdapter
from .launchers import Adapted, Call, Geometry, ProblemView, UnguardedCall, problem_view

SOURCES = ["conv_adapter.cu", "depthwise_adapter.cu"]
# Sums are kept in float.
UNIT = cases.UNIT[torch.float32]
MODES = cases.MODES


@dataclass(frozen=True)
class Case(cases.Case):
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Adapted]:
        """(grad, input, input2, the adapted weight)."""
        (ins, outs), (kh, kw) = self.channels, self.kernel
        grad, (input, input2) = self.out_image(dtype), self.images(dtype)
        inner = self.rank * min(kh, kw) if self.form == "reshape" else self.rank
        own = ins // self.groups
        rows, columns = (outs // self.groups * kh, ins * kw)
        if self.form == "factored":
            rows, columns = outs, own * kh * kw
        dtype = torch.float32 if self.float_weight else dtype
        factors = [torch.randn(shape).to(dtype) for shape in ((rows, inner), (inner, columns))]
        return grad, input, input2, Adapted(torch.zeros(outs, own, kh, kw, dtype=dtype), *factors, 0.5)


LAYERS = {
    "2 to 28": Case((2, 28), size=(1, 9, 18)),
    "28 to 28": Case((28, 28), size=(2, 8, 20)),
    "28 to 56": Case((28, 56), size=(1, 4, 9)),
    "56 to 28, factored": Case((56, 28), size=(1, 4, 9), form="factored"),
    "112 to 112": Case((112, 112), size=(1, 4, 5)),
    "168 to 56": Case((168, 56), size=(1, 4, 5), second=56),
    "28 to 1": Case((28, 1), kernel=(1, 1), padding=(0, 0)),
}

SHAPES = {
    "small": Case(),
    "1 to 1": Case((1, 1), rank=1),
    "one pixel": Case(size=(1, 1, 1)),
    "29 to 31": Case((29, 31)),
    "31 to 29, 1x1": Case((31, 29), kernel=(1, 1), padding=(0, 0), size=(1, 11, 19)),
    "200 channels, 1x1": Case((200, 8), kernel=(1, 1), padding=(0, 0)),
    "33 to 40": Case((33, 40)),
    "5x5": Case((28, 12), kernel=(5, 5), padding=(2, 2)),
    "3x1": Case(kernel=(3, 1), padding=(1, 0)),
    "2x5, factored": Case(kernel=(2, 5), padding=(0, 2), form="factored"),
    "1x23": Case((17, 4), kernel=(1, 23), padding=(0, 11), size=(1, 2, 9)),
    "stride 2": Case((28, 20), stride=(2, 2), size=(1, 9, 37)),
    "stride 2, 1x1": Case((12, 12), kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "strides 3 and 1": Case(stride=(3, 1), padding=(0, 1)),
    "dilation 2": Case((28, 28), dilation=(2, 2), padding=(2, 2), size=(1, 6, 9)),
    "dilation 2, stride 2": Case((20, 4), dilation=(2, 2), stride=(2, 2), padding=(1, 2)),
    "dilation 3, stride 2": Case((4, 4), dilation=(3, 2), stride=(2, 4), padding=(3, 0), size=(1, 9, 9)),
    "far dilation": Case((8, 8), dilation=(30, 30), padding=(30, 30), size=(1, 4, 20)),
    "many images": Case((8, 8), size=(5, 3, 3)),
}

OPTIONS = {
    "factored": Case((12, 8), form="factored", rank=9),
    "rank 5": Case((12, 8), rank=5),
    "float factors": Case((12, 8), float_weight=True),
    "sliced": Case((12, 8), sliced=True),
    "sliced, odd": Case((11, 7), sliced=True),
    "aligned": Case((16, 32)),
    "two inputs": Case((40, 20), second=16),
    "two odd inputs": Case((12, 8), second=5),
    "two sliced inputs": Case((24, 8), second=8, sliced=True),
    "a second input of one channel": Case((9, 4), second=1, stride=(2, 2)),
}

DEPTHWISE = {
    "depthwise": Case((28, 28), groups=28),
    "depthwise, factored": Case((28, 28), groups=28, form="factored"),
    "depthwise, 5x5": Case((6, 6), kernel=(5, 5), padding=(2, 2), groups=6),
    "depthwise, 70 channels": Case((70, 70), groups=70, form="factored", float_weight=True),
    "depthwise, stride 2": Case((31, 31), stride=(2, 2), dilation=(1, 2), groups=31),
    "depthwise, two inputs": Case((28, 28), second=8, groups=28, size=(3, 9, 9)),
    "depthwise, sliced": Case((29, 29), groups=29, sliced=True),
}

CASES = LAYERS | SHAPES | OPTIONS | DEPTHWISE


def load(folder: Path, *flags: str) -> LoraAdapter:
    kernels = [emulator.CUDA / "lora" / name for name in SOURCES]
    launchers = emulator.TESTS / "lora/adapter_launchers.cpp"
    return LoraAdapter(emulator.load(folder, [*kernels, launchers], *flags))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return load(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def device_form(tmp_path_factory):
    return load(tmp_path_factory.mktemp("device_form"), *emulator.DEVICE_FORM)


def gradients(case: Case, grad: Tensor, input: Tensor, adapted: Adapted) -> tuple[Tensor, Tensor]:
    """The gradients of up and down, by autograd of the definition."""
    factors = [factor.double().requires_grad_() for factor in (adapted.up, adapted.down)]
    output = reference.lora_conv2d(
        input,
        adapted.weight.double(),
        *factors,
        None,
        *(case.stride, case.padding, case.dilation, case.groups, adapted.scaling, case.form),
    )
    return torch.autograd.grad(output, factors, grad)


def bounds(case: Case, grad: Tensor, input: Tensor, adapted: Adapted) -> tuple[Tensor, Tensor]:
    """How far sums in float may be from the gradients: a unit of the sum of magnitudes for each term."""
    magnitude = conv2d_weight(
        input.abs(),
        adapted.weight.shape,
        grad.abs(),
        *(case.stride, case.padding, case.dilation, case.groups),
    )
    rows = magnitude.reshape(len(adapted.up), -1) * adapted.scaling
    pixels = grad.numel() / grad.shape[1]
    up = rows @ adapted.down.double().abs().T * (pixels + rows.shape[1] + 4) * UNIT
    down = adapted.up.double().abs().T @ rows * (pixels + rows.shape[0] + 4) * UNIT
    return up, down


def check_gradients(adapter, case, dtype, tf32, deterministic) -> None:
    grad, input, input2, adapted = case.operands(dtype)
    before = torch.randn(adapted.up.shape), torch.randn(adapted.down.shape)
    results = adapter.grad_adapter(grad, input, input2, adapted, case.geometry, before, tf32, deterministic)
    images = grad, input if input2 is None else torch.cat([input, input2], 1)
    # Depthwise products are exact in float.
    rounded = [cases.to_tf32(image) if tf32 and case.groups == 1 else image for image in images]
    operands = [image.double() for image in rounded]
    expected = gradients(case, *operands, adapted)
    for result, start, change, bound in zip(
        results, before, expected, bounds(case, *operands, adapted), strict=True
    ):
        total = start.double() + change
        excess = (result.double() - total).abs() - bound - UNIT * (start.abs() + 2 * total.abs())
        assert bool((excess <= 0).all()), f"off by {excess.max().item()} more than rounding explains"


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("name", LAYERS | OPTIONS)
def test_gradients(adapter, name, mode):
    check_gradients(adapter, CASES[name], *mode, deterministic=False)


@pytest.mark.parametrize("name", SHAPES | DEPTHWISE)
def test_gradients_of_other_shapes(adapter, name):
    check_gradients(adapter, CASES[name], *MODES["float32"], deterministic=False)
    check_gradients(adapter, CASES[name], *MODES["bfloat16"], deterministic=False)


DEVICE_FORM_CASES = {
    "28 to 20": Case((28, 20), size=(1, 2, 10)),
    "12 to 40, strided": Case((12, 40), kernel=(1, 3), padding=(0, 1), size=(1, 3, 8), stride=(1, 2)),
}


@pytest.mark.parametrize("case", DEVICE_FORM_CASES.values(), ids=DEVICE_FORM_CASES.keys())
@pytest.mark.parametrize("mode", list(MODES.values())[1:], ids=list(MODES)[1:])
def test_with_the_instructions_of_tensor_cores(device_form, case, mode):
    check_gradients(device_form, case, *mode, deterministic=False)


@pytest.mark.parametrize("name", LAYERS | SHAPES | OPTIONS)
def test_deterministic_gradients(adapter, name):
    check_gradients(adapter, CASES[name], *MODES["bfloat16"], deterministic=True)


@pytest.mark.parametrize("name", ["28 to 28", "168 to 56", "depthwise"])
def test_deterministic_gradients_are_the_same_bit_for_bit(adapter, name):
    case = CASES[name]
    operands = case.operands(torch.float16)
    before = torch.randn(operands[3].up.shape), torch.randn(operands[3].down.shape)
    first, again = (
        adapter.grad_adapter(*operands, case.geometry, before, deterministic=True) for _ in range(2)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["small", "depthwise"])
def test_either_gradient_alone(adapter, name, deterministic):
    case = CASES[name]
    operands = case.operands(torch.bfloat16)
    zeros = torch.zeros(operands[3].up.shape), torch.zeros(operands[3].down.shape)
    both = adapter.grad_adapter(*operands, case.geometry, zeros, deterministic=True)
    for index in (0, 1):
        wanted = [zeros[index] if index == i else None for i in (0, 1)]
        alone = adapter.grad_adapter(*operands, case.geometry, wanted, deterministic=deterministic)
        assert alone[1 - index] is None
        torch.testing.assert_close(alone[index], both[index])


def test_no_pixels_add_nothing(adapter):
    case = replace(CASES["small"], size=(0, 5, 7))
    operands = case.operands(torch.float32)
    before = torch.randn(operands[3].up.shape), torch.randn(operands[3].down.shape)
    after = adapter.grad_adapter(*operands, case.geometry, before)
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def large_problem(case: Case, batch: int = 8, dtype: torch.dtype = torch.bfloat16) -> ProblemView:
    image = torch.empty(batch, case.channels[0], 256, 256, dtype=dtype, device="meta")
    weight = torch.empty(case.channels[1], case.channels[0], *case.kernel, device="meta")
    out_size = case.geometry.out_size((256, 256), case.kernel)
    return problem_view(image, out_size, weight, case.geometry, case.second, False)


def test_the_workspace_does_not_grow_with_the_images(adapter):
    """There are no more parts than blocks that run at the same time."""
    case = CASES["28 to 28"]
    adapted = case.operands(torch.bfloat16)[3]
    weight = Call().weight(adapted)
    one, many = (adapter.workspace(large_problem(case, batch), weight, True) for batch in (1, 16))
    assert one == many == 256 * 4 * (adapted.up.numel() + 3 * adapted.down.numel())
    assert adapter.workspace(large_problem(case, 16), weight, False) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_blocks_of_real_layers_take_all_taps(adapter, name):
    """So that the gradient is read once; and two of them run at the same time."""
    case = CASES[name]
    plan = adapter.plan(large_problem(case))
    assert (plan.rows, plan.columns) == case.kernel
    assert plan.parts == -(-case.channels[0] // 32)
    assert 2 * (plan.shared + 1024) <= 164 * 1024


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_every_shape_fit(adapter, name):
    plan = adapter.plan(large_problem(CASES[name], dtype=torch.float32))
    assert plan.channels * plan.rows * plan.columns <= 16 * 20
    assert plan.shared <= 99 * 1024


def test_samples_beyond_2_31_elements(adapter):
    """So far apart that a 32-bit offset would be wrong; only their own pages are touched."""
    case = Case((8, 8), size=(2, 3, 5))
    grad, input, _, adapted = case.operands(torch.bfloat16)
    far = 2**31 + 64
    distant = torch.empty(far + 120, dtype=torch.bfloat16).as_strided(input.shape, (far, 1, 40, 8))
    distant.copy_(input)
    unguarded = LoraAdapter(adapter.library, UnguardedCall)
    results = []
    for lora, image in ((unguarded, distant), (adapter, input)):
        zeros = torch.zeros(adapted.up.shape), torch.zeros(adapted.down.shape)
        call = (grad, image, None, adapted, case.geometry, zeros)
        results.append(lora.grad_adapter(*call, deterministic=True))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
