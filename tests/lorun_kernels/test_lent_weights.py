"""Weights that a running stage lends to its layers: to which thread, in which dtype, and until when."""

import threading

import torch
from torch import nn

from lorun_kernels.lent_weights import called_dtype, lend, lent_weight

IMAGE = torch.empty(0)


def test_they_are_lent_until_the_context_ends_to_this_thread_only():
    layer, other, weight = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1)
    seen = []
    with lend({layer: weight}):
        assert lent_weight(layer, IMAGE) is weight and lent_weight(other, IMAGE) is None
        thread = threading.Thread(target=lambda: seen.append(lent_weight(layer, IMAGE)))
        thread.start()
        thread.join()
    assert seen == [None] and lent_weight(layer, IMAGE) is None


def test_contexts_that_overlap_may_end_in_any_order():
    layer, first, second = nn.Conv2d(1, 1, 1), torch.ones(1), torch.zeros(1)
    outer, inner = lend({layer: first}), lend({layer: second})
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert lent_weight(layer, IMAGE) is second
    inner.__exit__(None, None, None)
    assert lent_weight(layer, IMAGE) is None


def test_a_weight_of_another_dtype_than_the_call_is_not_used():
    layer = nn.Conv2d(1, 1, 1)
    with lend({layer: torch.ones(1, dtype=torch.bfloat16)}):
        assert lent_weight(layer, IMAGE) is None
        assert lent_weight(layer, IMAGE.bfloat16()) is not None
        with torch.autocast("cpu", torch.bfloat16):
            assert lent_weight(layer, IMAGE) is not None
            # Autocast leaves float64 alone.
            assert (
                called_dtype(IMAGE.double()) == torch.float64 and lent_weight(layer, IMAGE.double()) is None
            )
