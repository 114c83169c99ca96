"""UnfoldingNetwork merges each stage at once where that pays, with equal results, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from triton_workers import triton_workers

pytest.importorskip("triton", reason="Triton is not installed")


def check(name: str, *arguments) -> None:
    """Runs in a worker: the first import of Triton is there, after its mode is set."""
    from tests.lorun import staged_network_checks

    getattr(staged_network_checks, name)(*arguments)


@pytest.fixture(scope="module")
def interpret():
    with triton_workers(interpret=True, count=1) as pool:
        yield lambda *arguments: pool.submit(check, *arguments).result()


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_inference(interpret, algorithm, dtype):
    interpret("check_inference", algorithm, dtype)


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_training(interpret, dtype):
    interpret("check_training", dtype)


def test_activation_checkpoints(interpret):
    interpret("check_checkpoints")


def test_copies_and_files(interpret):
    interpret("check_copies")


def test_networks_that_move(interpret):
    interpret("check_moves")


def test_threads_in_one_network(interpret):
    interpret("check_threads")


def test_what_records_a_network_sees_its_layers(interpret):
    interpret("check_what_does_not_pay")


def test_parameters_that_are_replaced(interpret):
    interpret("check_parameters_that_are_replaced")
