"""Layers with a low-rank adapter, ours and the peers', with the same values and on the same inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import lorun_kernels as lk
from benchmarks.cases.backends import add_on_backends, on_backend
from benchmarks.cases.inputs import input_sets
from benchmarks.harness.case import OURS, REFERENCE, Candidate, Case, Work
from benchmarks.peers import adapters
from benchmarks.peers.adapters import Adapted, Twin

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCES = {"cpu": 1e-4, "cuda": 0.03}
FACTORED = f"{OURS}, factored"
MERGED = "merged weight (loralib's eval)"
DEFINITION = {REFERENCE: "reference"}
BACKENDS = {
    "cpu": DEFINITION,
    "cuda": {f"{OURS}, {backend}": backend for backend in ("cuda", "triton", "aten")} | DEFINITION,
}


def convolution(
    device: str,
    in_channels: int,
    out_channels: int,
    size: int,
    kernel: int = 3,
    batch: int = 1,
    grad: bool = False,
    compiled: bool = True,
) -> Case:
    """A convolution of the U-Nets, with only a bias after it."""
    trial = Trial.of_convolution(device, in_channels, out_channels, size, kernel, batch, grad)
    trial.add_factored()
    return _complete(trial, compiled)


def linear(
    device: str, in_features: int, out_features: int, tokens: int, grad: bool = False, compiled: bool = True
) -> Case:
    """A linear layer on the tokens, or pixels, of one image; in the transformer it is a 1x1 convolution."""
    title = f"{tokens} x {in_features}->{out_features}"
    trial = Trial(title, nn.Linear(in_features, out_features), (tokens, in_features), device, grad)
    return _complete(trial, compiled)


def over_size(device: str, size: int, channels: int = 28) -> Case:
    """A convolution of the U-Nets' first level on images of several sizes."""
    trial = Trial.of_convolution(device, channels, channels, size)
    trial.add_factored()
    trial.add_peers()
    return replace(trial.case, axis=("side of the image, pixels", size))


def over_batch(device: str, batch: int, size: int = 64, channels: int = 28) -> Case:
    """The same on several images at once."""
    trial = Trial.of_convolution(device, channels, channels, size, batch=batch)
    trial.add_factored()
    trial.add_peers()
    return replace(trial.case, axis=("batch", batch))


def _complete(trial: Trial, compiled: bool) -> Case:
    trial.add_backends()
    trial.add_peers()
    trial.add_merged_and_compiled(compiled)
    return trial.case


