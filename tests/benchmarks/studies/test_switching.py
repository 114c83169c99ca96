"""What the study of switching measures: sizes and memory; its times are not asserted."""

import sys

import pytest

from benchmarks.studies.switching import ROUNDS, loading_memory, sizes_on_disk, switch_times


def test_base_and_adapters_are_what_lies_on_disk():
    written, parameters = sizes_on_disk()
    assert parameters < written < 1.05 * parameters


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_loading_takes_the_memory_of_base_and_adapters():
    most, parameters = loading_memory()
    assert 0.5 * parameters < most <= 1.1 * parameters


def test_every_switch_is_timed():
    assert len(switch_times()) == ROUNDS
