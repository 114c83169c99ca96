import numpy as np

from lorun.tasks.detail import find_detail


def test_it_is_where_much_was_gained_and_there_is_something_to_see():
    gain = np.zeros((300, 400))
    gain[200:240, 300:340] = 1
    gain[20:60, 20:60] = 2
    truth = np.zeros((300, 400))
    truth[200:240:2, 300:340] = 1
    top, left, side = find_detail(gain, truth, 96)
    assert top <= 200 and left <= 300 and top + side >= 240 and left + side >= 340


def test_structure_decides_where_nothing_was_gained():
    truth = np.zeros((100, 100))
    truth[60:90:2, 60:90] = 1
    top, left, side = find_detail(np.zeros((100, 100)), truth, 32)
    assert side == 32 and top >= 40 and left >= 40


def test_a_window_fits_into_a_small_image():
    assert find_detail(np.ones((5, 40)), np.ones((5, 40)), 64)[2] == 5
