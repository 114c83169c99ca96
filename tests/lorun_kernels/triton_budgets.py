"""What every Triton kernel may use, at the shapes and in the dtypes of the shipped networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

ARCHS = (80, 90, 100)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One call of a launcher, on meta tensors."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str

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
class Budget:
    """The most that one kernel of a launch may use in any case of a layout; none may spill."""

    launch: str
    kernel: str
    layout: str
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
}

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
]
