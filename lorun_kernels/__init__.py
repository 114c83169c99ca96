"""Low-rank adapted layers and CASSI operators as ordinary torch ops and modules."""

from lorun_kernels._extension import build_info
from lorun_kernels.backends import available_backends, use_backend
from lorun_kernels.cassi import (
    cassi_adjoint,
    cassi_forward,
    cassi_gram,
    cassi_hqs_step,
    cassi_hqs_step_,
    cassi_pgd_step,
    cassi_pgd_step_,
)
from lorun_kernels.cassi_shift import shift, unshift
from lorun_kernels.conv_act import ConvAct
from lorun_kernels.lora_conv import lora_conv2d, lora_conv2d_act
from lorun_kernels.lora_conv_layer import FusedLoRAConv2d
from lorun_kernels.lora_linear import lora_linear
from lorun_kernels.lora_linear_layer import FusedLoRALinear
from lorun_kernels.lora_merge import merge_lora
from lorun_kernels.stage_weights import StageWeights

__all__ = [
    "ConvAct",
    "FusedLoRAConv2d",
    "FusedLoRALinear",
    "StageWeights",
    "available_backends",
    "build_info",
    "cassi_adjoint",
    "cassi_forward",
    "cassi_gram",
    "cassi_hqs_step",
    "cassi_hqs_step_",
    "cassi_pgd_step",
    "cassi_pgd_step_",
    "lora_conv2d",
    "lora_conv2d_act",
    "lora_linear",
    "merge_lora",
    "shift",
    "unshift",
    "use_backend",
]
