"""The low-rank convolution on a GPU: every backend against cuDNN and loralib's form, by CUDA events.

bf16, channels_last, the layers of the shipped networks at 256x256; cuDNN searches for its fastest algorithm.
What each test measures goes into its `extra_info`, from which benchmarks/roofline.py and
benchmarks/lora_results.py read; no clock is asserted.
"""

from __future__ import annotations

import copy

import pytest
import torch

import lorun
import lorun_kernels as lk
from benchmarks.gpu_timing import (
    BACKWARD_CYCLES,
    kernel_names,
    milliseconds,
    peak_bytes,
    requested_bytes,
    time_limit,
    variants,
)
from benchmarks.lora_candidates import (
    BATCHES,
    Block,
    Case,
    bench_layers,
    on,
    relative_error,
    small,
    usable,
)
from benchmarks.lora_layers import Layer, adapted_networks, denoiser_inputs
from benchmarks.lora_results import BACKENDS
from benchmarks.roofline import network_blocks
from lorun.adapters import adapted_view

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch sees none"),
]

DTYPE = torch.bfloat16
LAYERS = bench_layers()
CASES = [
    pytest.param(scope, layer, batch, id=f"{scope}, {layer.name}, batch {batch}")
    for scope, layers in LAYERS.items()
    for batch in BATCHES
    for layer in layers
]
# Compiling takes longest: the largest come first, and where time is short the others not at all.
BLOCKS = dict(sorted(network_blocks().items(), key=lambda block: -block[1][0].height))
ALL_STAGES, ONE_STAGE = 9, 1
COMPILE_SECONDS = 30


