"""One stage's denoiser of a shipped network: each layer merging for itself, or all merged in one launch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import lorun
import lorun_kernels as lk
from benchmarks.cases.backends import add_on_backends
from benchmarks.cases.inputs import input_sets
from benchmarks.cases.layers import denoiser_inputs
from benchmarks.harness.case import OURS, REFERENCE, Candidate, Case

MERGED = "stage merged"
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
# Sixteen layers in bfloat16, one after another.
TOLERANCES = {"cpu": 1e-4, "cuda": 0.05}
NAMES = {
    "cpu": {REFERENCE: "reference"},
    "cuda": {f"{OURS}, {backend}": backend for backend in ("cuda", "triton", "aten")},
}


def stage(device: str, model: str, batch: int, size: int = 256, grad: bool = False) -> Case:
    """A pass of the first stage's denoiser or, with `grad`, also the gradients of its image and adapter.

    With the stage merged, its scratch counts among the weights.
    """
    network = lorun.create_model(model, pretrained=False).to(device, DTYPES[device])
    denoisers = network.denoisers
    with torch.no_grad():
        for parameter in denoisers.parameters():
            parameter.normal_(std=0.05)
    shape = (batch, network.denoiser.channels, size, size)
    bytes_of_one = 3 * DTYPES[device].itemsize * batch * network.denoiser.channels * size**2
    images = [
        torch.rand(shape, device=device).to(DTYPES[device]).requires_grad_(grad)
        for _ in range(input_sets(device, bytes_of_one))
    ]
    inputs = [denoiser_inputs(denoisers[0], image, 0.1) for image in images]
    adapters = [parameter for parameter in denoisers[0].parameters() if parameter.requires_grad]
    gradient = torch.randn(shape, device=device).to(DTYPES[device])
    stages = lk.StageWeights(denoisers)

    def forward(i: int) -> Tensor:
        return denoisers[0](*inputs[i])

    def alone(i: int) -> Tensor | tuple[Tensor, ...]:
        output = forward(i)
        return torch.autograd.grad(output, [images[i], *adapters], gradient) if grad else output

    def merged(i: int) -> Tensor | tuple[Tensor, ...]:
        with stages.stage(0):
            return alone(i)

    case = Case(
        f"{model}, {'x'.join(map(str, shape))}",
        images=batch,
        inputs=len(images),
        tolerance=TOLERANCES[device],
        grad=grad,
    )
    weights = sum(parameter.nbytes for parameter in denoisers[0].parameters())
    ours = Candidate(alone, ours=True, parameters=weights)
    case.candidates[OURS] = ours
    case.candidates[f"{OURS}, {MERGED}"] = replace(
        ours, call=merged, parameters=weights + stages.scratch_nbytes
    )
    add_on_backends(case, NAMES[device])
    in_one_launch = {f"{name}, {MERGED}": backend for name, backend in NAMES[device].items()}
    add_on_backends(case, in_one_launch, of=f"{OURS}, {MERGED}")
    return case
