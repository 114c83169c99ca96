"""What a results file says about the machine."""

import json
import platform

import torch

from benchmarks.harness.machine import describe


def test_the_machine_is_described_without_its_name():
    description = describe()
    assert description["torch"] == torch.__version__ and description["threads"] >= 1
    assert platform.node() not in json.dumps(description)
