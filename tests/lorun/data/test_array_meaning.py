"""The rules one by one, on arrays; test_cubes.py and its neighbours see them through files."""

from pathlib import Path

import numpy as np
import pytest

from lorun.data import array_meaning
from lorun.errors import ArgumentError

PATH = Path("a.npz")
CUBE = np.zeros((6, 7, 3))


def test_the_only_array_that_can_be_meant_is_chosen():
    arrays = {"gain": np.zeros((1, 1)), "img": CUBE, "other": CUBE}
    assert array_meaning.choose(PATH, arrays, None, ("img",), (3,), "cube") == "img"
    assert array_meaning.choose(PATH, {"other": CUBE}, None, ("img",), (3,), "cube") == "other"
    with pytest.raises(ArgumentError, match="several arrays can be the cube") as caught:
        array_meaning.choose(PATH, {"a": CUBE, "b": CUBE}, None, ("img",), (3,), "cube")
    assert caught.value.argument == "key"


@pytest.mark.parametrize(
    "layout, nm, field, expected",
    [
        ("chw", None, True, "chw"),
        (None, np.zeros(3), False, "hwc"),
        (None, np.zeros(6), False, "chw"),
        (None, None, True, "hwc"),
    ],
)
def test_a_layout_follows_from_a_rule(layout, nm, field, expected):
    assert array_meaning.cube_layout("a", (6, 7, 3), layout, nm, field) == expected


@pytest.mark.parametrize("shape, field", [((6, 7, 3), False), ((3, 6, 7), True), ((6, 6, 6), True)])
def test_a_layout_is_never_guessed(shape, field):
    with pytest.raises(ArgumentError, match="leaves open which axis is the bands") as caught:
        array_meaning.cube_layout("a", shape, None, None, field)
    assert caught.value.argument == "layout"


def test_values_get_the_scale_they_are_given():
    whole = np.array([[0, 4095]], np.uint16)
    np.testing.assert_array_equal(array_meaning.unit_range("a", whole, 4095), [[0, 1]])
    for values, range in ((whole, None), (whole * 1.0, None), (whole, 100), (whole, True)):
        with pytest.raises(ArgumentError) as caught:
            array_meaning.unit_range("a", values, range)
        assert caught.value.argument == "range"


def test_wavelengths_of_the_caller_are_an_argument_and_those_of_the_file_are_not():
    with pytest.raises(ArgumentError, match="wavelengths: expected ascending numbers"):
        array_meaning.given_wavelengths(PATH, [700, 400])
    with pytest.raises(ValueError, match="`wavelengths`: expected ascending numbers") as caught:
        array_meaning.stored_wavelengths(PATH, {"wavelengths": np.array([700.0, 400])})
    assert not isinstance(caught.value, ArgumentError)
    assert array_meaning.stored_wavelengths(PATH, {"wavelengths": np.zeros(0)}) is None
