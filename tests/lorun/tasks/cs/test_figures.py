import numpy as np
from PIL import Image

from lorun.tasks.cs.figures import save_comparison


def test_a_comparison_of_any_size_is_written(tmp_path):
    for size in [(64, 64), (20, 90), (300, 123)]:
        image = np.random.default_rng(0).random(size)
        for truth, restored, panels in ((image, ("a",), 4), (None, ("a", "b"), 3)):
            save_comparison(tmp_path / "out.png", image, dict.fromkeys(restored, image), truth)
            assert Image.open(tmp_path / "out.png").size[0] == panels * 3.5 * 80
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
