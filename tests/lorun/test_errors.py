import pickle

import pytest

from lorun.cli import in_one_line
from lorun.errors import ArgumentError, MissingDataError

KINDS = [(ArgumentError, ValueError), (MissingDataError, FileNotFoundError)]


@pytest.mark.parametrize("kind, builtin", KINDS)
def test_the_command_line_names_the_flag_and_the_library_does_not(kind, builtin):
    error = kind("mask_key", "a.mat: several arrays\nfit")
    assert isinstance(error, builtin) and str(error) == "a.mat: several arrays\nfit"
    assert in_one_line(error) == "a.mat: several arrays fit (--mask-key)"


def test_other_errors_are_printed_as_they_are():
    assert in_one_line(ValueError("gamma: expected")) == "gamma: expected"
    assert in_one_line(MemoryError()) == "MemoryError"


def test_training_has_no_flags_for_how_files_are_read():
    error = ArgumentError("range", "a.npz: holds integers")
    assert in_one_line(error, ["restore"]).endswith("(--range)")
    assert in_one_line(error, ["train"]) == "a.npz: holds integers"
    assert in_one_line(ArgumentError("data", "none: missing"), ["train"]).endswith("(--data)")


@pytest.mark.parametrize("kind, builtin", KINDS)
def test_they_survive_another_process(kind, builtin):
    error = pickle.loads(pickle.dumps(kind("range", "text")))
    assert (type(error), error.argument, str(error)) == (kind, "range", "text")
