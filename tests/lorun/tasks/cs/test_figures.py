import numpy as np
from PIL import Image

from lorun.tasks.cs.figures import _detail, save_comparison


def test_the_detail_is_where_the_error_fell_and_there_is_something_to_see():
    gain = np.zeros((300, 400))
    gain[200:240, 300:340] = 1
    gain[20:60, 20:60] = 2
    truth = np.zeros((300, 400))
    truth[200:240:2, 300:340] = 1
    top, left, side = _detail(gain, truth)
    assert top <= 200 and left <= 300 and top + side >= 240 and left + side >= 340


def test_a_comparison_of_any_size_is_written(tmp_path):
    for size in [(64, 64), (20, 90), (300, 123)]:
        image = np.random.default_rng(0).random(size)
        for truth, restored, panels in ((image, ("a",), 4), (None, ("a", "b"), 3)):
            save_comparison(tmp_path / "out.png", image, dict.fromkeys(restored, image), truth)
            assert Image.open(tmp_path / "out.png").size[0] == panels * 3.5 * 80
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
