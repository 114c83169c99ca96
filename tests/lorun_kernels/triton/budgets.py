"""What every Triton kernel may use, in the shapes and dtypes of the shipped networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

ARCHS = (80, 90, 100)
# The shared memory that a block can have
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One call of a launcher, on meta tensors."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str

    @property
    def kind(self) -> str:
        return self.layout

    def cube(self) -> torch.Tensor:
        cube = torch.empty(self.shape, device="meta", dtype=self.dtype)
        return cube.contiguous(memory_format=LAYOUTS[self.layout])


CASES = [
    Case(shape, dtype, layout)
    for shape in [(8, 28, 256, 256), (1, 28, 660, 660)]
    for dtype in [torch.float32, torch.bfloat16]
    for layout in LAYOUTS
]


@dataclass(frozen=True)
class Layer:
    """One call of a launcher of the low-rank convolution, on meta tensors: a 3 x 3 layer of rank 10 %."""

    channels: int
    out: int
    size: int
    second: int = 0
    kernel: int = 3
    batch: int = 8
    depthwise: bool = False
    form: str = "reshape"
    dtype: torch.dtype = torch.bfloat16
    factors: torch.dtype | None = None
    tf32: bool = False

    @property
    def kind(self) -> str:
        return "tf32" if self.tf32 else "float32" if self.dtype == torch.float32 else "16-bit"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.size, self.size

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1

    @property
    def geometry(self) -> tuple:
        return [1, 1], [self.kernel // 2] * 2, [1, 1], self.groups, 1.0

    def image(self, channels: int) -> torch.Tensor:
        shape = (self.batch, channels, self.size, self.size)
        return torch.empty(shape, device="meta", dtype=self.dtype).to(memory_format=torch.channels_last)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.image(self.channels - self.second), self.image(self.second) if self.second else None

    def weights(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weight, up and down."""
        rank, k, fan_in = -(-min(self.channels, self.out) // 10), self.kernel, self.channels // self.groups
        up, down = (self.out // self.groups * k, rank * k), (rank * k, self.channels * k)
        if self.form == "factored":
            up, down = (self.out, rank), (rank, fan_in * k * k)
        shapes = (self.out, fan_in, k, k), up, down
        return tuple(torch.empty(shape, device="meta", dtype=self.factors or self.dtype) for shape in shapes)


# Layers of the U-Net that differ in their kernel or tile; compiling all of them would take minutes more.
UNET = [
    Layer(2, 28, 256),
    Layer(28, 28, 256),
    Layer(56, 56, 128),
    Layer(112, 112, 64),
    Layer(112, 112, 64, batch=1),
    Layer(168, 56, 128, second=56),
    Layer(28, 1, 256, kernel=1),
    Layer(28, 28, 256, depthwise=True),
]
SOME = [Layer(28, 28, 256), Layer(112, 112, 64), Layer(28, 28, 256, depthwise=True)]
LAYERS = [
    *UNET,
    replace(SOME[0], form="factored"),
    replace(SOME[0], factors=torch.float32),
    replace(SOME[0], dtype=torch.float16),
    *(replace(layer, dtype=torch.float32) for layer in SOME),
    *(replace(layer, dtype=torch.float32, tf32=True) for layer in SOME[:2]),
]


@dataclass(frozen=True)
class Budget:
    """The most that one kernel of a launch may use in any case of a kind; none may spill."""

    launch: str
    kernel: str
    kind: str
    # per thread on sm_80, sm_90 and sm_100
    registers: tuple[int, int, int]
    # bytes a block
    shared: int


def _cassi(name: str, hqs: bool = False, mask_grad: bool = False) -> Callable[[Case], None]:
    """The launcher `name` of lorun_kernels.triton.cassi with a mask (H, W) and a step of 2."""

    def launch(case: Case) -> None:
        from lorun_kernels.triton import cassi

        batch, bands, height, width = case.shape
        x, other = case.cube(), case.cube()
        offsets = [2 * band for band in range(bands)]
        y = x.new_empty((batch, height, width + offsets[-1]))
        mask = x.new_empty((height, width)).expand(case.shape)
        scale = x.new_empty(1, dtype=torch.float32).expand(batch)
        residual = y.float()
        grad_mask = (
            x.new_empty((height, width), dtype=torch.float32).expand(case.shape) if mask_grad else None
        )
        grad_scale = x.new_empty((batch, height), dtype=torch.float32)
        arguments = {
            "cassi_forward": (x, mask, offsets, y),
            "cassi_adjoint": (y, mask, offsets, x),
            "cassi_mask_grad": (x, y, offsets, grad_mask),
            "cassi_step": (x, y, mask, scale, offsets, hqs, other, residual),
            "cassi_step_backward": (
                *(x, residual, x, mask, scale, offsets, hqs),
                *(other, y, grad_mask, grad_scale),
            ),
        }
        getattr(cassi, name)(*arguments[name])

    return launch


def _lora_forward(layer: Layer) -> None:
    from lorun_kernels.triton import lora_conv

    output, bias = layer.image(layer.out), torch.empty(layer.out, device="meta", dtype=layer.dtype)
    lora_conv.lora_conv2d(
        *(*layer.inputs(), *layer.weights(), bias, output, *layer.geometry, "gelu", 0.0, layer.tf32),
        *(output, output),
    )


def _lora_grad_input(layer: Layer) -> None:
    from lorun_kernels.triton import lora_conv

    lora_conv.lora_conv2d_grad_input(
        layer.image(layer.out), *layer.weights(), *layer.geometry, layer.tf32, *layer.inputs()
    )


def _lora_grad_adapter(deterministic: bool) -> Callable[[Layer], None]:
    def launch(layer: Layer) -> None:
        from lorun_kernels.triton import lora_conv_adapter

        _, up, down = layer.weights()
        lora_conv_adapter.lora_conv2d_grad_adapter(
            *(layer.image(layer.out), *layer.inputs(), up, down, [layer.kernel] * 2, *layer.geometry),
            *(layer.tf32, deterministic, up.float(), down.float()),
        )

    return launch


def _lora_merge_stage(layer: Layer) -> None:
    from lorun_kernels.triton import lora_merge

    weight, up, down = layer.weights()
    table = torch.empty((16, 16), device="meta", dtype=torch.int64)
    merged = weight.to(layer.dtype).flatten()
    lora_merge.lora_merge_stage(table, up.flatten(), down.flatten(), weight.numel(), merged)


def _lora_merge_stage_backward(layer: Layer) -> None:
    from lorun_kernels.triton import lora_merge

    weight, up, down = layer.weights()
    table = torch.empty((16, 16), device="meta", dtype=torch.int64)
    grad, ups, downs = weight.to(layer.dtype).flatten(), up.flatten(), down.flatten()
    lora_merge.lora_merge_stage_backward(table, ups, downs, up.shape[0], down.shape[1], grad, ups, downs)


LAUNCHES = {
    "cassi forward": _cassi("cassi_forward"),
    "cassi adjoint": _cassi("cassi_adjoint"),
    "cassi mask grad": _cassi("cassi_mask_grad", mask_grad=True),
    "cassi pgd": _cassi("cassi_step"),
    "cassi hqs": _cassi("cassi_step", hqs=True),
    "cassi pgd backward": _cassi("cassi_step_backward"),
    "cassi hqs backward": _cassi("cassi_step_backward", hqs=True),
    "cassi pgd backward with mask": _cassi("cassi_step_backward", mask_grad=True),
    "cassi hqs backward with mask": _cassi("cassi_step_backward", hqs=True, mask_grad=True),
    "lora forward": _lora_forward,
    "lora grad input": _lora_grad_input,
    "lora grad adapter": _lora_grad_adapter(deterministic=False),
    "lora grad adapter without atomics": _lora_grad_adapter(deterministic=True),
    "lora merge stage": _lora_merge_stage,
    "lora merge stage backward": _lora_merge_stage_backward,
}


def cases(launch: str) -> list[Case] | list[Layer]:
    if launch.startswith("cassi"):
        return CASES
    # What these options add does not depend on the layer.
    some = "lora grad adapter without atomics", "lora merge stage", "lora merge stage backward"
    return SOME if launch in some else LAYERS


# Registers as Triton 3.6 and 3.7 need them, rounded up to the hardware's unit of 8.
BUDGETS = [
    Budget("cassi forward", "_forward_kernel", "contiguous", (32, 40, 40), 2048),
    Budget("cassi adjoint", "_adjoint_kernel", "contiguous", (40, 40, 40), 0),
    Budget("cassi mask grad", "_mask_grad_kernel", "contiguous", (40, 40, 40), 2048),
    Budget("cassi pgd", "_step_kernel", "contiguous", (56, 56, 56), 2048),
    Budget("cassi hqs", "_step_kernel", "contiguous", (56, 64, 64), 2048),
    Budget("cassi pgd backward", "_step_backward_kernel", "contiguous", (64, 64, 80), 2048),
    Budget("cassi hqs backward", "_step_backward_kernel", "contiguous", (80, 80, 80), 2048),
    Budget("cassi pgd backward with mask", "_step_backward_kernel", "contiguous", (72, 80, 80), 2048),
    Budget("cassi pgd backward with mask", "_mask_grad_kernel", "contiguous", (64, 72, 64), 2048),
    Budget("cassi hqs backward with mask", "_step_backward_kernel", "contiguous", (80, 80, 80), 2048),
    Budget("cassi hqs backward with mask", "_mask_grad_kernel", "contiguous", (112, 112, 128), 2048),
    Budget("cassi forward", "_forward_kernel", "channels_last", (32, 32, 32), 8192),
    Budget("cassi adjoint", "_adjoint_kernel", "channels_last", (32, 32, 32), 8192),
    Budget("cassi mask grad", "_mask_grad_kernel", "channels_last", (72, 80, 80), 8192),
    Budget("cassi pgd", "_step_kernel", "channels_last", (64, 64, 64), 8192),
    Budget("cassi hqs", "_step_kernel", "channels_last", (64, 64, 64), 8192),
    Budget("cassi pgd backward", "_step_backward_kernel", "channels_last", (104, 112, 112), 8192),
    Budget("cassi hqs backward", "_step_backward_kernel", "channels_last", (112, 112, 112), 8192),
    Budget("cassi pgd backward with mask", "_step_backward_kernel", "channels_last", (112, 112, 112), 8192),
    Budget("cassi pgd backward with mask", "_mask_grad_kernel", "channels_last", (96, 128, 128), 8192),
    Budget("cassi hqs backward with mask", "_step_backward_kernel", "channels_last", (112, 112, 112), 8192),
    Budget("cassi hqs backward with mask", "_mask_grad_kernel", "channels_last", (128, 128, 128), 8192),
    Budget("lora forward", "_stationary_kernel", "16-bit", (208, 176, 72), 128000),
    Budget("lora forward", "_merge_kernel", "16-bit", (88, 72, 72), 10240),
    Budget("lora forward", "_conv_kernel", "16-bit", (152, 128, 80), 74752),
    Budget("lora forward", "_depthwise_kernel", "16-bit", (128, 144, 144), 1024),
    Budget("lora forward", "_merge_kernel", "float32", (64, 72, 72), 10240),
    Budget("lora forward", "_conv_kernel", "float32", (112, 112, 112), 24576),
    Budget("lora forward", "_depthwise_kernel", "float32", (112, 112, 112), 2048),
    Budget("lora forward", "_merge_kernel", "tf32", (64, 72, 72), 10240),
    Budget("lora forward", "_conv_kernel", "tf32", (104, 112, 112), 74752),
    Budget("lora grad input", "_stationary_kernel", "16-bit", (200, 176, 48), 188416),
    Budget("lora grad input", "_merge_kernel", "16-bit", (88, 72, 72), 10240),
    Budget("lora grad input", "_conv_kernel", "16-bit", (96, 64, 56), 74752),
    Budget("lora grad input", "_depthwise_kernel", "16-bit", (128, 144, 144), 1024),
    Budget("lora grad input", "_merge_kernel", "float32", (64, 72, 72), 10240),
    Budget("lora grad input", "_conv_kernel", "float32", (128, 128, 120), 24576),
    Budget("lora grad input", "_depthwise_kernel", "float32", (128, 136, 136), 2048),
    Budget("lora grad input", "_merge_kernel", "tf32", (64, 72, 72), 10240),
    Budget("lora grad input", "_conv_kernel", "tf32", (104, 64, 72), 74752),
    Budget("lora grad adapter", "_adapter_kernel", "16-bit", (200, 208, 208), 30720),
    Budget("lora grad adapter", "_weight_sums_kernel", "16-bit", (56, 48, 48), 1024),
    Budget("lora grad adapter", "_factor_grad_kernel", "16-bit", (168, 128, 128), 1024),
    Budget("lora grad adapter", "_adapter_kernel", "float32", (128, 104, 104), 26624),
    Budget("lora grad adapter", "_weight_sums_kernel", "float32", (56, 48, 56), 1024),
    Budget("lora grad adapter", "_factor_grad_kernel", "float32", (160, 128, 128), 1024),
    Budget("lora grad adapter", "_adapter_kernel", "tf32", (104, 112, 112), 32768),
    Budget("lora grad adapter without atomics", "_adapter_kernel", "16-bit", (184, 176, 176), 20480),
    Budget("lora grad adapter without atomics", "_sum_parts_kernel", "16-bit", (32, 40, 32), 1024),
    Budget("lora grad adapter without atomics", "_weight_sums_kernel", "16-bit", (56, 48, 48), 1024),
    Budget("lora grad adapter without atomics", "_factor_grad_kernel", "16-bit", (168, 128, 128), 1024),
    Budget("lora merge stage", "_merge_stage_kernel", "16-bit", (128, 112, 112), 3072),
    Budget("lora merge stage backward", "_merge_stage_backward_kernel", "16-bit", (72, 72, 72), 4096),
]
