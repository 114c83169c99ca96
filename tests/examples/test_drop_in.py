import runpy
from pathlib import Path

import torch

DROP_IN = Path(__file__).parents[2] / "examples" / "drop_in.py"


def test_drop_in_saves_parameters_and_learns():
    example = runpy.run_path(str(DROP_IN))
    dun = example["SmallDUN"]()
    before = example["count"](dun)
    first = dun.denoisers[0]
    x = torch.rand(1, 1, 16, 16)
    expected = first(x)
    dun = example["share_one_base"](dun)
    assert example["count"](dun) < before / 2
    assert all(torch.equal(stage(x), expected) for stage in dun.denoisers)
    losses = example["train"](dun, steps=40)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_drop_in_prints_what_it_saves(capsys):
    runpy.run_path(str(DROP_IN), run_name="__main__")
    printed = capsys.readouterr().out
    assert "before:" in printed and "after:" in printed and "loss:" in printed
