"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.triton_workers import call, triton_workers


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def interpret():
    """interpret("MODULE:FUNCTION", *arguments) runs a check in Triton's interpreter, and raises its errors.

    One process serves all tests: it takes seconds to start.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    with triton_workers(interpret=True, count=1) as pool:
        yield lambda function, *arguments: pool.submit(call, function, *arguments).result()


@pytest.fixture
def lorun_data() -> Path:
    """The folder with Set11 and the peers' files; tests that need it skip, with this reason, without it."""
    folder = os.environ.get("LORUN_DATA")
    if not folder:
        pytest.skip("LORUN_DATA is not set: it names the folder with Set11 and the published matrices")
    return Path(folder)


def _relative_error(value: Tensor, expected: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    expected = expected.double()
    return ((value.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@pytest.fixture
def relative_error():
    """relative_error(value, expected): the largest difference over the largest expected magnitude."""
    return _relative_error


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
