import copy
import runpy
from pathlib import Path

import pytest
import torch

from lorun_kernels import adapted_weights

DROP_IN = Path(__file__).parents[2] / "examples" / "drop_in.py"


def test_drop_in_saves_parameters_and_learns():
    example = runpy.run_path(str(DROP_IN))
    dun = example["SmallDUN"]()
    before = example["count"](dun)
    own = [copy.deepcopy(stage.denoiser) for stage in dun.stages]
    for denoiser in own[1:]:
        for layer, first in zip(denoiser, own[0], strict=True):
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data.copy_(first.weight.data)
    dun = example["share_one_base"](dun)
    assert example["count"](dun) < before / 2
    x = torch.rand(1, 1, 16, 16)
    for stage, denoiser in zip(dun.stages, own, strict=True):
        assert torch.equal(stage.denoiser(x), denoiser(x))
    losses = example["train"](dun, steps=40)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_drop_in_freezes_the_base_and_ties_nothing_small():
    example = runpy.run_path(str(DROP_IN))
    dun = example["SmallDUN"](stages=3, width=4)
    for stage in dun.stages:
        stage.denoiser.insert(1, torch.nn.BatchNorm2d(4))
    dun = example["share_one_base"](dun)
    base = {id(w.base): (w.base, w.base.detach().clone()) for w in adapted_weights(dun).values()}
    assert len(base) == 3 and not any(p.requires_grad for p, _ in base.values())
    example["train"](dun, steps=2)
    assert all(torch.equal(p, was) for p, was in base.values())
    # The first stage starts where its data step changes nothing.
    steps = [stage.rho.item() for stage in dun.stages]
    assert steps[0] == 0.5 != steps[1] != steps[2] != 0.5
    for own in ("denoiser.0.bias", "denoiser.1.weight", "denoiser.1.running_mean"):
        assert len({dun.get_submodule(f"stages.{k}").state_dict(keep_vars=True)[own] for k in range(3)}) == 3


def test_drop_in_refuses_a_checkpoint_of_separate_stages():
    example = runpy.run_path(str(DROP_IN))
    trained = example["SmallDUN"](stages=3)
    shared = example["share_one_base"](example["SmallDUN"](stages=3))
    with pytest.raises(RuntimeError, match="lorun.compress"):
        shared.load_state_dict(trained.state_dict(), strict=True)


def test_drop_in_prints_what_it_saves(capsys):
    runpy.run_path(str(DROP_IN), run_name="__main__")
    printed = capsys.readouterr().out
    assert "before:" in printed and "after:" in printed and "loss:" in printed
