"""What test_cassi.py checks, in the interpreter: the raw Triton CASSI ops against autograd in float64.

Every tensor lies in a buffer of NaN, so that a read outside of it spoils a result and a write is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from unittest import mock

import torch
from torch import Tensor

from lorun_kernels import reference

LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed"]
MASKS = ["HW", "CHW", "BCHW"]


@dataclass(frozen=True)
class Problem:
    batch: int = 2
    bands: int = 5
    height: int = 3
    width: int = 13
    step: int | tuple[int, ...] = 2
    mask: str = "HW"
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    # rho for PGD and mu for HQS: one value that all samples share with stride 0, or one for each
    scale: float | tuple[float, ...] = (0.7, 0.3)
    expanded: bool = False

    @property
    def offsets(self) -> list[int]:
        return reference.band_offsets(self.step, self.bands)

    @property
    def cube(self) -> tuple[int, ...]:
        return self.batch, self.bands, self.height, self.width

    @property
    def measurement(self) -> tuple[int, ...]:
        return self.batch, self.height, self.width + max(self.offsets)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        return self.cube[4 - len(self.mask) :]

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


@dataclass
class Guarded:
    """Tensors inside buffers of NaN; `check` fails if an element outside of all of them has changed."""

    layout: str = "contiguous"
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str | None = None) -> Tensor:
        layout, last = layout or self.layout, len(shape) - 1
        order = list(range(len(shape)))
        if layout == "channels_last" and len(shape) == 4:
            order = [0, 2, 3, 1]
        elif layout == "transposed":
            order.reverse()
        # All but a slice are dense, with NaN before and after; a slice has NaN on every side of a row.
        padded = order if layout == "sliced" else order[:1]
        stride = [2 if layout == "sliced" and dim == last else 1 for dim in range(len(shape))]
        sizes = [stride[dim] * shape[dim] + 4 * (dim in padded) for dim in order]
        buffer = torch.full(sizes, torch.nan, dtype=dtype)
        inner = buffer.permute([order.index(dim) for dim in range(len(shape))])
        for dim in padded:
            inner = inner.narrow(dim, 2, stride[dim] * shape[dim])
        inner = inner[..., :: stride[last]]
        self.buffers.append((buffer, inner))
        return inner

    def place(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def check(self) -> None:
        for buffer, inner in self.buffers:
            assert not inner.isnan().any(), f"NaN in a tensor of shape {tuple(inner.shape)}"
            written = (~buffer.isnan()).sum().item()
            assert written == inner.numel(), f"{written} elements written, of {inner.numel()} to be written"


def draw(problem: Problem) -> dict[str, Tensor]:
    """x, y, mask (with closed and half open elements), scale, and gradients of a cube and a measurement."""
    generator = torch.Generator().manual_seed(0)

    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.dtype)

    openness = torch.rand(problem.mask_shape, generator=generator, dtype=torch.float64)
    mask = torch.where(openness < 0.3, 0, 0.5 + openness).to(problem.dtype)
    cube, measurement = problem.cube, problem.measurement
    drawn = {"x": random(cube), "y": random(measurement), "grad": random(cube), "mask": mask}
    if problem.expanded:
        for name in ("x", "grad"):
            drawn[name] = drawn[name][:1].expand(cube)
        drawn["y"] = drawn["y"][:1].expand(measurement)
    drawn["scale"] = torch.tensor(problem.scale, dtype=problem.accumulator)
    return drawn


def place(problem: Problem, drawn: dict[str, Tensor], guarded: Guarded) -> dict[str, Tensor]:
    """The drawn tensors as the ops take them: guarded, and expanded again if they were."""

    def placed(tensor, repeats):
        return guarded.place(tensor[:1]).expand(tensor.shape) if repeats else guarded.place(tensor)

    inputs = {name: placed(drawn[name], problem.expanded) for name in ("x", "y", "grad")}
    inputs["mask"] = placed(drawn["mask"], False).expand(problem.cube)
    inputs["scale"] = drawn["scale"].expand(problem.batch)
    return inputs


def close(problem: Problem, name: str, value: Tensor, expected: Tensor) -> None:
    """To a few ulp of the accumulator, and one conversion to a narrower dtype on top."""
    error = (value.double() - expected).abs().max().item()
    slack = 1e-13 if problem.dtype == torch.float64 else 2e-6
    # The interpreter rounds to float16 but truncates to bfloat16; test_budgets.py looks at the GPU's.
    rounding = {torch.float16: 2**-11, torch.bfloat16: 2**-7}.get(value.dtype, 0)
    bound = (slack + rounding) * max(expected.abs().max().item(), 1)
    assert error <= bound, f"{name} is off by {error:.3g}, of {bound:.3g} allowed, for {problem}"


def check_projections(problem: Problem) -> None:
    """cassi_forward, cassi_adjoint and cassi_mask_grad."""
    drawn, guarded = draw(problem), Guarded(problem.layout)
    exact = {name: tensor.double() for name, tensor in drawn.items()}
    inputs = place(problem, drawn, guarded)
    ops, offsets = torch.ops.lorun_triton, problem.offsets
    x, y, mask = inputs["x"], inputs["y"], inputs["mask"]
    forward = guarded.empty(problem.measurement, problem.dtype)
    adjoint = guarded.empty(problem.cube, problem.dtype)
    grad_mask = guarded.empty(problem.mask_shape, problem.accumulator, "contiguous")
    ops.cassi_forward(x, mask, offsets, forward)
    ops.cassi_adjoint(y, mask, offsets, adjoint)
    ops.cassi_mask_grad(x, y, offsets, grad_mask.expand(problem.cube))
    guarded.check()

    exact_mask = exact["mask"].requires_grad_()
    projected = reference.cassi_forward(exact["x"], exact_mask, problem.step)
    (exact_grad_mask,) = torch.autograd.grad(projected, exact_mask, exact["y"])
    close(problem, "Phi x", forward, projected)
    close(
        problem,
        "Phi^T y",
        adjoint,
        reference.cassi_adjoint(exact["y"], exact["mask"], problem.bands, problem.step),
    )
    close(problem, "grad_mask", grad_mask, exact_grad_mask)


def check_step(problem: Problem, hqs: bool) -> None:
    """cassi_step, out of place and in place, and every output of cassi_step_backward."""
    drawn, guarded = draw(problem), Guarded(problem.layout)
    inputs = place(problem, drawn, guarded)
    ops, offsets = torch.ops.lorun_triton, problem.offsets
    x, y, mask, scale, grad = (inputs[name] for name in ("x", "y", "mask", "scale", "grad"))
    out = guarded.empty(problem.cube, problem.dtype)
    residual = guarded.empty(problem.measurement, problem.accumulator)
    in_place = guarded.place(drawn["x"])
    ops.cassi_step(x, y, mask, scale, offsets, hqs, out, residual)
    ops.cassi_step(in_place, y, mask, scale, offsets, hqs, in_place, None)
    assert torch.equal(in_place, out), f"in place differs for {problem}"

    grad_x = guarded.empty(problem.cube, problem.dtype)
    grad_y = guarded.empty(problem.measurement, problem.dtype)
    grad_mask = guarded.empty(problem.mask_shape, problem.accumulator, "contiguous")
    grad_scale = guarded.empty(problem.measurement[:2], problem.accumulator)
    view = grad_mask.expand(problem.cube)
    ops.cassi_step_backward(grad, residual, x, mask, scale, offsets, hqs, grad_x, grad_y, view, grad_scale)
    guarded.check()

    names = ("x", "y", "mask", "scale")
    exact = {name: drawn[name].double().requires_grad_() for name in names}
    step = reference.cassi_hqs_step if hqs else reference.cassi_pgd_step
    expected = step(exact["x"], exact["y"], exact["mask"], exact["scale"], problem.step)
    wanted = torch.autograd.grad(expected, [exact[name] for name in names], drawn["grad"].double())
    exact_residual = reference.cassi_forward(exact["x"], exact["mask"], problem.step) - exact["y"]
    close(problem, "out", out, expected)
    close(problem, "residual", residual, exact_residual)
    close(problem, "grad_x", grad_x, wanted[0])
    close(problem, "grad_y", grad_y, wanted[1])
    close(problem, "grad_mask", grad_mask, wanted[2])
    close(problem, "grad_scale", grad_scale.double().sum(1).sum_to_size(wanted[3].shape), wanted[3])


def check_optional_outputs(problem: Problem, hqs: bool) -> None:
    """Each gradient alone, with no more inputs than it needs, equals itself among the others."""
    guarded = Guarded(problem.layout)
    inputs = place(problem, draw(problem), guarded)
    ops, offsets = torch.ops.lorun_triton, problem.offsets
    x, y, mask, scale, grad = (inputs[name] for name in ("x", "y", "mask", "scale", "grad"))
    out, residual = torch.empty_like(x), y.new_empty(problem.measurement, dtype=problem.accumulator)
    ops.cassi_step(x, y, mask, scale, offsets, hqs, out, residual)

    def backward(wanted, residual, x):
        outputs = {
            "x": torch.zeros(problem.cube, dtype=problem.dtype),
            "y": torch.zeros(problem.measurement, dtype=problem.dtype),
            "mask": torch.zeros(problem.mask_shape, dtype=problem.accumulator),
            "scale": torch.zeros(problem.measurement[:2], dtype=problem.accumulator),
        }
        given = {name: tensor if name in wanted else None for name, tensor in outputs.items()}
        view = None if given["mask"] is None else given["mask"].expand(problem.cube)
        ops.cassi_step_backward(
            grad, residual, x, mask, scale, offsets, hqs, given["x"], given["y"], view, given["scale"]
        )
        return outputs

    together = backward(("x", "y", "mask", "scale"), residual, x)
    for name in together:
        alone = backward(
            (name,), residual if name in ("mask", "scale") else None, x if name == "mask" else None
        )
        assert alone[name].abs().max() > 0
        torch.testing.assert_close(alone[name], together[name], rtol=1e-12, atol=1e-12)


def check_nothing_measured(problem: Problem) -> None:
    """HQS with mu = 0 leaves pixels alone that nothing measures, and its gradients are finite."""
    problem = replace(problem, scale=0.0)
    inputs = draw(problem)
    x, y, grad = inputs["x"], inputs["y"], inputs["grad"]
    mask = torch.zeros(problem.cube, dtype=problem.dtype)
    scale = inputs["scale"].expand(problem.batch)
    out, residual = torch.empty_like(x), torch.empty_like(y, dtype=problem.accumulator)
    ops, offsets = torch.ops.lorun_triton, problem.offsets
    ops.cassi_step(x, y, mask, scale, offsets, True, out, residual)
    assert torch.equal(out, x)
    grad_x, grad_y, grad_mask = torch.empty_like(x), torch.empty_like(y), torch.empty_like(mask)
    grad_scale = torch.empty(problem.measurement[:2], dtype=problem.accumulator)
    ops.cassi_step_backward(
        grad, residual, x, mask, scale, offsets, True, grad_x, grad_y, grad_mask, grad_scale
    )
    assert torch.equal(grad_x, grad)
    for name, gradient in {"y": grad_y, "mask": grad_mask, "scale": grad_scale}.items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), f"grad_{name} is not zero"


def check_wide_indices(problem: Problem) -> None:
    """The 64-bit indices that a cube needs with over 2^31 elements a sample, on a cube that fits here."""
    import triton.language as tl

    from lorun_kernels.triton import cassi

    cube = torch.empty((1, 256, 4096, 4096), device="meta")
    assert cassi._index([cube[:, :128]]) == tl.int32
    assert cassi._index([cube[:, :130]]) == tl.int64
    assert cassi._index([cube[:, :1], cube[:, :1].expand_as(cube)]) == tl.int32
    with mock.patch.object(cassi, "_index", return_value=tl.int64):
        check_projections(problem)
        check_step(problem, True)
