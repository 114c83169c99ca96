from __future__ import annotations

from dataclasses import replace

import lora_triton_checks as checks
import pytest
import torch
from lora_triton_checks import ACTIVATIONS, Problem
from triton_workers import triton_workers

pytest.importorskip("triton", reason="Triton is not installed")

HALF = torch.float16
# The layers of lorun.denoisers.UNet: in and out channels, of the inputs the second's
UNET = [
    (2, 28, 0),
    (28, 28, 0),
    (28, 56, 0),
    (56, 56, 0),
    (56, 112, 0),
    (112, 112, 0),
    (168, 56, 56),
    (84, 28, 28),
]
DEPTHWISE = Problem(29, 29, batch=1, depthwise=True)
SMALL = Problem(3, 3, depthwise=True)
PROBLEMS = {
    **{f"{i} -> {o}": Problem(i, o, second, rank=1, batch=1, size=(3, 5)) for i, o, second in UNET},
    "28 -> 1, 1 x 1": Problem(28, 1, kernel=(1, 1), padding=(0, 0)),
    **{f"{i} -> {o}, float16": Problem(i, o, rank=1, dtype=HALF) for i, o in [(28, 28), (56, 56), (28, 1)]},
    "28 -> 1, 1 x 1, float16": Problem(28, 1, kernel=(1, 1), padding=(0, 0), dtype=HALF),
    **{f"C = {channels}": Problem(channels, channels) for channels in (1, 29, 31)},
    **{f"C = {channels}, float16": Problem(channels, 30, dtype=HALF) for channels in (1, 29, 31)},
    "factored": Problem(29, 31, form="factored"),
    "factored, float16": Problem(29, 31, form="factored", dtype=HALF),
    "1 x 1, factored": Problem(kernel=(1, 1), padding=(0, 0), form="factored"),
    "5 x 5": Problem(kernel=(5, 5), padding=(2, 2), rank=1),
    "3 x 5": Problem(kernel=(3, 5), padding=(1, 2), size=(6, 6)),
    "5 x 3, float16": Problem(kernel=(5, 3), padding=(0, 2), dtype=HALF),
    "rank 17": Problem(17, 18, rank=17, dtype=HALF),
    **{
        f"stride 2, padding {padding}{name}": Problem(stride=(2, 2), padding=(padding, padding), dtype=dtype)
        for padding in (0, 1, 2)
        for name, dtype in (("", torch.float32), (", float16", HALF))
    },
    "stride 1 x 2, dilation 2 x 1": Problem(stride=(1, 2), dilation=(2, 1), padding=(2, 0)),
    "dilation 2, stride 2": Problem(dilation=(2, 2), stride=(2, 2), padding=(2, 2), size=(8, 9), dtype=HALF),
    "sliced": Problem(sliced=True, residual=True, preactivation=True),
    "sliced, two inputs, float16": Problem(12, 8, second=4, sliced=True, residual=True, dtype=HALF),
    "weight channels_last": Problem(weight_layout="channels_last"),
    "weight transposed, float16": Problem(weight_layout="transposed", dtype=HALF),
    "float32 weight": Problem(dtype=HALF, weight_dtype=torch.float32),
    "many tiles": Problem(rank=1, size=(20, 21), batch=1, dtype=HALF),
    "many blocks": Problem(70, 66, kernel=(1, 1), padding=(0, 0), size=(3, 4), dtype=HALF),
    "depthwise": DEPTHWISE,
    "depthwise, factored": replace(DEPTHWISE, form="factored", dtype=HALF),
    "depthwise, stride 2": replace(SMALL, stride=(2, 2), padding=(0, 1), sliced=True),
    "depthwise, C = 40, dilation 2": replace(
        DEPTHWISE, channels=40, out=40, batch=1, dilation=(2, 2), dtype=HALF
    ),
    "depthwise, many tiles": replace(
        DEPTHWISE,
        channels=3,
        out=3,
        kernel=(5, 5),
        padding=(2, 2),
        size=(27, 25),
        weight_layout="channels_last",
    ),
    "depthwise, 5 x 5": replace(SMALL, kernel=(5, 5), padding=(2, 2)),
    "depthwise, 1 x 1": replace(SMALL, kernel=(1, 1), padding=(0, 0), size=(15, 16)),
}
EPILOGUES = {
    f"{activation}, {name}": replace(
        problem, activation=activation, residual=residual, bias=not residual, preactivation=not residual
    )
    for activation in ACTIVATIONS
    for name, problem, residual in [
        ("streaming, residual", Problem(second=2), True),
        ("streaming, preactivation", Problem(), False),
        ("stationary, residual", Problem(dtype=HALF), True),
        ("stationary, preactivation", Problem(dtype=HALF), False),
        ("depthwise, residual", SMALL, True),
        ("depthwise, preactivation", SMALL, False),
    ]
}
PLAIN = {
    "float32": Problem(adapter=False),
    "float32, two inputs": Problem(7, 5, second=3, adapter=False, weight_layout="channels_last"),
    "float16, float32 weight": Problem(adapter=False, dtype=HALF, weight_dtype=torch.float32),
    "depthwise": replace(DEPTHWISE, adapter=False),
}
DETERMINISTIC = [
    *("factored, float16", "1 x 1, factored", "3 x 5", "sliced, two inputs, float16", "C = 31, float16"),
    *("many tiles", "stride 2, padding 1", "depthwise", "depthwise, 1 x 1"),
]
LAYERS = [
    Problem(28, 28, rank=3),
    Problem(2, 28, weight_layout="channels_last"),
    Problem(28, 1, kernel=(1, 1), form="factored", scaling=-0.5),
    Problem(5, 7, kernel=(3, 5), weight_layout="transposed"),
    DEPTHWISE,
    replace(DEPTHWISE, form="factored"),
]


