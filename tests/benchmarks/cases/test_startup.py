"""Imports are timed in fresh processes, and one that fails is reported."""

import json
import os

import pytest

from benchmarks.cases import startup
from benchmarks.harness.case import OURS


def test_every_run_is_a_fresh_process(tmp_path):
    file = f"open({str(tmp_path / 'seen')!r}, 'a')"
    for _ in range(2):
        startup.run(
            f"import json, os, sys; print(json.dumps([os.getpid(), 'torch' in sys.modules]), file={file})"
        )
    pids, torches = zip(*map(json.loads, (tmp_path / "seen").read_text().splitlines()), strict=True)
    assert len({*pids, os.getpid()}) == 3
    assert not any(torches)


def test_a_folder_does_not_hide_what_is_installed(tmp_path, monkeypatch):
    (tmp_path / "a_module.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match="No module named 'a_module'"):
        startup.run("import a_module")


def test_what_is_imported_and_whose_it_is():
    case = startup.imports("cpu", packages=["peft"])
    assert case.ours == [OURS, "import lorun_kernels"]
    assert list(case.candidates)[2:] == ["import lorun_kernels", "import torch", "import peft"]


def test_an_import_that_fails_is_reported_missing(measured):
    case = startup.imports("cpu", ours="json", parts=["string", "no_such_module"])
    record = measured(case)
    reason = "ImportError: ModuleNotFoundError: No module named 'no_such_module'"
    assert record["missing"] == {"import no_such_module": reason}
    assert set(record["candidates"]) == {OURS, "python alone", "import string"}


def test_a_peer_that_is_not_installed_says_what_to_install():
    with pytest.raises(ImportError, match=r"no_such_package.*pip install '\.\[bench\]'"):
        startup.run(startup._import_of_peer("no_such_package"))
