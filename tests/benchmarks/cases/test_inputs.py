"""How many sets of inputs rotate."""

from benchmarks.cases.inputs import MOST, input_sets


def test_sets_of_inputs_leave_a_cache_but_do_not_fill_a_machine():
    cube = 4 * 8 * 28 * 256 * 256
    assert input_sets("cpu", cube) == 1
    assert input_sets("cuda", cube) == 9
    assert input_sets("cuda", 4 * 28 * 8 * 8) == MOST
