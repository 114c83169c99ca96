"""torch.vmap for ops that have no batched form: one call per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def loop_rule(op: Callable) -> Callable:
    """A vmap rule that calls `op` once per sample and stacks the results."""

    def rule(info, in_dims, *args):
        def sample(index: int) -> list:
            return [
                arg.select(dim, index) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            ]

        results = [op(*sample(index)) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(
            None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True)
        )
        return stacked, tuple(None if part is None else 0 for part in stacked)

    return rule
