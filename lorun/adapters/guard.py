"""What `load_state_dict` of a network with a shared base must not do silently."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from lorun_kernels import retie, shared_groups


def guard_loading(model: nn.Module) -> None:
    """Let `load_state_dict` refuse K different values for a shared base, and tie it after assign=True."""
    model.register_load_state_dict_pre_hook(_refuse_separate_stages)
    model.register_load_state_dict_post_hook(_tie_again)


def _refuse_separate_stages(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    for owners in shared_groups(model).values():
        held = {name: state_dict[prefix + name] for name, _, _ in owners if prefix + name in state_dict}
        for first, name in pairwise(held):
            if not _same(held[first], held[name]):
                raise RuntimeError(
                    f"state_dict: {first} and {name} differ, but the stages of this network share one base "
                    "weight there: it is the state of a network with separate stages. Load it into the "
                    "original network, and make a base and adapters of it with lorun.compress(network)"
                )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and (
        first.data_ptr() == second.data_ptr() or torch.equal(first, second)
    )


def _tie_again(model: nn.Module, incompatible_keys: object) -> None:
    retie(model)