def check(name: str, *arguments) -> None:
    """Runs in a worker: the first import of Triton is here, after its mode is set."""
    from lorun_kernels.triton import lora_conv, lora_conv_adapter, lora_merge  # noqa: F401  (register ops)

    getattr(checks, name)(*arguments)


@pytest.fixture(scope="module")
def interpret():
    """interpret(check, *arguments) runs a check in Triton's interpreter and raises what it raises."""
    with triton_workers(interpret=True, count=1) as pool:
        yield lambda *arguments: pool.submit(check, *arguments).result()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("result", ["forward", "grad_input", "grad_adapter"])
def test_equals_the_definition(interpret, result, problem):
    interpret(f"check_{result}", problem)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_adapter_gradients_without_atomics(interpret, name):
    interpret("check_grad_adapter", PROBLEMS[name], True)


@pytest.mark.parametrize("problem", EPILOGUES.values(), ids=EPILOGUES.keys())
def test_epilogue_equals_the_definition(interpret, problem):
    interpret("check_forward", problem)


@pytest.mark.parametrize("problem", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("result", ["forward", "grad_input"])
def test_without_an_adapter_the_weight_is_used_as_it_is(interpret, result, problem):
    interpret(f"check_{result}", problem)


@pytest.mark.parametrize("problem", LAYERS)
def test_merge_equals_the_definition(interpret, problem):
    interpret("check_merge", problem)


def test_merge_rounds_to_the_images_dtype(interpret):
    interpret("check_merge", replace(LAYERS[0], dtype=HALF, weight_dtype=torch.float32))


def test_merging_a_stage_equals_merging_its_layers(interpret):
    interpret("check_merge_stage", LAYERS)


def test_gradients_of_a_stage_equal_those_of_its_layers(interpret):
    interpret("check_merge_stage_backward", LAYERS)


@pytest.mark.parametrize("problem", [Problem(7, second=3, sliced=True), SMALL], ids=["full", "depthwise"])
def test_wide_indices_equal_the_definition(interpret, problem):
    interpret("check_wide_indices", problem)
