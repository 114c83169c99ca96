"""The one table of the benchmarks. A new op joins by one entry, a network by its blueprint and its entries.

An entry names a group and the function of benchmarks/cases/ that builds its cases, one for each set of
arguments: those of the quick mode, those that only the full mode adds, and those on a GPU.
"""

from __future__ import annotations

from functools import partial

from benchmarks.cases import (
    block_cs,
    cassi,
    cassi_deepinv,
    denoiser,
    lora,
    lora_layer,
    networks,
    residual_block,
    startup,
    super_resolution,
    training,
    workers,
)
from benchmarks.harness.entry import Arguments, Entry


def entry(group: str) -> Entry:
    """The entry of a group."""
    return next(one for one in TABLE if one.group == group)


def _conv(in_channels: int, out_channels: int, size: int, **others: object) -> Arguments:
    return {"in_channels": in_channels, "out_channels": out_channels, "size": size, **others}


def _linear(in_features: int, out_features: int, tokens: int, **others: object) -> Arguments:
    return {"in_features": in_features, "out_features": out_features, "tokens": tokens, **others}


# The convolutions of the shipped U-Nets on 256x256 images; torch.compile takes seconds per layer.
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
# The transformer's widest layer, then one of the language models that loralib and peft are made for.
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
# Inductor takes half a minute for 28 rolls, so only the full mode compiles them.
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
# 255 is the multiple of 3 next to 256, and 17 is its largest factor; 257 is prime.
SR = {
    "full": (
        {"size": 256, "scale": 2, "batch": 8},
        {"size": 255, "scale": 3},
        {"size": 255, "scale": 3, "batch": 8},
        {"size": 256, "scale": 4},
        {"size": 256, "scale": 1},
        {"size": 257, "scale": 1},
    ),
    "cuda": tuple({"size": 256, "scale": 2, "batch": batch} for batch in (1, 8)),
    "tiny": {"size": 12, "scale": 3, "batch": 2, "stages": 2, "side": 5},
}

CS_TINY = {"size": 32, "stages": 2, "width": 4}
SPECTRAL_TINY = {"size": 12, "stages": 2, "width": 4, "bands": 3}
# Compiling the denoisers takes half a minute, so the quick mode does it for one task only.
NETWORKS = {
    "full": ({"size": 256},),
    "cuda": tuple({"size": 256, "batch": batch, "compiled": batch == 1} for batch in (1, 8)),
}
TRAINING = {
    "full": ({"size": 96},),
    "cuda": tuple({"size": 256, "batch": batch} for batch in (1, 8)),
}

# The layers of one stage of the shipped networks by name, as they are called and with only a bias. A test
# compares both with the networks themselves.
LAYERS = (
    "57->28 3x3 @256 gelu",
    "28->28 3x3 @256 gelu",
    "28->28 3x3 @256 +residual",
    "28->56 3x3 @128 gelu",
    "56->56 3x3 @128 gelu",
    "56->56 3x3 @128 +residual",
    "56->112 3x3 @64 gelu",
    "112->112 3x3 @64 gelu",
    "112->112 3x3 @64 +residual",
    "112+56->56 3x3 @128 gelu",
    "56+28->28 3x3 @256 gelu",
    "28->28 1x1 @256",
    "2->28 3x3 @256 gelu",
    "28->1 1x1 @256",
)
BARE_LAYERS = (
    "57->28 3x3 @256",
    "28->28 3x3 @256",
    "28->56 3x3 @128",
    "56->56 3x3 @128",
    "56->112 3x3 @64",
    "112->112 3x3 @64",
    "168->56 3x3 @128",
    "84->28 3x3 @256",
    "28->28 1x1 @256",
    "2->28 3x3 @256",
    "28->1 1x1 @256",
)
# Compiling takes longest, so the largest come first.
BLOCKS = (
    "residual block, 28 channels @256",
    "decoder on a concatenation, 28 channels @256",
    "residual block, 56 channels @128",
    "decoder on a concatenation, 56 channels @128",
    "residual block, 112 channels @64",
)
MODELS = ("cassi-unet-lorun9", "cs25-unet-lorun9")
BATCHES = (8, 1)


def _layers(names: tuple[str, ...]) -> tuple[Arguments, ...]:
    return tuple({"layer": name, "batch": batch} for batch in BATCHES for name in names)


LORA_LAYERS = {
    "cuda": _layers(LAYERS),
    "tiny": {"layer": "56+28->28 3x3 @256 gelu", "batch": 2, "size": 12},
}
STAGE = {
    "cuda": tuple({"model": model, "batch": batch} for model in MODELS for batch in BATCHES),
    "tiny": {"model": "cs25-unet-lorun9", "batch": 1, "size": 16},
}

# The most important come first: when time runs out, as it may on a GPU, the last ones are not run.
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
    Entry(lora_layer.FORWARD, lora_layer.convolution, **LORA_LAYERS),
    Entry(
        lora_layer.TRAINING,
        partial(lora_layer.convolution, grad=True),
        **LORA_LAYERS,
    ),
    Entry(
        lora_layer.BARE,
        lora_layer.convolution,
        cuda=_layers(BARE_LAYERS),
        tiny={"layer": "28->1 1x1 @256", "batch": 2, "size": 9},
    ),
    Entry("denoiser of a stage, forward", denoiser.stage, **STAGE),
    Entry("denoiser of a stage, forward + backward", partial(denoiser.stage, grad=True), **STAGE),
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
        "super-resolution HQS steps",
        partial(super_resolution.data_steps, "hqs"),
        quick=({"size": 256, "scale": 2},),
        **SR,
    ),
    Entry(
        "super-resolution HQS steps, forward + backward",
        partial(super_resolution.data_steps, "hqs", grad=True),
        quick=tuple({"size": 256, "scale": 2, "batch": batch} for batch in (1, 8)),
        **SR | {"full": SR["full"][1:]},
    ),
    Entry(
        "super-resolution PGD steps, forward + backward",
        partial(super_resolution.data_steps, "pgd", grad=True),
        quick=({"size": 256, "scale": 2},),
        **SR,
    ),
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
        residual_block.GROUP,
        residual_block.block,
        cuda=tuple({"block": block, "batch": 8} for block in BLOCKS),
        tiny={"block": BLOCKS[1], "batch": 1, "size": 8, "compiled": False},
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
