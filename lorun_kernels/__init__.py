"""Low-rank adapted layers and CASSI operators as ordinary torch ops and modules."""

from lorun_kernels import flops  # noqa: F401  (tells torch's FLOP counter the low-rank ops)
from lorun_kernels._extension import build_info
from lorun_kernels.adapted import (
    Adapted,
    AdaptedWeight,
    Adapter,
    become_full_delta,
    choose_rank,
    grow_rank,
    tensor_name,
)
from lorun_kernels.adapter_shapes import (
    FORMS,
    check_form,
    factor_shapes,
    largest_rank,
    matrix_shape,
    weight_channels,
)
from lorun_kernels.adapting import (
    adapted_weights,
    add_adapter,
    check_adaptable,
    groups_of,
    keep_no_merged_weight,
    share_adapter,
)
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
from lorun_kernels.merging import is_merged, merge, merge_all, to_plain, unmerge
from lorun_kernels.sharing import retie, share_parameter, share_with, shared_groups
from lorun_kernels.stage_weights import StageWeights
from lorun_kernels.unwrap import unwrapped

__all__ = [
    "Adapted",
    "AdaptedWeight",
    "Adapter",
    "ConvAct",
    "FORMS",
    "FusedLoRAConv2d",
    "FusedLoRALinear",
    "StageWeights",
    "adapted_weights",
    "add_adapter",
    "available_backends",
    "become_full_delta",
    "build_info",
    "cassi_adjoint",
    "cassi_forward",
    "cassi_gram",
    "cassi_hqs_step",
    "cassi_hqs_step_",
    "cassi_pgd_step",
    "cassi_pgd_step_",
    "weight_channels",
    "check_adaptable",
    "check_form",
    "choose_rank",
    "factor_shapes",
    "groups_of",
    "grow_rank",
    "is_merged",
    "share_with",
    "keep_no_merged_weight",
    "largest_rank",
    "lora_conv2d",
    "lora_conv2d_act",
    "lora_linear",
    "matrix_shape",
    "merge",
    "merge_all",
    "merge_lora",
    "retie",
    "share_adapter",
    "share_parameter",
    "shared_groups",
    "shift",
    "tensor_name",
    "to_plain",
    "unmerge",
    "unshift",
    "unwrapped",
    "use_backend",
]
