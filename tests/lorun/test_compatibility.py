"""What files, scripts and users rely on is as it was before tasks had rooms of their own."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.lorun.compatibility import HELP, flags, model_outputs, op_schemas, parameters, printed_by

DATA = Path(__file__).parents[1] / "data"
BEFORE = json.loads((DATA / "compatibility.json").read_text())


def test_shipped_models_restore_what_they_did():
    """Bit for bit on the machine that wrote the file; another processor adds in another order."""
    with np.load(DATA / "model-outputs.npz") as before:
        for name, output in model_outputs().items():
            np.testing.assert_allclose(output, before[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", BEFORE["parameters"])
def test_state_dicts_keep_their_names(name):
    assert parameters(name) == BEFORE["parameters"][name]


def test_ops_keep_their_schemas():
    assert set(BEFORE["op_schemas"]) <= set(op_schemas())


@pytest.mark.parametrize("command", ["restore", "eval", "train", "info", "demo"])
def test_every_flag_is_still_there(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    names = [name for name in HELP if name.split()[0] == command]
    now = {flag for name in names for flag in flags(command, HELP[name], printed_by)}
    before = {flag for name in names for flag in BEFORE["flags"][name]}
    assert before and before <= now
