"""What every test of the CUDA sources needs."""

import pytest

from .on_host import emulator


@pytest.fixture(scope="session", autouse=True)
def sources_and_compiler():
    if not emulator.CUDA.exists():
        pytest.skip("needs LoRun's source folder")
    if emulator.compiler() is None:
        pytest.skip("needs g++ to compile the kernels for the CPU")
