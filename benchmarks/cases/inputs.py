"""How many sets of inputs a case rotates."""

from __future__ import annotations

from benchmarks.harness.gpu import variants

# Small inputs would need thousands of sets to leave a GPU's cache.
MOST = 64


def input_sets(device: str, bytes_of_one: int) -> int:
    """On a GPU, as many as exceed its cache; elsewhere candidates take turns on one set."""
    return min(variants(bytes_of_one), MOST) if device == "cuda" else 1
