"""The convolutions that the tests of the Triton kernels compute: layers of networks, and odd ones."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.lorun_kernels.triton.lora_checks import Problem

HALF = torch.float16
# The layers of lorun.denoisers.UNet: channels in, out, and in the second input
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


FULL = {name: problem for name, problem in PROBLEMS.items() if not problem.depthwise}
DEPTHWISES = {name: problem for name, problem in PROBLEMS.items() if problem.depthwise}
