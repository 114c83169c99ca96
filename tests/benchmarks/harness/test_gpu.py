"""Inputs that rotate past a GPU's cache."""

from benchmarks.harness.gpu import ROTATED_BYTES, variants


def test_inputs_rotate_through_more_than_a_cache_holds():
    assert variants(ROTATED_BYTES // 4) == 4
    assert variants(10 * ROTATED_BYTES) == 2
