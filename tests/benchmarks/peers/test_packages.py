"""Packages from PyPI."""

import json
import sys

import pytest

from benchmarks.peers.packages import package


def test_an_installed_package_is_imported():
    assert package("json") is json


def test_a_package_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[bench\]'"):
        package("peft")
