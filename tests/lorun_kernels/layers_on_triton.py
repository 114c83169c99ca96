"""What test_*_triton.py check, in the interpreter: the public layers on the Triton backend."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

import lorun_kernels as lk

FORWARD, INPUT, ADAPTER, MERGE, MERGE_BACKWARD = (
    f"lorun_triton::lora_{name}"
    for name in (
        "conv2d",
        "conv2d_grad_input",
        "conv2d_grad_adapter",
        "merge_stage",
        "merge_stage_backward",
    )
)


def _run(backend, function, tensors, dtype=None):
    """The output, the gradients of `tensors`, and the names of the Triton ops that ran."""
    with lk.use_backend(backend), profile() as record:
        if dtype is None:
            output = function()
        else:
            with torch.autocast("cpu", dtype):
                output = function()
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        grads = torch.autograd.grad(output, tensors, grad)
    names = {event.name for event in record.function_events if event.name.startswith("lorun_triton::")}
    return [output.detach(), *grads], names


def _compare(function, tensors, expected_ops, dtype=None, backend="triton", definition=None):
    """Compare `function` on `backend` with `definition`, or with itself, through ATen."""
    found, ops = _run(backend, function, tensors, dtype)
    expected, none = _run("aten", definition or function, tensors, dtype)
    assert ops == expected_ops and none == set(), (ops, none)
    tolerance = 1e-5 if dtype is None else 5e-3
    for value, definition in zip(found, expected, strict=True):
        assert value.dtype == definition.dtype and value.shape == definition.shape
        assert value.stride() == definition.stride()
        torch.testing.assert_close(value, definition, rtol=tolerance, atol=tolerance)


def _layer(**options):
    torch.manual_seed(0)
    layer = lk.FusedLoRAConv2d(7, 5, 3, padding=1, **options)
    nn.init.normal_(layer.lora_up, std=0.1)
    layer.base_weight.requires_grad_(False)
    return layer, [layer.lora_up, layer.lora_down, layer.bias]


def check_layer(layout: torch.memory_format, dtype: torch.dtype | None) -> None:
    layer, tensors = _layer(activation="gelu")
    layer.to(memory_format=layout)
    input, input2, residual = (
        torch.randn(2, channels, 6, 5).to(memory_format=layout).requires_grad_() for channels in (4, 3, 5)
    )
    call = lambda: layer(input, input2, residual)  # noqa: E731
    _compare(call, [input, input2, residual, *tensors], {FORWARD, INPUT, ADAPTER}, dtype)


def check_opcheck(layout: torch.memory_format) -> None:
    """Fake tensors have the strides that the kernels' results get."""
    layer, _ = _layer()
    layer.to(memory_format=layout)
    images = [torch.randn(2, c, 6, 5).to(memory_format=layout) for c in (4, 3, 5)]
    geometry = (layer.stride, layer.padding, layer.dilation, 1, 1.0, "reshape")
    parameters = (layer.base_weight, layer.lora_up, layer.lora_down)
    args = (images[0], *parameters, layer.bias, *geometry, *images[1:], "gelu", 0.01, "triton")
    with lk.use_backend("triton"):
        torch.library.opcheck(torch.ops.lorun.lora_conv2d.default, args)
        with torch.no_grad():
            detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
            torch.library.opcheck(torch.ops.lorun.lora_conv2d_preactivation.default, detached)


def check_not_a_number(activation: str) -> None:
    """One pixel that is not a number spoils what depends on it, and nothing else."""
    layer, _ = _layer(activation=activation)
    image = torch.randn(1, 7, 6, 5)
    image[0, 3, 2, 2] = torch.nan
    spoilt = []
    for backend in ("triton", "aten"):
        with lk.use_backend(backend), torch.no_grad():
            spoilt.append(layer(image).isnan())
    assert torch.equal(*spoilt) and spoilt[0].sum() == 9 * 5


def check_unbatched() -> None:
    layer, tensors = _layer()
    image = torch.randn(7, 6, 5, requires_grad=True)
    _compare(lambda: layer(image), [image, *tensors], {FORWARD, INPUT, ADAPTER})


def check_trained_base() -> None:
    """d W itself comes from ATen."""
    layer, tensors = _layer()
    layer.base_weight.requires_grad_(True)
    image = torch.randn(2, 7, 6, 5)
    _compare(lambda: layer(image), [layer.base_weight, *tensors], {FORWARD})


def check_linear() -> None:
    """The gradients of the factors pass through the rank, as products of matrices."""
    torch.manual_seed(0)
    layer = lk.FusedLoRALinear(6, 4, rank=2)
    nn.init.normal_(layer.lora_up)
    for shape in [(6,), (5, 6), (2, 3, 6)]:
        x = torch.randn(shape, requires_grad=True)
        _compare(lambda x=x: layer(x), [x, layer.lora_up, layer.lora_down, layer.bias], {FORWARD, INPUT})


