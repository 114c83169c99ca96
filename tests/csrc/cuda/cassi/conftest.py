"""The CASSI kernels on the emulated device, and the problems that its tests share."""

from __future__ import annotations

import pytest
import torch

from ..on_host import emulator
from .cases import CASES, LARGE_CASES, Case
from .launchers import DTYPES, Cassi

WHOLE_SHARED_MEMORY = 227 * 1024


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    sources = [*emulator.kernels("cassi"), emulator.TESTS / "cassi/launchers.cpp"]
    return emulator.load(tmp_path_factory.mktemp("cassi"), sources)


@pytest.fixture
def cassi(library) -> Cassi:
    library.cuda_on_host_set_shared_limit(WHOLE_SHARED_MEMORY)
    return Cassi(library)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


@pytest.fixture(params=LARGE_CASES, ids=lambda case: f"{case.mask} {case.layout}")
def large_case(request) -> Case:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["pgd", "hqs"])
def kind(request) -> str:
    return request.param