@pytest.fixture(autouse=True)
def fastest_of_cudnn(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


@pytest.fixture
def record(benchmark, lora_records):
    """record(call, kind=..., ...) keeps what a test measured."""

    def keep(call, **fields) -> None:
        fields["gpu"] = torch.cuda.get_device_name()
        benchmark.extra_info.update(fields)
        lora_records.append(fields)
        benchmark.pedantic(call, rounds=1)

    return keep


def _case(layer: Layer, batch: int) -> Case:
    return Case(layer, batch, variants(Case.bytes_of_images(layer, batch)), "cuda", DTYPE)


def _fields(kind: str, scope: str, layer: Layer, batch: int) -> dict:
    return {
        "kind": kind,
        "scope": scope,
        "layer": layer.name,
        "batch": batch,
        "count": LAYERS[scope][layer],
        "shape": [layer.kernel[0], layer.in_channels, layer.out_channels],
        "pixels": batch * layer.height * layer.width,
        "title": f"{kind}, {scope}, {layer.name}, batch {batch}",
    }


@pytest.mark.benchmark(group="ceilings of a GPU")
def test_ceilings(record):
    source = torch.randn(2**28, device="cuda").to(DTYPE)
    copies = torch.empty_like(source)
    side = 8192
    left, right = (torch.randn(side, side, device="cuda").to(DTYPE) for _ in range(2))
    one = torch.zeros(1, device="cuda")
    in_a_row = 200

    def smallest(_):
        for _ in range(in_a_row):
            one.add_(1)

    calls = {"copy": lambda i: copies.copy_(source), "product": lambda i: left @ right}
    times = milliseconds(calls, 1) | milliseconds({"smallest": smallest}, 1, cycles=20_000_000)
    least = {name: sorted(values)[len(values) // 2] * 1e-3 for name, values in times.items()}
    record(
        lambda: copies.copy_(source),
        kind="ceilings",
        copy_tb_per_s=2 * source.nbytes / least["copy"] / 1e12,
        matmul_tflop_per_s=2 * side**3 / least["product"] / 1e12,
        kernel_us=least["smallest"] / in_a_row * 1e6,
    )
    assert torch.equal(copies, source)


@pytest.mark.parametrize("scope, layer, batch", CASES)
@pytest.mark.benchmark(group="lora_conv2d forward on a GPU")
@torch.no_grad()
def test_forward(record, scope, layer, batch):
    case = _case(layer, batch)
    calls, missing = usable(case.candidates(), "loralib")
    times = milliseconds(calls, len(case.inputs))
    fields = _fields("forward", scope, layer, batch)
    record(lambda: case.lorun(0), milliseconds=times, missing=missing, **fields)
    assert "default" in calls, missing


@pytest.mark.parametrize("scope, layer, batch", [case for case in CASES if case.values[0] == "network"])
@pytest.mark.benchmark(group="lora_conv2d forward+backward on a GPU")
def test_forward_and_backward(record, scope, layer, batch):
    case = _case(layer, batch)
    steps = {name: case.trained(call) for name, call in case.candidates().items()}
    calls, missing = usable(steps, "loralib")
    times = milliseconds(calls, len(case.inputs), cycles=BACKWARD_CYCLES)
    fields = _fields("forward+backward", scope, layer, batch)
    record(lambda: steps["default"](0), milliseconds=times, missing=missing, **fields)
    assert "default" in calls, missing


@pytest.mark.parametrize("layer", LAYERS["bias only"], ids=lambda layer: layer.name)
@pytest.mark.benchmark(group="lora_conv2d error on a GPU")
def test_error_is_that_of_cudnn(record, layer):
    """Against float64: the result, the gradients of the input and of the factors."""
    case = Case(small(layer, 64), 2, 1, "cuda", DTYPE)
    exact = case.to(torch.float64)
    truth = [exact.lorun(0), *exact.trained(exact.loralib)(0)]
    errors, missing = {}, {}
    for name in BACKENDS:
        call = on(name, case.lorun)
        reason = lk.available_backends()[name]
        if reason is not None:
            missing[name] = reason
            continue
        results = [call(0), *case.trained(call)(0)]
        errors[name] = [relative_error(ours, true) for ours, true in zip(results, truth, strict=True)]
    record(lambda: case.lorun(0), kind="error", layer=layer.name, relative_rms=errors, missing=missing)
    for name, values in errors.items():
        for value, cudnn, true in zip(values, errors["aten"], truth, strict=True):
            # The error of a few elements is chance: up to one rounding, cuDNN may have had luck.
            chance = torch.finfo(DTYPE).eps / 2 if true.numel() < 100 else 0.0
            assert value <= 1.5 * max(cudnn, chance), f"{name}: {values}, cuDNN {errors['aten']}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.benchmark(group="lora_conv2d memory on a GPU")
def test_memory_does_not_grow_with_the_stages(record, backend):
    """K adapters on one base, in inference and as kept for backward."""
    reason = lk.available_backends()[backend]
    if reason is not None:
        pytest.skip(reason)
    layer = max(LAYERS["network"], key=lambda layer: layer.in_channels * (layer.activation is not None))
    case = Case(layer, 1, 1, "cuda", DTYPE)
    call = on(backend, case.lorun)
    factors = [(torch.randn_like(case.up), torch.randn_like(case.down)) for _ in range(ALL_STAGES)]

    @torch.no_grad()
    def infer(stages: int) -> None:
        for case.up, case.down in factors[:stages]:
            call(0)

    infer(ONE_STAGE)
    peaks = {stages: peak_bytes(infer, stages) for stages in (ONE_STAGE, ALL_STAGES)}
    for up, down in factors:
        up.requires_grad_(), down.requires_grad_()
    before, outputs = requested_bytes(), []
    for case.up, case.down in factors:
        outputs.append(call(0))
    kept = requested_bytes() - before
    # A result, and what its activation was given.
    images = 2 * sum(output.nbytes for output in outputs)
    weight = case.weight.nbytes
    record(
        lambda: infer(ONE_STAGE),
        kind="memory",
        backend=backend,
        layer=layer.name,
        peak_bytes={str(stages): peak for stages, peak in peaks.items()},
        kept_bytes=kept,
        image_bytes=images,
        weight_bytes=weight,
    )
    assert peaks[ALL_STAGES] == peaks[ONE_STAGE]
    assert kept - images <= weight


@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", adapted_networks())
@pytest.mark.benchmark(group="a stage's denoiser on a GPU")
def test_denoiser(record, name, batch, training):
    """A whole stage: each layer merging for itself, and from the scratch that one launch has merged.

    In training, the gradients of adapters too: layer by layer, and of the stage in one launch.
    """
    network = lorun.create_model(name, pretrained=False).to("cuda", DTYPE)
    denoisers = network.denoisers
    with torch.no_grad():
        for parameter in denoisers.parameters():
            parameter.normal_(std=0.05)
    shape = (batch, network.denoiser.channels, 256, 256)
    images = [torch.rand(shape, device="cuda").to(DTYPE).requires_grad_(training) for _ in range(4)]
    inputs = [denoiser_inputs(denoisers[0], image, 0.1) for image in images]
    adapters = [parameter for parameter in denoisers[0].parameters() if parameter.requires_grad]
    grad = torch.randn(shape, device="cuda").to(DTYPE)
    stages = lk.StageWeights(denoisers)

    def results(i: int):
        output = denoisers[0](*inputs[i])
        return list(torch.autograd.grad(output, [images[i], *adapters], grad)) if training else output

    def alone(i: int):
        with torch.set_grad_enabled(training):
            return results(i)

    def merged(i: int):
        with torch.set_grad_enabled(training), stages.stage(0):
            return results(i)

    candidates = {"default": alone, "default, stage merged": merged}
    for backend in BACKENDS:
        candidates |= {backend: on(backend, alone), f"{backend}, stage merged": on(backend, merged)}
    calls, missing = usable(candidates, "aten", most=0.05)
    times = milliseconds(calls, len(images), cycles=BACKWARD_CYCLES)
    title = f"denoiser of {name}, batch {batch}{', with backward' if training else ''}"
    fields = {"kind": "denoiser", "network": name, "batch": batch, "training": training, "title": title}
    record(
        lambda: alone(0), milliseconds=times, missing=missing, scratch_bytes=stages.scratch.nbytes, **fields
    )
    assert "default" in calls, missing


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.benchmark(group="a residual block on a GPU")
@torch.no_grad()
def test_block_against_torch_compile(record, name):
    """On merged weights under max-autotune; its graphs copy their inputs, so it also runs without them."""
    # After eight compilations of one function, torch.compile would run it as it is.
    torch.compiler.reset()
    layers, batch = BLOCKS[name], BATCHES[0]
    base = Block(layers).to("cuda", DTYPE).to(memory_format=torch.channels_last)
    ours = adapted_view(base)
    for conv in ours.convs:
        conv.lora_up.normal_(std=0.02)
    merged = copy.deepcopy(base)
    for conv, adapted in zip(merged.convs, ours.convs, strict=True):
        conv.weight.copy_(adapted.merged_weight())
    first = Case(layers[0], batch, variants(Case.bytes_of_images(layers[0], batch)), "cuda", DTYPE)

    def of(module):
        return lambda i: module(first.inputs[i], first.seconds[i])

    candidates = {"default": of(ours), **{name: on(name, of(ours)) for name in BACKENDS}, "eager": of(merged)}
    only_cudnn = {"max_autotune": True, "max_autotune_conv_backends": "ATEN"}
    candidates |= {
        "compiled": of(torch.compile(merged, mode="max-autotune")),
        "compiled, no graphs": of(torch.compile(merged, mode="max-autotune-no-cudagraphs")),
        "compiled, cuDNN only": of(torch.compile(merged, options=only_cudnn)),
    }
    calls, missing = {}, {}
    for label, call in candidates.items():
        with time_limit(COMPILE_SECONDS):
            found, why = usable({"eager": candidates["eager"], label: call}, "eager")
        calls |= found
        missing |= why
    times = milliseconds(calls, len(first.inputs), cycles=BACKWARD_CYCLES)
    kernels = {label: kernel_names(call, 0) for label, call in calls.items()}
    fields = {"kind": "block", "block": name, "title": f"{name}, batch {batch}", "kernels": kernels}
    record(lambda: calls["default"](0), milliseconds=times, missing=missing, **fields)
    assert "default" in calls, missing
