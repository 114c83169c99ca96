"""Low-rank adapted convolutions and linear layers as ordinary torch ops and modules."""

from lorun_kernels._extension import build_info
from lorun_kernels.lora_conv import lora_conv2d
from lorun_kernels.lora_linear import lora_linear
from lorun_kernels.lora_merge import merge_lora
from lorun_kernels.modules import FusedLoRAConv2d, FusedLoRALinear

__all__ = [
    "FusedLoRAConv2d",
    "FusedLoRALinear",
    "build_info",
    "lora_conv2d",
    "lora_linear",
    "merge_lora",
]
