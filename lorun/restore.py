"""Restoring a file: an image whose measurement is simulated, or a measurement."""

from pathlib import Path

import numpy as np
from PIL import Image

from lorun.data import read_grey
from lorun.device import choose_device
from lorun.evaluate import PROTOCOL
from lorun.files import check_not_input, check_target, write_in_one_step
from lorun.metrics import psnr
from lorun.restorer import Restorer, check_image, read_measurement
from lorun.zoo import load_model, model_for_ratio


def restore_file(
    source: Path,
    out: Path,
    ratio: float = 0.25,
    model: str | None = None,
    measurement_out: Path | None = None,
    device: str = "auto",
) -> str:
    """Restore `source` into the PNG `out`; returns one line that says what was done.

    Args:
        source: an image, or an .npz measurement as `Measurement.save` writes it.
        ratio: picks the shipped model where `model` is None.
        measurement_out: where to write the simulated measurement.
    """
    check_target(out, ".png")
    check_not_input(out, source)
    truth = None if source.suffix == ".npz" else check_image(read_grey(source))
    if measurement_out is not None:
        check_target(measurement_out, ".npz")
        if truth is None:
            raise ValueError(f"measurement: {source} is a measurement already; leave --measurement out")
    net, config = load_model(model or model_for_ratio(ratio), "cs")
    restorer = Restorer(net.to(choose_device(device)))
    measurement = read_measurement(source) if truth is None else restorer.measure(truth)
    restored = restorer.restore(measurement)
    picture = Image.fromarray(np.rint(restored * 255).astype(np.uint8))
    write_in_one_step(out, lambda part: picture.save(part, format="PNG"))
    if measurement_out is not None:
        measurement.save(measurement_out)
    quality = "" if truth is None else f", PSNR {psnr(restored, truth, PROTOCOL):.2f} dB"
    return f"{out}: restored by {config.label} from {config.ratio:.0%} of the measurements{quality}"
