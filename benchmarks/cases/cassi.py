"""The CASSI operators and data steps, against the field's code and against merely moving the cube."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import lorun_kernels as lk
from benchmarks.cases.backends import on_backend
from benchmarks.cases.inputs import input_sets
from benchmarks.harness.case import OURS, REFERENCE, Call, Candidate, Case, Work
from benchmarks.peers import cassi_rolls as field

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# The field's loops round to bfloat16 after every band.
TOLERANCES = {"float32": 1e-4, "bfloat16": 4e-2}
DEFINITION = {REFERENCE: "reference"}
BACKENDS = {
    "cpu": DEFINITION,
    "cuda": {f"{OURS}, {backend}": backend for backend in ("cuda", "triton")} | DEFINITION,
}


@dataclass(frozen=True)
class DataStep:
    """One of the two data steps: call(x, y, mask, rho or mu)."""

    call: Callable[..., Tensor]
    in_place: Callable[..., Tensor]
    hqs: bool

    def scale(self, bands: int, device: str) -> Tensor:
        """mu, or a rho below 2 over the norm of Phi Phi^T, so that repeated steps in place converge."""
        return torch.tensor(0.5 if self.hqs else 1 / bands, device=device)


PGD = DataStep(lk.cassi_pgd_step, lk.cassi_pgd_step_, hqs=False)
HQS = DataStep(lk.cassi_hqs_step, lk.cassi_hqs_step_, hqs=True)


class Scene:
    """Cubes, measurements and a mask.

    Args:
        size: rows of the cubes, and also columns unless `width` is given.
        dtype: "float32" or "bfloat16".
        layout: of the cubes, "NCHW" or "NHWC".
    """

    def __init__(
        self,
        device: str,
        size: int,
        batch: int = 1,
        bands: int = 28,
        width: int | None = None,
        dtype: str = "float32",
        layout: str = "NCHW",
    ) -> None:
        self.device, self.bands, self.width = device, bands, width or size
        self.dtype, self.layout = dtype, layout
        self.shape = (batch, bands, size, self.width)
        self.sets = input_sets(device, self.random(*self.shape).nbytes)
        self.cubes = self.random_cubes()
        columns = self.width + field.STEP * (bands - 1)
        self.measured = [self.random(batch, size, columns) for _ in range(self.sets)]
        self.mask = self.random(size, self.width)

    def random(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=getattr(torch, self.dtype), device=self.device)

    def random_cubes(self) -> list[Tensor]:
        layout = LAYOUTS[self.layout]
        return [self.random(*self.shape).contiguous(memory_format=layout) for _ in range(self.sets)]

    def padded(self) -> list[Tensor]:
        """The cubes as the field keeps them, for one candidate only, since rolls work in place."""
        return [field.pad(cube.detach()) for cube in self.cubes]

    @property
    def nchw(self) -> bool:
        """Whether the layout is the one that the field uses."""
        return self.layout == "NCHW"

    def case(self, cubes: int, flops: int, grad: bool = False) -> Case:
        """A case without candidates; its work moves `cubes` cubes and takes `flops` operations per voxel."""
        one = self.cubes[0]
        small = self.measured[0].nbytes + self.mask.nbytes
        return Case(
            ", ".join(["x".join(map(str, self.shape)), *self._unusual()]),
            images=self.shape[0],
            inputs=self.sets,
            work=Work(bytes=cubes * one.nbytes + small, flops=flops * one.numel()),
            tolerance=TOLERANCES[self.dtype],
            grad=grad,
        )

    def _unusual(self) -> list[str]:
        return [name for name in (self.dtype, self.layout) if name not in ("float32", "NCHW")]


def forward(device: str, compiled: bool = True, **inputs) -> Case:
    """Phi x. `inputs` are those of `Scene`."""
    scene = Scene(device, **inputs)
    cubes, mask = scene.cubes, scene.mask
    case = scene.case(cubes=1, flops=2)
    _add_ours(case, device, lambda i: lk.cassi_forward(cubes[i], mask))
    case.candidates["x.sum()"] = Candidate(lambda i: cubes[i].sum(), unlike="only reads the cube: the floor")
    if scene.nchw:
        case.candidates["loop of slices"] = Candidate(lambda i: field.loop_forward(cubes[i], mask))
        shifted_mask, padded = field.shift_mask(mask, scene.bands), scene.padded()
        case.candidates["rolls"] = Candidate(lambda i: field.roll_forward(padded[i], shifted_mask))
        if compiled:
            kept, function = scene.padded(), torch.compile(field.roll_forward)
            case.candidates["rolls, compiled"] = Candidate(
                lambda i: function(kept[i], shifted_mask, field.rolled)
            )
    return case


def adjoint(device: str, compiled: bool = True, **inputs) -> Case:
    """Phi^T y. `inputs` are those of `Scene`."""
    scene = Scene(device, **inputs)
    cubes, measured, mask, bands, width = scene.cubes, scene.measured, scene.mask, scene.bands, scene.width
    layout = LAYOUTS[scene.layout]
    case = scene.case(cubes=1, flops=1)
    _add_ours(case, device, lambda i: lk.cassi_adjoint(measured[i], mask, bands, memory_format=layout))
    case.candidates["fill"] = Candidate(
        lambda i: torch.empty_like(cubes[i]).fill_(0.5), unlike="only writes the cube: the floor"
    )
    if scene.nchw:
        case.candidates["loop of slices"] = Candidate(lambda i: field.loop_adjoint(measured[i], mask, bands))
        case.candidates["strided view"] = Candidate(lambda i: field.view_adjoint(measured[i], mask, bands))
        shifted_mask = field.shift_mask(mask, bands)
        case.candidates["rolls"] = Candidate(
            lambda i: field.roll_adjoint(measured[i], shifted_mask)[..., :width]
        )
        if compiled:
            function = torch.compile(field.roll_adjoint)
            case.candidates["rolls, compiled"] = Candidate(
                lambda i: function(measured[i], shifted_mask, field.rolled)[..., :width]
            )
    return case


def data_step(step: DataStep, device: str, compiled: bool = True, **inputs) -> Case:
    """A step in every form that we have and in every way of the field. `inputs` are those of `Scene`."""
    scene = Scene(device, **inputs)
    case = _against_rolls_and_a_copy(step, scene)
    _add_forms(case, step, scene)
    if scene.nchw:
        scale, loops = step.scale(scene.bands, device), field.LoopStep(scene.mask, scene.bands, step.hqs)
        case.candidates["loop of slices"] = Candidate(
            lambda i: loops(scene.cubes[i], scene.measured[i], scale)
        )
        if compiled:
            case.candidates["rolls, compiled"] = _rolls(step, scene, compiled=True)
    return case


def over_size(device: str, size: int, bands: int = 28) -> Case:
    """The HQS step on cubes of several sizes."""
    case = _against_rolls_and_a_copy(HQS, Scene(device, size, bands=bands))
    return replace(case, axis=("side of the cube, pixels", size))


def over_batch(device: str, batch: int, size: int = 64, bands: int = 28) -> Case:
    """The same on several cubes at once."""
    case = _against_rolls_and_a_copy(HQS, Scene(device, size, batch, bands))
    return replace(case, axis=("batch", batch))


def _against_rolls_and_a_copy(step: DataStep, scene: Scene) -> Case:
    # Each voxel is multiplied and added into the measurement, and the same on the way back.
    case = scene.case(cubes=2, flops=4)
    scale = step.scale(scene.bands, scene.device)
    _add_ours(case, scene.device, lambda i: step.call(scene.cubes[i], scene.measured[i], scene.mask, scale))
    case.candidates["copy"] = Candidate(lambda i: scene.cubes[i].clone(), unlike="only copies: the floor")
    if scene.nchw:
        case.candidates["rolls"] = _rolls(step, scene)
    return case


def _rolls(step: DataStep, scene: Scene, compiled: bool = False) -> Candidate:
    """The field's step, in place: right on the first call, which is checked, and equally long on later ones.

    A later call finds its cube shifted by the one before, cyclically: no value is lost or changed.
    """
    peer, padded = field.RollStep(scene.mask, scene.bands, step.hqs), scene.padded()
    scale = step.scale(scene.bands, scene.device)
    function = torch.compile(peer.__call__) if compiled else peer
    return Candidate(lambda i: function(padded[i], scene.measured[i], scale, compiled)[..., : scene.width])


def _add_ours(case: Case, device: str, call: Call, make: Callable[..., Candidate] = Candidate) -> None:
    """Ours by default, and on every backend of the device."""
    case.candidates[OURS] = make(call, ours=True)
    for name, backend in BACKENDS[device].items():
        case.add(name, lambda backend=backend: make(on_backend(backend, call), ours=True))


def _add_forms(case: Case, step: DataStep, scene: Scene) -> None:
    """Ours in other forms, which compute the same thing."""
    measured, mask, scale = scene.measured, scene.mask, step.scale(scene.bands, scene.device)
    changed = [cube.clone() for cube in scene.cubes]
    mask_3d = mask.expand(scene.bands, *mask.shape).contiguous()
    case.candidates[f"{OURS}, in place"] = Candidate(
        lambda i: step.in_place(changed[i], measured[i], mask, scale), ours=True
    )
    case.candidates[f"{OURS}, (C, H, W) mask"] = Candidate(
        lambda i: step.call(scene.cubes[i], measured[i], mask_3d, scale), ours=True
    )
    if scene.nchw:
        channels_last = [cube.contiguous(memory_format=torch.channels_last) for cube in scene.cubes]
        case.candidates[f"{OURS}, channels_last"] = Candidate(
            lambda i: step.call(channels_last[i], measured[i], mask, scale), ours=True
        )


def training_step(
    step: DataStep, device: str, backward_only: bool = False, compiled: bool = True, **inputs
) -> Case:
    """A step and the gradients of the cube and of rho or mu. `inputs` are those of `Scene`.

    Args:
        backward_only: whether only the gradients are timed, on a graph that is kept.
    """
    scene = Scene(device, **inputs)
    passes = 1 if backward_only else 2
    case = scene.case(cubes=2 * passes, flops=4 * passes, grad=True)
    scale = step.scale(scene.bands, device).requires_grad_()
    cubes, measured, mask = [cube.requires_grad_() for cube in scene.cubes], scene.measured, scene.mask
    gradients = Gradients(cubes, scene.random_cubes(), scale, scene.width, backward_only)
    _add_ours(case, device, lambda i: step.call(cubes[i], measured[i], mask, scale), gradients.candidate)
    case.candidates["copy" if backward_only else "two copies"] = gradients.floor()
    if scene.nchw:
        loops = field.LoopStep(mask, scene.bands, step.hqs)
        case.candidates["loop of slices"] = gradients.candidate(lambda i: loops(cubes[i], measured[i], scale))
        rolls, padded = field.RollStep(mask, scene.bands, step.hqs), gradients.padded()
        case.candidates["rolls"] = padded.candidate(
            lambda i: rolls(padded.cubes[i], measured[i], scale, training=True)
        )
        if compiled:
            function = torch.compile(rolls.__call__)
            case.candidates["rolls, compiled"] = padded.candidate(
                lambda i: function(padded.cubes[i], measured[i], scale, training=True)
            )
    return case


@dataclass(frozen=True)
class Gradients:
    """Makes candidates out of steps: their gradients with respect to the cube and to rho or mu.

    Args:
        cubes: the inputs of the steps.
        grads: the gradients of the steps' results.
        width: columns of the cubes that count.
        backward_only: as for `training_step`.
    """

    cubes: list[Tensor]
    grads: list[Tensor]
    scale: Tensor
    width: int
    backward_only: bool

    def padded(self) -> Gradients:
        """The same for the padded cubes of the field."""
        cubes = [field.pad(cube.detach()).requires_grad_() for cube in self.cubes]
        return replace(self, cubes=cubes, grads=[field.pad(grad) for grad in self.grads])

    def candidate(self, forward: Call, ours: bool = False) -> Candidate:
        graph = forward(0) if self.backward_only else None

        def call(i: int) -> tuple[Tensor, Tensor]:
            result, cube = (forward(i), self.cubes[i]) if graph is None else (graph, self.cubes[0])
            of_cube, of_scale = torch.autograd.grad(
                result, [cube, self.scale], self.grads[i], retain_graph=self.backward_only
            )
            return of_cube[..., : self.width], of_scale

        return Candidate(call, forward=forward, ours=ours)

    def floor(self) -> Candidate:
        """One copy for each pass."""
        copied = [self.grads] if self.backward_only else [self.cubes, self.grads]
        return Candidate(
            lambda i: [one[i].detach().clone() for one in copied], unlike="only copies: the floor"
        )
