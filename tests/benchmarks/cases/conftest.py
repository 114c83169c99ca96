"""Small networks, of every task that the benchmarks have."""

import pytest

from benchmarks.cases.tasks import NETWORKS
from benchmarks.peers.packages import package

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


@pytest.fixture
def not_installed():
    """not_installed(name): the package's name in a set, or an empty set if it can be imported."""

    def missing(name: str) -> set[str]:
        try:
            package(name)
        except ImportError:
            return {name}
        return set()

    return missing
