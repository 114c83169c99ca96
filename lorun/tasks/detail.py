"""Which detail of a restored image a picture shows enlarged."""

import numpy as np
from skimage.util import view_as_windows

# Where nothing was gained, structure alone decides.
LEAST_GAIN = 1e-6


def find_detail(gain: np.ndarray, image: np.ndarray, side: int) -> tuple[int, int, int]:
    """Upper-left corner and side of a window with structure to see in which much was gained.

    Args:
        gain: (H, W), how much better each pixel became.
        image: (H, W).
        side: of the window in pixels, at most.
    """
    side = min(side, *gain.shape)
    step = max(1, side // 4)
    gained = view_as_windows(gain, side, step).mean((2, 3))
    structure = view_as_windows(image, side, step).std((2, 3))
    best = ((gained + LEAST_GAIN) * structure).argmax()
    row, column = np.unravel_index(best, gained.shape)
    return int(row) * step, int(column) * step, side
