"""Small networks, of every task that the benchmarks have."""

import pytest

from benchmarks.cases.tasks import NETWORKS

STAGES = 3
TINY = {
    "cs": {"task": "cs", "size": 32, "stages": STAGES, "width": 4},
    "cassi": {"task": "cassi", "size": 13, "stages": STAGES, "width": 4, "bands": 3},
}


@pytest.fixture(params=NETWORKS)
def tiny(request) -> dict:
    """Arguments of a tiny case of three stages."""
    return TINY[request.param]


@pytest.fixture
def tiny_cs() -> dict:
    return TINY["cs"]


@pytest.fixture
def tiny_cassi() -> dict:
    return TINY["cassi"]
