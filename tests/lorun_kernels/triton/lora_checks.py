"""What the tests of the low-rank ops check, in the interpreter: the Triton ops of the low-rank convolution.

Images lie in buffers of NaN, so that a read outside of one spoils a result and a write is seen. An error may
be what rounding can do at most: every op is a sum of products, and the same sum of absolute values bounds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from lorun_kernels import reference
from tests.lorun_kernels.triton.cassi_checks import Guarded

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.1),
}


@dataclass(frozen=True)
class Problem:
    channels: int = 5
    out: int = 7
    # how many of the channels, the last ones, are those of a second input
    second: int = 0
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    depthwise: bool = False
    form: str = "reshape"
    rank: int = 2
    size: tuple[int, int] = (5, 7)
    batch: int = 2
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    weight_layout: str = "contiguous"
    adapter: bool = True
    bias: bool = True
    residual: bool = False
    preactivation: bool = False
    activation: str = "none"
    sliced: bool = False
    scaling: float = 1.5

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        return self.stride, self.padding, self.dilation

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out, self.channels // self.groups, *self.kernel

    @property
    def factor_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of up and down."""
        kernel_h, kernel_w = self.kernel
        if self.form == "factored":
            return (self.out, self.rank), (self.rank, self.weight_shape[1] * kernel_h * kernel_w)
        inner = self.rank * min(self.kernel)
        return (self.out // self.groups * kernel_h, inner), (inner, self.channels * kernel_w)

    @property
    def terms(self) -> int:
        """The number of terms in the sums of an output element, including those of W's elements."""
        return self.weight_shape[1] * self.kernel[0] * self.kernel[1] + self.factor_shapes[1][0] + 4


def place_image(guarded: Guarded, image: Tensor, sliced: bool) -> Tensor:
    """A channels_last copy in NaN: around the batch, or with `sliced` around every row and every pixel."""
    batch, channels, height, width = image.shape
    margins = (2, 2, 2, 4) if sliced else (2, 0, 0, 0)
    sizes = (batch, height, width, channels)
    buffer = torch.full(
        [n + 2 * m for n, m in zip(sizes, margins, strict=True)], torch.nan, dtype=image.dtype
    )
    inner = buffer
    for dim, (size, margin) in enumerate(zip(sizes, margins, strict=True)):
        inner = inner.narrow(dim, margin, size)
    inner = inner.permute(0, 3, 1, 2)
    guarded.buffers.append((buffer, inner))
    return inner.copy_(image)


def empty_image(guarded: Guarded, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> Tensor:
    return place_image(guarded, torch.full(shape, torch.nan, dtype=dtype), sliced)


def place_weight(weight: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return weight.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    return weight


def draw(problem: Problem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_dtype = problem.weight_dtype or problem.dtype

    def random(shape, dtype, scale=1.0):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    up, down = problem.factor_shapes
    drawn = {
        "input": random((problem.batch, problem.channels, *problem.size), problem.dtype),
        "weight": random(problem.weight_shape, weight_dtype, 0.3),
        "up": random(up, weight_dtype, 0.3),
        "down": random(down, weight_dtype, 0.3),
        "bias": random((problem.out,), problem.dtype),
    }
    shape = convolve(problem, {name: tensor.double() for name, tensor in drawn.items()}).shape
    drawn["residual"] = random(shape, problem.dtype)
    drawn["grad"] = random(shape, problem.dtype)
    return drawn


def convolve(problem: Problem, tensors: dict[str, Tensor], scaling: float | None = None) -> Tensor:
    """The definition, up to the activation."""
    bias = tensors["bias"] if problem.bias else None
    if not problem.adapter:
        return F.conv2d(tensors["input"], tensors["weight"], bias, *problem.geometry, problem.groups)
    return reference.lora_conv2d(
        *(tensors[name] for name in ("input", "weight", "up", "down")),
        bias,
        *problem.geometry,
        problem.groups,
        problem.scaling,
        problem.form,
    )


def definition(problem: Problem, drawn: dict[str, Tensor], absolute: bool = False) -> dict[str, Tensor]:
    """Preactivation and gradients in float64; if `absolute`, the sums of their terms' absolute values."""
    exact = {name: tensor.double() for name, tensor in drawn.items()}
    if absolute:
        exact = {name: tensor.abs() for name, tensor in exact.items()}
    names = ("input", "up", "down") if problem.adapter else ("input",)
    for name in names:
        exact[name].requires_grad_()
    result = convolve(problem, exact)
    gradients = torch.autograd.grad(result, [exact[name] for name in names], exact["grad"])
    return {"z": result.detach(), **dict(zip(names, gradients, strict=True))}


def close(name: str, value: Tensor, expected: Tensor, sums: Tensor, terms: int, factors: torch.dtype) -> None:
    """Within the rounding error of a sum of `terms` products in float32, of factors rounded to a dtype."""
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-11}
    bound = (terms * 2.0**-24 + rounding[factors] + rounding[value.dtype]) * sums + 1e-7
    excess = ((value.double() - expected).abs() / bound).max().item()
    assert excess <= 1, f"{name} is off by {excess:.3g} times what rounding can do"


def split(problem: Problem, image: Tensor) -> tuple[Tensor, Tensor | None]:
    first = problem.channels - problem.second
    return image[:, :first], image[:, first:] if problem.second else None


def place_pair(problem: Problem, guarded: Guarded, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """The first and the second input, each in a buffer of its own."""
    first, second = split(problem, image)
    place = [None if half is None else place_image(guarded, half, problem.sliced) for half in (first, second)]
    return place[0], place[1]


def joined(pair: tuple[Tensor, Tensor | None]) -> Tensor:
    return torch.cat([half for half in pair if half is not None], 1)


def factors(problem: Problem, drawn: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    return (drawn["up"], drawn["down"]) if problem.adapter else (None, None)


def check_forward(problem: Problem) -> None:
    drawn, guarded, ops = draw(problem), Guarded(), torch.ops.lorun_triton
    weight = place_weight(drawn["weight"], problem.weight_layout)
    shape = drawn["grad"].shape
    output = empty_image(guarded, shape, problem.dtype, problem.sliced)
    preactivation = (
        empty_image(guarded, shape, problem.dtype, problem.sliced) if problem.preactivation else None
    )
    residual = place_image(guarded, drawn["residual"], problem.sliced) if problem.residual else None
    ops.lora_conv2d(
        *place_pair(problem, guarded, drawn["input"]),
        weight,
        *factors(problem, drawn),
        drawn["bias"] if problem.bias else None,
        residual,
        *problem.geometry,
        problem.groups,
        problem.scaling,
        problem.activation,
        0.1,
        False,
        output,
        preactivation,
    )
    guarded.check()
    exact, sums = definition(problem, drawn), definition(problem, drawn, absolute=True)
    if preactivation is not None:
        close("preactivation", preactivation, exact["z"], sums["z"], problem.terms, problem.dtype)
    expected = ACTIVATIONS[problem.activation](exact["z"])
    # No activation is steeper than GELU, of 1.13; its own rounding is a few units of its result.
    bound = 1.13 * sums["z"]
    if problem.residual:
        expected, bound = expected + drawn["residual"], bound + drawn["residual"].abs()
    close("output", output, expected, bound, problem.terms + 4, problem.dtype)


def check_grad_input(problem: Problem) -> None:
    drawn, guarded, ops = draw(problem), Guarded(), torch.ops.lorun_triton
    grad = place_image(guarded, drawn["grad"], problem.sliced)
    results = place_pair(problem, guarded, torch.full_like(drawn["input"], torch.nan))
    weight = place_weight(drawn["weight"], problem.weight_layout)
    ops.lora_conv2d_grad_input(
        *(grad, weight, *factors(problem, drawn), *problem.geometry, problem.groups, problem.scaling, False),
        *results,
    )
    guarded.check()
    exact, sums = definition(problem, drawn), definition(problem, drawn, absolute=True)
    terms = problem.terms * max(1, -(-problem.out // problem.channels))
    close("grad_input", joined(results), exact["input"], sums["input"], terms, problem.dtype)


def check_grad_adapter(problem: Problem, deterministic: bool = False) -> None:
    """Both gradients, added to what is there; without atomics, each of them alone is the same bit for bit."""
    drawn, guarded, ops = draw(problem), Guarded(), torch.ops.lorun_triton
    grad = place_image(guarded, drawn["grad"], problem.sliced)
    pair = place_pair(problem, guarded, drawn["input"])

    def gradients(*names: str) -> dict[str, Tensor]:
        results = {name: torch.ones_like(drawn[name], dtype=torch.float32) for name in names}
        ops.lora_conv2d_grad_adapter(
            *(grad, *pair, drawn["up"], drawn["down"], problem.kernel, *problem.geometry, problem.groups),
            *(problem.scaling, False, deterministic, results.get("up"), results.get("down")),
        )
        return results

    exact, sums = definition(problem, drawn), definition(problem, drawn, absolute=True)
    terms = math.prod(grad.shape) // problem.out + max(len(drawn["up"]), drawn["down"].shape[1]) + 8
    both = gradients("up", "down")
    for name, result in both.items():
        close(f"grad_{name}", result, exact[name] + 1, sums[name] + 1, terms, torch.float32)
        if deterministic:
            assert torch.equal(gradients(name)[name], result)
    guarded.check()


def check_merge(problem: Problem) -> None:
    drawn = draw(problem)
    weight = place_weight(drawn["weight"], problem.weight_layout)
    exact = {name: drawn[name].double() for name in ("weight", "up", "down")}
    expected = reference.merge_lora(*exact.values(), problem.scaling)
    sums = reference.merge_lora(*(tensor.abs() for tensor in exact.values()), problem.scaling)
    for layout in ("contiguous", "channels_last"):
        merged = torch.full_like(place_weight(drawn["weight"], layout), torch.nan, dtype=problem.dtype)
        torch.ops.lorun_triton.lora_merge(weight, drawn["up"], drawn["down"], problem.scaling, merged)
        close("merged", merged, expected, sums, drawn["down"].shape[0] + 2, torch.float32)


GAP = 3
"""Elements after each layer's merged weights that belong to no layer."""


def stack(problems: list[Problem], drawn: list[dict[str, Tensor]], weights: list[Tensor]):
    """The table of a stage's layers, and their factors in one tensor each."""
    rows, at = [], [0, 0, 0]
    for problem, one, weight in zip(problems, drawn, weights, strict=True):
        inner, columns = one["down"].shape
        scaling = torch.tensor(problem.scaling, dtype=torch.float32).view(torch.int32).item()
        rows.append([weight.data_ptr(), *weight.stride(), inner, columns, *weight.shape, *at, scaling, 0])
        sizes = (one["up"].numel(), one["down"].numel(), weight.numel() + GAP)
        at = [start + size for start, size in zip(at, sizes, strict=True)]
    ups, downs = (torch.cat([one[name].flatten() for one in drawn]) for name in ("up", "down"))
    return rows, ups, downs


def check_merge_stage(problems: list[Problem]) -> None:
    """One launch over layers of all shapes, which does not touch what lies between them."""
    drawn = [draw(problem) for problem in problems]
    weights = [
        place_weight(one["weight"], problem.weight_layout)
        for problem, one in zip(problems, drawn, strict=True)
    ]
    rows, ups, downs = stack(problems, drawn, weights)
    merged = torch.full((rows[-1][13] + weights[-1].numel() + GAP,), torch.nan)
    elements = max(weight.numel() for weight in weights)
    torch.ops.lorun_triton.lora_merge_stage(torch.tensor(rows), ups, downs, elements, merged)
    for row, problem, one in zip(rows, problems, drawn, strict=True):
        out, channels, kernel_h, kernel_w = problem.weight_shape
        start, count = row[13], one["weight"].numel()
        found = merged[start : start + count].view(out, kernel_h, kernel_w, channels).permute(0, 3, 1, 2)
        exact = [one[name].double() for name in ("weight", "up", "down")]
        expected = reference.merge_lora(*exact, problem.scaling)
        sums = reference.merge_lora(*(tensor.abs() for tensor in exact), problem.scaling)
        close("merged", found, expected, sums, row[5] + 2, torch.float32)
        assert merged[start + count : start + count + GAP].isnan().all()


def check_merge_stage_backward(problems: list[Problem]) -> None:
    """One launch over layers of all shapes, the same bits each time; it does not read between them."""
    drawn = [draw(problem) for problem in problems]
    rows, ups, downs = stack(problems, drawn, [one["weight"] for one in drawn])
    grad = torch.full((rows[-1][13] + drawn[-1]["weight"].numel() + GAP,), torch.nan)
    weight_grads = [torch.randn(one["weight"].shape) for one in drawn]
    for row, one in zip(rows, weight_grads, strict=True):
        grad[row[13] : row[13] + one.numel()] = one.permute(0, 2, 3, 1).flatten()
    matrices = [(one["up"].shape[0], one["down"].shape[1]) for one in drawn]
    largest = [max(lengths) for lengths in zip(*matrices, strict=True)]

    def gradients():
        grads = [torch.full(stack.shape, torch.nan) for stack in (ups, downs)]
        arguments = (torch.tensor(rows), ups, downs, *largest, grad, *grads)
        torch.ops.lorun_triton.lora_merge_stage_backward(*arguments)
        return grads

    grad_ups, grad_downs = gradients()
    for again, first in zip(gradients(), (grad_ups, grad_downs), strict=True):
        assert torch.equal(again, first)
    for row, problem, one, weight_grad in zip(rows, problems, drawn, weight_grads, strict=True):
        up, down = one["up"].double(), one["down"].double()
        matrix = weight_grad.double().reshape(up.shape[0], down.shape[1])
        for name, stacked, start, left, right in (
            ("grad_up", grad_ups, row[11], matrix, down.T),
            ("grad_down", grad_downs, row[12], up.T, matrix),
        ):
            exact, sums = left @ right * problem.scaling, left.abs() @ right.abs() * abs(problem.scaling)
            found = stacked[start : start + exact.numel()].view(exact.shape)
            close(name, found, exact, sums, left.shape[1] + 2, torch.float32)


def check_wide_indices(problem: Problem) -> None:
    """The 64-bit indices that an image needs with over 2^31 elements a sample, on an image that fits here."""
    import triton.language as tl

    from lorun_kernels.triton import lora_images

    image = torch.empty((1, 256, 4096, 2050), device="meta").to(memory_format=torch.channels_last)
    assert lora_images.index([image[:, :, :4090], None]) == tl.int32
    assert lora_images.index([image]) == tl.int64
    with mock.patch.object(lora_images, "index", return_value=tl.int64):
        check_forward(problem)
        check_grad_input(problem)
        check_grad_adapter(problem)