class Trial:
    """A case that begins with ours: a layer, adapted as if trained, and inputs that all candidates share.

    Args:
        base: the layer that is adapted.
        shape: of one input.
        grad: whether a call is a training step, which ends in the gradients of the input and of the factors.
        images: how many one input holds.
    """

    def __init__(
        self,
        title: str,
        base: nn.Module,
        shape: tuple[int, ...],
        device: str,
        grad: bool,
        images: int = 1,
    ) -> None:
        self.base = base.to(device, DTYPES[device], memory_format=torch.channels_last)
        self.layer = _trained(_adapted(self.base))
        # The function that peft computes; a linear layer has only one form.
        linear = isinstance(base, nn.Linear)
        self.factored = self.layer if linear else _trained(_adapted(self.base, form="factored"))
        first = self._random(shape)
        result = self.base(first)
        sets = input_sets(device, first.nbytes + grad * result.nbytes)
        self.inputs = [self._random(shape).requires_grad_(grad) for _ in range(sets)]
        self.grads = [self._random(result.shape) for _ in range(sets if grad else 0)]
        self.case = Case(
            title,
            images=images,
            inputs=sets,
            work=work(self.layer, first, result, grad),
            tolerance=TOLERANCES[device],
            grad=grad,
        )
        self.case.candidates[OURS] = self._candidate(_twin(self.layer), ours=True)

    @classmethod
    def of_convolution(
        cls,
        device: str,
        in_channels: int,
        out_channels: int,
        size: int,
        kernel: int = 3,
        batch: int = 1,
        grad: bool = False,
    ) -> Trial:
        title = f"{in_channels}->{out_channels} {kernel}x{kernel} @{size}"
        title += f", batch {batch}" if batch > 1 else ""
        base = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        return cls(title, base, (batch, in_channels, size, size), device, grad, images=batch)

    def add_factored(self) -> None:
        """The adapter's other form, which is another function: it is checked against the reference."""
        ours = self._candidate(_twin(self.factored), ours=True)
        self.case.candidates[FACTORED] = replace(ours, expected=on_backend("reference", ours.call))

    def add_backends(self) -> None:
        """Ours on every backend of the device."""
        add_on_backends(self.case, BACKENDS[self.base.weight.device.type])

    def add_peers(self) -> None:
        """The layer without an adapter, and by the libraries with factors that stay apart as in training."""
        self.case.add("plain frozen", self._plain)
        self.case.add("loralib", lambda: self._candidate(adapters.loralib(self.layer)))
        self.case.add("peft", self._peft)

    def add_merged_and_compiled(self, compiled: bool) -> None:
        """What a user could do instead: merge for inference, as loralib's eval() does, or compile loralib."""
        if not self.case.grad:  # merged factors cannot be trained
            self.case.add(MERGED, lambda: self._candidate(adapters.merged(self.layer, self.base)))
        if compiled:
            twin = adapters.compiled_loralib
            self.case.add("loralib, compiled", lambda: self._candidate(twin(self.layer)))

    def _plain(self) -> Candidate:
        # An adapter that is not trained yet adds zero.
        expected = self._candidate(Twin(_adapted(self.base))).call
        return self._candidate(Twin(self.base), expected=expected)

    def _peft(self) -> Candidate:
        twin = adapters.peft(self.factored, self.base)
        ours = self._candidate(_twin(self.factored)).call

        def shaped_gradients(i: int) -> list[Tensor]:
            """Ours, in the shapes of peft's factors, which are convolutions of their own."""
            return [
                mine.view_as(its) for mine, its in zip(ours(i), [self.inputs[i], *twin.factors], strict=True)
            ]

        expected = shaped_gradients if self.case.grad else ours
        against = FACTORED if FACTORED in self.case.candidates else None
        return self._candidate(twin, expected=expected, against=against)

    def _candidate(self, twin: Twin, **fields) -> Candidate:
        """A layer's pass or, in training, a step in which only the input and the factors have gradients."""

        def forward(i: int) -> Tensor:
            return twin.module(self.inputs[i])

        def step(i: int) -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(i), [self.inputs[i], *twin.factors], self.grads[i])

        parameters = sum(parameter.nbytes for parameter in twin.module.parameters())
        passes = {"call": step, "forward": forward} if self.case.grad else {"call": forward}
        return Candidate(**passes, parameters=parameters, **fields)

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, device=self.base.weight.device, dtype=self.base.weight.dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def work(layer: Adapted, input: Tensor, result: Tensor, grad: bool) -> Work:
    """The work of a pass and, with `grad`, of the gradients of the input and of the factors.

    Backward takes two more products as large as that of the pass, and two as large as that of the factors; it
    reads the gradient of the result and writes those of the input and of the factors.
    """
    factors = layer.lora_up.nbytes + layer.lora_down.nbytes
    images = input.nbytes + result.nbytes
    product = 2 * result.numel() * layer.base_weight[0].numel()
    merge = 2 * layer.base_weight.numel() * layer.lora_up.shape[1]
    parameters = sum(parameter.nbytes for parameter in layer.parameters())
    backward = images + factors if grad else 0
    return Work(bytes=parameters + images + backward, flops=(product + merge) * (3 if grad else 1))


def _adapted(base: nn.Module, **form: str) -> Adapted:
    """`base` with an adapter of the rank of Eq. 12 that adds zero for now."""
    if isinstance(base, nn.Linear):
        return lk.FusedLoRALinear.from_linear(base)
    return lk.FusedLoRAConv2d.from_conv(base, **form)


def _trained(layer: Adapted) -> Adapted:
    """With an adapter nearly as large as the weight, so that a candidate that loses it is noticed."""
    nn.init.normal_(layer.lora_up, std=0.1)
    return layer


def _twin(layer: Adapted) -> Twin:
    return Twin(layer, (layer.lora_up, layer.lora_down))
