"""The one table of the benchmarks. A new op joins by one entry, a network by its task and entries.

An entry names a group and the function of benchmarks/cases/ that builds its cases, one for each set of
arguments: those of the quick mode, those that only the full mode has, and those on a GPU.
"""

from __future__ import annotations

from functools import partial

from benchmarks.cases import block_cs, cassi, cassi_deepinv, lora, networks, startup, training, workers
from benchmarks.entry import Arguments, Entry


def entry(group: str) -> Entry:
    """The entry of a group."""
    return next(one for one in TABLE if one.group == group)


def _conv(in_channels: int, out_channels: int, size: int, **others: object) -> Arguments:
    return {"in_channels": in_channels, "out_channels": out_channels, "size": size, **others}


def _linear(in_features: int, out_features: int, tokens: int, **others: object) -> Arguments:
    return {"in_features": in_features, "out_features": out_features, "tokens": tokens, **others}


# The convolutions of the shipped U-Nets on 256x256 images; torch.compile takes seconds a layer.
LORA_CONVOLUTIONS = {
    "quick": (
        _conv(28, 28, 256),
        _conv(56, 112, 64, compiled=False),
        _conv(168, 56, 128, compiled=False),
    ),
    "full": (
        _conv(2, 28, 256),
        _conv(57, 28, 256),
        _conv(28, 56, 128),
        _conv(56, 56, 128),
        _conv(112, 112, 64),
        _conv(84, 28, 256),
        _conv(28, 28, 256, kernel=1),
        _conv(28, 1, 256, kernel=1),
    ),
    "cuda": tuple(
        _conv(*layer, batch=batch, compiled=batch == 1)
        for layer in ((28, 28, 256), (168, 56, 128))
        for batch in (1, 8)
    ),
    "tiny": _conv(3, 5, 7, batch=2, compiled=False),
}
# The transformer's widest layer, then one of the language models for which loralib and peft are made.
LORA_LINEAR = {
    "quick": (_linear(112, 224, 4096),),
    "full": (_linear(768, 768, 4096),),
    "cuda": (_linear(112, 224, 4096), _linear(768, 768, 32768)),
    "tiny": _linear(11, 7, 5, compiled=False),
}


def _cassi_on_a_gpu(*layouts: str) -> tuple[Arguments, ...]:
    return tuple(
        {"size": size, "batch": batch, "dtype": dtype, "layout": layout, "compiled": False}
        for size, batch in ((256, 8), (660, 1))
        for dtype in ("float32", "bfloat16")
        for layout in layouts
    )


CASSI_TINY = {"size": 9, "width": 13, "batch": 2, "bands": 5, "compiled": False}
# Inductor takes half a minute for 28 rolls: only the full mode compiles them.
CASSI = {
    "quick": ({"size": 256, "compiled": False},),
    "full": ({"size": 512}, {"size": 256, "dtype": "bfloat16", "compiled": False}),
    "cuda": _cassi_on_a_gpu("NCHW", "NHWC"),
    "tiny": CASSI_TINY,
}
CASSI_TRAINING = {
    "quick": ({"size": 256, "compiled": False},),
    "full": ({"size": 128},),
    "cuda": _cassi_on_a_gpu("NCHW"),
    "tiny": CASSI_TINY,
}
CASSI_DEEPINV = {
    "quick": ({"height": 31, "width": 32},),
    "full": ({"height": 63, "width": 64},),
    "tiny": {"height": 5, "width": 7, "bands": 3},
}
CS = {
    "quick": ({"size": 256},),
    "full": ({"size": 256, "batch": 8},),
    "tiny": {"size": 8, "batch": 2, "block": 4},
}

CS_TINY = {"size": 32, "stages": 2, "width": 4}
SPECTRAL_TINY = {"size": 12, "stages": 2, "width": 4, "bands": 3}
# Compiling the denoisers takes half a minute: the quick mode does it for one task.
NETWORKS = {
    "full": ({"size": 256},),
    "cuda": tuple({"size": 256, "batch": batch, "compiled": batch == 1} for batch in (1, 8)),
}
TRAINING = {
    "full": ({"size": 96},),
    "cuda": tuple({"size": 256, "batch": batch} for batch in (1, 8)),
}

