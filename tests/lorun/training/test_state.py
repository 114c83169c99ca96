import json

import pytest
import torch

from lorun.checkpoint import load_network
from lorun.training import train


def test_a_folder_of_another_run_is_refused(photos, tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train(tiny(seed=1), tmp_path / "run")


def test_a_line_cut_by_a_kill_does_not_stop_a_run(photos, tiny, logged, tmp_path):
    out = tmp_path / "run"
    whole = load_network(train(tiny(), out))[0]
    (out / "phase2.state").unlink()
    log = out / "phase2.jsonl"
    log.write_text(log.read_text() + '{"step": 7, "lo')
    again = load_network(train(tiny(), out))[0]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert len(logged(log)) == 6


def test_a_damaged_state_says_how_to_go_on(photos, tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    state = tmp_path / "run" / "phase2.state"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(ValueError, match="phase2.state: damaged; remove it to start this phase anew"):
        train(tiny(), tmp_path / "run")


def test_the_settings_of_a_run_are_beside_its_results(photos, tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    assert settings["phi_start"] == "principal" and settings["network"]["task"] == "cs"
    path.write_text(json.dumps(settings | {"spectral": 5}))
    with pytest.raises(ValueError, match="other settings"):
        train(tiny(), tmp_path / "run")
