"""What becomes of each parameter of a stage."""

import pytest
from torch import nn

from lorun.adapters.plan import ADAPTER, COMMON, FULL, OWN, SHARED, Rules, decide, fits
from lorun_kernels import add_adapter


class Stage(nn.Module):
    def __init__(self, physics=None):
        super().__init__()
        self.entry = nn.Conv2d(1, 16, 3)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3), nn.GroupNorm(2, 16), nn.Conv2d(16, 16, 3, groups=16))
        self.exit = nn.ConvTranspose2d(16, 1, 2)
        self.linear = nn.Linear(20, 12)
        self.physics = nn.Linear(7, 7) if physics is None else physics


def kinds(rules=None, stages=None):
    stages = [Stage(), Stage()] if stages is None else stages
    return {d.name: d for d in decide(stages, rules or Rules())}


def test_weights_get_adapters_and_what_is_small_stays():
    found = kinds()
    assert {name: d.kind for name, d in found.items()} == {
        "entry.weight": FULL,
        "entry.bias": OWN,
        "body.0.weight": ADAPTER,
        "body.0.bias": OWN,
        "body.1.weight": OWN,
        "body.1.bias": OWN,
        "body.2.weight": FULL,
        "body.2.bias": OWN,
        "exit.weight": FULL,
        "exit.bias": OWN,
        "linear.weight": ADAPTER,
        "linear.bias": OWN,
        "physics.weight": ADAPTER,
        "physics.bias": OWN,
    }
    # Eq. 12 at 10 %: ceil(16 * 0.1), ceil(12 * 0.1), ceil(7 * 0.1).
    assert [found[n].rank for n in ("body.0.weight", "linear.weight", "physics.weight")] == [2, 2, 1]
    assert found["body.1.weight"].why == "a norm" and "no smaller" in found["entry.weight"].why


def test_a_module_of_all_stages_stays_common():
    physics = nn.Linear(7, 7)
    found = kinds(stages=[Stage(physics), Stage(physics)])
    assert found["physics.weight"].kind == COMMON and "one module for all" in found["physics.weight"].why


def test_patterns_choose():
    found = kinds(
        Rules(include=["body", "linear.weight"], own=["physics"], tied=["body.0.bias"], exclude=["body.2"])
    )
    assert found["entry.weight"].kind == SHARED and found["entry.weight"].why == "not included"
    assert found["body.0.weight"].kind == ADAPTER and found["linear.weight"].kind == ADAPTER
    assert found["physics.weight"].kind == OWN and found["body.0.bias"].kind == SHARED
    assert found["body.2.weight"].kind == SHARED and found["body.2.weight"].why == "excluded"


def test_ranks_are_global_or_by_pattern():
    found = kinds(Rules(rank=5, rank_pattern={"linear": 3, "body.0": 4}))
    assert found["linear.weight"].rank == 3 and found["body.0.weight"].rank == 4
    assert kinds(Rules(rank=5))["body.0.weight"].rank == 5
    assert kinds(Rules(form="factored", gamma=25))["body.0.weight"].rank == 4
    assert {d.kind for d in kinds(Rules(form="full")).values()} == {FULL, OWN}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (Rules(include=["encoder"]), "include: 'encoder' fits no parameter of a stage; they are entry"),
        (Rules(exclude=["x*"]), "exclude: 'x"),
        (Rules(own=["nope"]), "own: 'nope'"),
        (Rules(tied=["nope"]), "tied: 'nope'"),
        (Rules(rank_pattern={"nope": 1}), "rank_pattern: 'nope'"),
        (Rules(rank_pattern={"linear": 13}), r"\(linear.weight\): rank must be an int between 1 and 12"),
        (Rules(rank=500), "rank: 500 is above what any layer"),
        (Rules(rank=True), "rank: expected an int"),
        (Rules(exclude=["*"]), "no weight would get an adapter(.|\n)*entry.weight: excluded"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(rules, words):
    with pytest.raises(ValueError, match=words):
        kinds(rules)


def test_stages_with_adapters_are_refused():
    stages = [Stage(), Stage()]
    add_adapter(stages[0].linear)
    with pytest.raises(ValueError, match="linear.weight: has an adapter already"):
        decide(stages, Rules())


def test_a_pattern_fits_a_name_or_the_module_around_it():
    assert fits("body.0.weight", ["body"]) and fits("body.0.weight", ["body.?"])
    assert fits("body.0.weight", ["*.weight"]) and not fits("body.0.weight", ["bod", "0.weight", "weight"])