# The most important first: where time runs out, as on a GPU, the last ones are not run.
TABLE = (
    Entry(
        "network, compressive sensing",
        partial(networks.network, task="cs"),
        quick=({"size": 128},),
        tiny=CS_TINY | {"compiled": False},
        **NETWORKS,
    ),
    Entry(
        "network, CASSI",
        partial(networks.network, task="cassi"),
        quick=({"size": 128, "compiled": False},),
        tiny=SPECTRAL_TINY | {"compiled": False},
        **NETWORKS,
    ),
    Entry(
        "training step, compressive sensing",
        partial(training.training_step, task="cs"),
        quick=({"size": 64},),
        tiny=CS_TINY,
        **TRAINING,
    ),
    Entry(
        "training step, CASSI",
        partial(training.training_step, task="cassi"),
        quick=({"size": 64, "peak": False},),
        tiny=SPECTRAL_TINY,
        **TRAINING,
    ),
    Entry(
        "memory and time over stages",
        partial(training.over_stages, task="cs", size=64),
        quick=tuple({"stages": stages} for stages in (1, 16)),
        full=tuple({"stages": stages} for stages in (2, 4, 8)),
        tiny=CS_TINY,
    ),
    Entry("LoRA convolution, forward", lora.convolution, **LORA_CONVOLUTIONS),
    Entry("LoRA convolution, forward + backward", partial(lora.convolution, grad=True), **LORA_CONVOLUTIONS),
    Entry("LoRA linear, forward", lora.linear, **LORA_LINEAR),
    Entry("LoRA linear, forward + backward", partial(lora.linear, grad=True), **LORA_LINEAR),
    Entry("CASSI forward", cassi.forward, **CASSI),
    Entry("CASSI adjoint", cassi.adjoint, **CASSI),
    Entry("CASSI PGD step", partial(cassi.data_step, cassi.PGD), **CASSI),
    Entry("CASSI HQS step", partial(cassi.data_step, cassi.HQS), **CASSI),
    Entry("CASSI PGD step, forward + backward", partial(cassi.training_step, cassi.PGD), **CASSI_TRAINING),
    Entry("CASSI HQS step, forward + backward", partial(cassi.training_step, cassi.HQS), **CASSI_TRAINING),
    Entry(
        "CASSI HQS step, backward",
        partial(cassi.training_step, cassi.HQS, backward_only=True),
        **CASSI_TRAINING | {"full": ()},
    ),
    Entry("CASSI forward, deepinv's step", partial(cassi_deepinv.operation, "forward"), **CASSI_DEEPINV),
    Entry("CASSI adjoint, deepinv's step", partial(cassi_deepinv.operation, "adjoint"), **CASSI_DEEPINV),
    Entry("CASSI PGD step, deepinv's step", partial(cassi_deepinv.operation, "pgd"), **CASSI_DEEPINV),
    Entry("CASSI HQS step, deepinv's step", partial(cassi_deepinv.operation, "hqs"), **CASSI_DEEPINV),
    Entry("CS PGD step", partial(block_cs.data_step, "pgd"), **CS),
    Entry("CS HQS step", partial(block_cs.data_step, "hqs"), **CS),
    Entry(
        "LoRA convolution over size",
        lora.over_size,
        quick=tuple({"size": size} for size in (64, 256, 1024)),
        full=tuple({"size": size} for size in (128, 512)),
        tiny={"size": 9, "channels": 5},
    ),
    Entry(
        "LoRA convolution over batch",
        lora.over_batch,
        quick=tuple({"batch": batch} for batch in (1, 4, 16)),
        full=tuple({"batch": batch} for batch in (2, 8)),
        tiny={"batch": 3, "size": 9, "channels": 5},
    ),
    Entry(
        "CASSI HQS step over size",
        cassi.over_size,
        quick=tuple({"size": size} for size in (64, 256, 1024)),
        full=tuple({"size": size} for size in (8, 16, 32, 128, 512)),
        cuda=tuple({"size": size} for size in (8, 16, 64, 256, 1024)),
        tiny={"size": 9, "bands": 5},
    ),
    Entry(
        "CASSI HQS step over batch",
        cassi.over_batch,
        quick=tuple({"batch": batch} for batch in (1, 4, 16)),
        full=tuple({"batch": batch} for batch in (2, 8)),
        cuda=tuple({"batch": batch} for batch in (1, 4, 16)),
        tiny={"batch": 3, "size": 9, "bands": 5},
    ),
    Entry(
        "start-up",
        startup.imports,
        quick=({"parts": ["torch"]},),
        full=({"parts": ["lorun_kernels"], "packages": ["loralib", "peft", "deepinv"]},),
        tiny={"ours": "json", "parts": ["string"]},
    ),
    Entry(
        "threads",
        workers.threads,
        quick=({"task": "cs", "size": 96},),
        full=({"task": "cassi", "size": 128},),
        tiny=SPECTRAL_TINY | {"task": "cassi"},
    ),
    Entry(
        "processes",
        workers.processes,
        quick=({"task": "cs", "size": 96},),
        tiny=SPECTRAL_TINY | {"task": "cassi", "most": 1},
    ),
)
