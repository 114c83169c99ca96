"""A layer of the networks as a case: its candidates agree, and on a GPU its error and its memory."""

import pytest
import torch

import lorun_kernels as lk
from benchmarks import table
from benchmarks.cases import lora_layer
from benchmarks.cases.backends import on_backend
from benchmarks.cases.layers import Layer, layer_table, named_layer
from benchmarks.cases.lora_layer import LORALIB, PLAIN, Operands, resized
from benchmarks.harness.case import OURS
from benchmarks.harness.gpu import peak_bytes, requested_bytes

DECODER, RESIDUAL = "56+28->28 3x3 @256 gelu", "28->28 3x3 @256 +residual"
KERNELS = ("cuda", "triton", "aten")
ALL_STAGES, ONE_STAGE = 9, 1


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the root mean square."""
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layer", [DECODER, RESIDUAL])
def test_candidates_compute_the_same_layer(monkeypatch, measured, layer, grad):
    monkeypatch.setitem(lora_layer.DTYPES, "cpu", torch.float64)
    monkeypatch.setitem(lora_layer.TOLERANCES, "cpu", 1e-12)
    case = lora_layer.convolution("cpu", layer, batch=2, size=12, grad=grad)
    names = [OURS, *lora_layer.BACKENDS["cpu"], PLAIN, LORALIB]
    record = measured(case)
    assert list(record["candidates"]) == names and not record["missing"]
    assert [name for name, one in case.candidates.items() if one.unlike] == [PLAIN]
    kept = [one["kept_bytes"] for one in record["candidates"].values()]
    assert all(kept) if grad else kept == [None] * len(names)


def test_gradients_are_those_of_images_and_factors():
    operands = Operands(resized(named_layer(DECODER), 6), 2, 2, "cpu", torch.float64, grad=True)
    factors = [operands.up, operands.down]
    ours = operands.candidate(operands.fused, factors, ours=True)
    shapes = [operands.inputs[1].shape, operands.seconds[1].shape, operands.up.shape, operands.down.shape]
    assert [gradient.shape for gradient in ours.call(1)] == shapes
    assert len(operands.candidate(operands.plain, []).call(0)) == 2
    assert not torch.equal(ours.call(0)[0], ours.call(1)[0])


@torch.no_grad()
def test_a_lost_adapter_would_be_noticed():
    operands = Operands(resized(named_layer(RESIDUAL), 12), 2, 2, "cpu", torch.float64)
    assert relative_error(operands.plain(1), operands.loralib(1)) > 0.05
    rounded = operands.to(torch.float32).fused(0)
    assert rounded.dtype == torch.float32 and 0 < relative_error(rounded, operands.fused(0)) < 1e-6


def test_images_of_one_set_in_bytes():
    # 84 channels in; 28 out, and as many of the gradient.
    assert lora_layer.bytes_of_images(named_layer(DECODER), 8, 2) == 2 * 8 * 256**2 * (84 + 2 * 28)


def skip_without(backend: str) -> None:
    reason = lk.available_backends()[backend]
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layer", table.BARE_LAYERS)
def test_error_is_that_of_cudnn(record_property, backend, layer):
    """Against float64: the result, the gradients of the input and of the factors."""
    skip_without(backend)
    dtype = torch.bfloat16
    operands = Operands(resized(named_layer(layer), 64), 2, 1, "cuda", dtype, grad=True)
    exact = operands.to(torch.float64)

    def results(of: Operands, forward) -> list[torch.Tensor]:
        return [forward(0), *of.gradients(forward, [of.up, of.down], 0)]

    truth = results(exact, exact.loralib)
    errors = {
        name: [
            relative_error(value, true)
            for value, true in zip(results(operands, on_backend(name, operands.fused)), truth, strict=True)
        ]
        for name in ("aten", backend)
    }
    record_property("relative_rms", errors)
    for value, cudnn, true in zip(errors[backend], errors["aten"], truth, strict=True):
        # The error of a few elements is chance: cuDNN may have been lucky by up to one rounding.
        chance = torch.finfo(dtype).eps / 2 if true.numel() < 100 else 0.0
        assert value <= 1.5 * max(cudnn, chance), errors


def most_memory(layer: Layer) -> int:
    return layer.in_channels * (layer.activation is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", KERNELS)
def test_memory_does_not_grow_with_the_stages(record_property, backend):
    """K adapters on one base, in inference and as kept for backward."""
    skip_without(backend)
    layer = max(layer_table(), key=most_memory)
    operands = Operands(layer, 1, 1, "cuda", torch.bfloat16)
    call = on_backend(backend, operands.fused)
    factors = [(torch.randn_like(operands.up), torch.randn_like(operands.down)) for _ in range(ALL_STAGES)]

    @torch.no_grad()
    def infer(stages: int) -> None:
        for operands.up, operands.down in factors[:stages]:
            call(0)

    infer(ONE_STAGE)
    peaks = {stages: peak_bytes(infer, stages) for stages in (ONE_STAGE, ALL_STAGES)}
    for up, down in factors:
        up.requires_grad_(), down.requires_grad_()
    before, outputs = requested_bytes(), []
    for operands.up, operands.down in factors:
        outputs.append(call(0))
    kept = requested_bytes() - before
    # A result, and the input of its activation.
    images = 2 * sum(output.nbytes for output in outputs)
    weight = operands.weight.nbytes
    record_property("bytes", {"peak": peaks, "kept": kept, "images": images, "weight": weight})
    assert peaks[ALL_STAGES] == peaks[ONE_STAGE]
    assert kept - images <= weight
