import runpy
from pathlib import Path

import torch

DROP_IN = Path(__file__).parents[2] / "examples" / "drop_in.py"


def test_drop_in_saves_parameters_and_learns():
    example = runpy.run_path(str(DROP_IN))
    dun = example["SmallDUN"]()
    before = example["count"](dun)
    first = dun.stages[0].denoiser
    x = torch.rand(1, 1, 16, 16)
    expected = first(x)
    dun = example["share_one_base"](dun)
    assert example["count"](dun) < before / 2
    assert all(torch.equal(stage.denoiser(x), expected) for stage in dun.stages)
    losses = example["train"](dun, steps=40)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_drop_in_freezes_all_of_the_base_and_ties_no_step_sizes():
    """Also a layer that gets no adapter, which K stages would otherwise train as one."""
    example = runpy.run_path(str(DROP_IN))
    dun = example["SmallDUN"](stages=3, width=4)
    for stage in dun.stages:
        stage.denoiser.insert(1, torch.nn.BatchNorm2d(4))
    base = dun.stages[0].denoiser
    dun = example["share_one_base"](dun)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    assert before and not any(p.requires_grad for p in base.parameters())
    example["train"](dun, steps=2)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    # The first stage starts where its data step changes nothing.
    steps = [stage.rho.item() for stage in dun.stages]
    assert steps[0] == 0.5 != steps[1] != steps[2] != 0.5


def test_drop_in_prints_what_it_saves(capsys):
    runpy.run_path(str(DROP_IN), run_name="__main__")
    printed = capsys.readouterr().out
    assert "before:" in printed and "after:" in printed and "loss:" in printed
