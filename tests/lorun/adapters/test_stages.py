"""find_stages and check_alike."""

import pytest
from torch import nn

from lorun.adapters.stages import check_alike, differences, find_stages


def network() -> nn.Module:
    model = nn.Module()
    model.head = nn.Conv2d(1, 4, 3)
    model.body = nn.Module()
    model.body.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()) for _ in range(11))
    model.tail1, model.tail2 = nn.Linear(2, 2), nn.Linear(2, 3)
    for number in (1, 2, 10):
        setattr(model, f"part{number}", nn.Linear(5, 5))
    return model


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ("body.stages", [f"body.stages.{k}" for k in range(11)]),
        (r"part\d+", ["part1", "part2", "part10"]),
        (["part10", "part1"], ["part10", "part1"]),
        (r"body\.stages\.[02]", ["body.stages.0", "body.stages.2"]),
    ],
)
def test_stages_are_found_by_container_names_or_pattern(stages, names):
    model = network()
    found = find_stages(model, stages)
    assert list(found) == names
    assert all(found[name] is model.get_submodule(name) for name in names)


def test_a_container_itself_names_its_stages():
    model = network()
    assert list(find_stages(model, model.body.stages)) == [f"body.stages.{k}" for k in range(11)]
    with pytest.raises(ValueError, match="this container is no part of the model"):
        find_stages(model, nn.ModuleList([nn.ReLU(), nn.ReLU()]))


def test_unnamed_stages_are_the_largest_alike_family_and_are_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"taken to be body.stages.0, .*body.stages.10; name them"):
        found = find_stages(network(), None)
    assert list(found) == [f"body.stages.{k}" for k in range(11)]
    unlike = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3))
    with pytest.raises(ValueError, match="found no two alike modules"):
        find_stages(unlike, None)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("denoisers", "nothing in the model is called 'denoisers'; its modules are 'head'"),
        ("head", "'head' is a Conv2d, which holds no stages"),
        (["part1", "part3"], "the model has no module 'part3'"),
        (["part1"], "two or more different stages"),
        (["part1", "part1"], "two or more different stages"),
        (["body", "body.stages.0"], "'body.stages.0' lies inside 'body'"),
        ("part(", "neither a module nor a regular expression"),
        ("../part1", "nothing in the model is called"),
    ],
)
def test_what_names_no_stages_is_refused(stages, words):
    with pytest.raises(ValueError, match=words):
        find_stages(network(), stages)


def test_differences_are_listed_layer_by_layer():
    first = nn.Sequential(nn.Conv2d(4, 4, 3, stride=1), nn.ReLU(), nn.Linear(3, 3))
    other = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Linear(3, 4), nn.PReLU())
    lines = differences(first, other)
    assert [line.split(":")[0] for line in lines] == ["3", "0", "2"]
    assert "only there" in lines[0] and "stride=(2, 2)" in lines[1] and "(4, 3) float32" in lines[2]
    with pytest.raises(ValueError, match=r"b is not like a, so they cannot share a base(.|\n)*stride"):
        check_alike({"a": first, "b": other})
    check_alike({"a": first, "b": first})


def test_a_users_module_may_print_its_own_number():
    class Numbered(nn.Linear):
        def __init__(self, number):
            super().__init__(3, 3)
            self.number = number

        def extra_repr(self):
            return f"number {self.number}"

    assert differences(Numbered(1), Numbered(2)) == []