def check_what_has_no_kernel() -> None:
    """Groups, float64 and empty images go through ATen."""
    for options, shape in [({"groups": 1}, (0, 6, 5, 5)), ({"groups": 2}, (1, 6, 5, 5))]:
        layer = lk.FusedLoRAConv2d(6, 4, 3, rank=1, **options)
        x = torch.randn(shape)
        _compare(lambda x=x, layer=layer: layer(x), [layer.lora_up], set())
    layer = lk.FusedLoRAConv2d(6, 4, 3).double()
    _compare(lambda: layer(torch.ones(1, 6, 5, 5).double()), [layer.lora_up], set())


def _stages(form: str = "reshape") -> nn.ModuleList:
    torch.manual_seed(0)
    base = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 3, 1)]
    options = {"form": form, "scaling": 0.5, "rank": 1}
    stages = nn.ModuleList(
        nn.Sequential(*(lk.FusedLoRAConv2d.from_conv(conv, **options) for conv in base)) for _ in range(3)
    )
    for name, parameter in stages.named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter, std=0.1)
    return stages


def _adapters(stages: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in stages.named_parameters() if "lora_" in name]


def _passes(stages: nn.ModuleList, dtype: torch.dtype | None = None):
    """The network by StageWeights, and layer by layer."""
    weights = lk.StageWeights(stages, dtype)
    image = torch.randn(1, 3, 5, 4).to(memory_format=torch.channels_last)

    def staged():
        x = image
        for number, stage in enumerate(stages):
            with weights.stage(number):
                x = x + stage(x)
        return x

    def plain():
        x = image
        for stage in stages:
            x = x + stage(x)
        return x

    return staged, plain


def check_stages(form: str, dtype: torch.dtype | None) -> None:
    stages = _stages(form)
    staged, plain = _passes(stages, dtype)
    ops = {MERGE, FORWARD, INPUT, ADAPTER}
    _compare(staged, _adapters(stages), ops, dtype, definition=plain)


def check_gradients_of_a_stage(form: str, dtype: torch.dtype | None) -> None:
    """If the layers run through ATen, one launch computes all gradients of a stage's adapters."""
    stages = _stages(form)
    staged, plain = _passes(stages, dtype)
    _compare(staged, _adapters(stages), {MERGE, MERGE_BACKWARD}, dtype, "aten", plain)
    counts = []
    for function in (staged, plain):
        with lk.use_backend("aten"), profile() as record:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                result = function()
            result.sum().backward()
        names = [event.name for event in record.function_events]
        # The products with up and down; addmm also takes scaling.
        counts.append([names.count(name) for name in (MERGE, MERGE_BACKWARD, "aten::addmm")])
    assert counts == [[3, 3, 0], [0, 0, 2 * 9]]


def check_some_gradients_of_a_stage() -> None:
    """With frozen adapters, with layers that are not called, and with a base that is trained too."""
    stages = _stages()
    staged, plain = _passes(stages)
    stages[0][0].lora_up.requires_grad_(False)
    stages[1].requires_grad_(False)
    stages[0][2].base_weight.requires_grad_()
    wanted = [parameter for parameter in stages.parameters() if parameter.requires_grad]
    _compare(staged, wanted, {MERGE, MERGE_BACKWARD}, backend="aten", definition=plain)
    first, weights = stages[0], lk.StageWeights(stages)
    first[0].requires_grad_(False)
    with lk.use_backend("aten"), weights.stage(0):
        assert not first[0](torch.randn(1, 3, 5, 4)).requires_grad
        first[2](torch.randn(1, 6, 5, 4)).sum().backward()
    assert first[1].lora_down.grad is None and first[2].lora_up.grad is not None


def check_stages_that_move_to_another_dtype() -> None:
    """To float64, for which there is no launch for a stage, and back."""
    stages = _stages()
    weights = lk.StageWeights(stages)
    for dtype, ops in ((torch.float32, 1), (torch.float64, 0), (torch.float32, 1)):
        stages.to(dtype)
        image = torch.randn(1, 3, 5, 4, dtype=dtype)
        with lk.use_backend("aten"), profile() as record:
            with weights.stage(0):
                found = torch.autograd.grad(stages[0](image).sum(), _adapters(stages[0]))
            expected = torch.autograd.grad(stages[0](image).sum(), _adapters(stages[0]))
        assert [event.name for event in record.function_events].count(MERGE_BACKWARD) == ops
        for value, definition in zip(found, expected, strict=True):
            torch.testing.assert_close(value, definition)


def check_a_changed_adapter_is_noticed() -> None:
    stages = _stages()
    staged, _ = _passes(stages)
    with lk.use_backend("aten"):
        result = staged().sum()
        with torch.no_grad():
            stages[1][0].lora_down += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def check_compiled_stage() -> None:
    stages = _stages()
    weights = lk.StageWeights(stages)
    image = torch.randn(1, 3, 5, 4)
    with lk.use_backend("aten"):
        expected = torch.autograd.grad(stages[1](image).sum(), _adapters(stages[1]))
        compiled = torch.compile(stages[1], fullgraph=True, backend="aot_eager")
        for _ in range(2):
            with weights.stage(1):
                result = compiled(image).sum()
            found = torch.autograd.grad(result, _adapters(stages[1]))
            for value, definition in zip(found, expected, strict=True):
                torch.testing.assert_close(value, definition)
