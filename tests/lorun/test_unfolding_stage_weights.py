"""UnfoldingNetwork merges each stage at once where that pays, with equal results, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

CHECKS = "tests.lorun.staged_network_checks:"


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
def test_inference(interpret, algorithm, dtype):
    interpret(CHECKS + "check_inference", algorithm, dtype)


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "autocast to float16"])
def test_training(interpret, dtype):
    interpret(CHECKS + "check_training", dtype)


def test_activation_checkpoints(interpret):
    interpret(CHECKS + "check_checkpoints")


def test_copies_and_files(interpret):
    interpret(CHECKS + "check_copies")


def test_networks_that_move(interpret):
    interpret(CHECKS + "check_moves")


def test_threads_in_one_network(interpret):
    interpret(CHECKS + "check_threads")


def test_what_records_a_network_sees_its_layers(interpret):
    interpret(CHECKS + "check_what_does_not_pay")


def test_parameters_that_are_replaced(interpret):
    interpret(CHECKS + "check_parameters_that_are_replaced")


def test_parameters_that_are_elsewhere_until_a_layer_is_called(interpret):
    interpret(CHECKS + "check_parameters_that_are_elsewhere_until_a_layer_is_called")
