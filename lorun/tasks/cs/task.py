"""Compressive sensing, as the shared rooms ask for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from lorun import metrics
from lorun.denoisers import DENOISERS
from lorun.errors import ArgumentError
from lorun.files import check_not_input, check_target
from lorun.physics import BlockCS
from lorun.tasks.cs.restorer import (
    Measurement,
    check_image,
    checked_measurement,
    image_tensor,
    read_measurement,
)
from lorun.tasks.cs.settings import CSNetwork, CSTraining
from lorun.tasks.task import Images, Quality, Scene, Task

if TYPE_CHECKING:
    from lorun.tasks.cs.options import CSEval, CSRestore
    from lorun.tasks.cs.samples import PhotoSamples


class CompressiveSensing(Task):
    """Photographs, from a share of the numbers that their pixels are."""

    name = "cs"
    title = "compressive sensing of photographs"
    network = CSNetwork
    training = CSTraining
    protocols = ("cs",)
    suffixes = (".png",)
    start_label = "start Phi^T y"
    restore_examples = (
        "restore photo.png --ratio 0.25 -o restored.png --measurement photo.npz",
        "restore photo.npz --ratio 0.25 -o restored.png",
    )
    eval_examples = ("eval photos --models cs25-unet-shared9 cs25-unet-lorun9 -o table.md",)

    def physics(self, settings: CSNetwork) -> BlockCS:
        phi_rank = settings.phi_rank if settings.variant == "lorun" else 0
        return BlockCS(settings.ratio, settings.block, adapter_rank=phi_rank)

    def denoiser(self, settings: CSNetwork) -> nn.Module:
        return DENOISERS[settings.denoiser](BlockCS.channels, settings.width)

    def adapt_physics(self, physics: BlockCS, settings: CSNetwork) -> None:
        if settings.phi_rank:
            physics.add_adapter(settings.phi_rank)

    def describe(self, settings: CSNetwork) -> str:
        return f"at ratio {settings.ratio}"

    def restore_options(self) -> "CSRestore":
        from lorun.tasks.cs.options import CSRestore

        return CSRestore()

    def default_model(self, options: "CSRestore | CSEval", shipped: Mapping[str, CSNetwork]) -> str:
        """The LoRun model of the options' sampling ratio; 25 % for a table, which has no such option."""
        names = {settings.ratio: name for name, settings in shipped.items() if settings.variant == "lorun"}
        ratio = getattr(options, "ratio", CSNetwork.ratio)
        if ratio not in names:
            known = ", ".join(str(known) for known in sorted(names))
            raise ValueError(
                f"ratio: no shipped model restores ratio {ratio}; expected one of {known}, or name a model "
                "file"
            )
        return names[ratio]

    def inputs(self, source: Path | None, options: "CSRestore") -> list[Path]:
        if source is None:
            raise ValueError("input: name an image or an .npz measurement to restore")
        if options.measurement is not None:
            check_target(options.measurement, ".npz")
            check_not_input(options.measurement, source)
            if is_measurement(source):
                raise ArgumentError("measurement", f"measurement: {source} is one already; leave it out")
        return [source]

    def open(self, source: Path | None, options: "CSRestore", physics: BlockCS) -> Scene:
        assert source is not None  # inputs() has asked for it
        if is_measurement(source):
            measured = read_measurement(source)
            return Scene(source.name, measured.size, y=measured.y)
        return photograph(source)

    def measurement(self, scene: Scene, physics: BlockCS) -> Tensor:
        if scene.y is None:
            assert scene.truth is not None
            return physics.A(image_tensor(scene.truth[0], physics))
        return checked_measurement(Measurement(scene.y, scene.size), physics)

    def save(self, out: Path, image: np.ndarray, scene: Scene, y: Tensor, options: "CSRestore") -> None:
        from lorun.data import save_photo

        save_photo(out, image)
        if options.measurement is not None:
            Measurement(y[0].float().numpy(force=True), scene.size).save(options.measurement)

    def pictures(self, out: Path) -> tuple[Path, ...]:
        return (out.with_name(f"{out.stem}-comparison.png"),)

    def draw(self, out: Path, scene: Scene, y: Tensor, restored: Images, start: np.ndarray | None) -> None:
        from lorun.tasks.cs.figures import save_comparison

        assert start is not None
        truth = None if scene.truth is None else scene.truth[0]

        def title(name: str, image: np.ndarray) -> str:
            return name if truth is None else f"{name}, {self.psnr(image, scene, self.protocols[0]):.2f} dB"

        shown = {title(name, image): image[0] for name, image in restored.items()}
        titles = title(self.start_label, start), f"truth: {scene.name}"
        save_comparison(self.pictures(out)[0], start[0], shown, truth, titles)

    def eval_options(self) -> "CSEval":
        from lorun.tasks.cs.options import CSEval

        return CSEval()

    def eval_inputs(self, source: Path, options: "CSEval") -> list[Path]:
        from lorun.data import list_photos

        return list_photos(source)

    def scenes(self, source: Path, options: "CSEval", physics: BlockCS) -> list[Scene]:
        return [photograph(path) for path in self.eval_inputs(source, options)]

    def start(self, scene: Scene, y: Tensor, physics: BlockCS) -> np.ndarray:
        return physics.A_adjoint(y, scene.size)[0].clamp(0, 1).float().numpy(force=True)

    def psnr(self, image: np.ndarray, scene: Scene, protocol: str) -> float:
        assert scene.truth is not None
        return metrics.psnr(image[0], scene.truth[0], protocol)

    def quality(self, image: np.ndarray, scene: Scene, protocol: str) -> Quality:
        assert scene.truth is not None
        return Quality(self.psnr(image, scene, protocol), metrics.ssim(image[0], scene.truth[0], protocol))

    def samples(
        self, network: CSNetwork, data: tuple[str, ...], settings: CSTraining, seed: int
    ) -> "PhotoSamples":
        from lorun.tasks.cs.samples import PhotoSamples

        return PhotoSamples(network, data, settings, seed)


def is_measurement(path: Path) -> bool:
    """Whether a file is a measurement, rather than a photograph whose measurement is simulated."""
    return path.suffix.lower() == ".npz"


def photograph(path: Path) -> Scene:
    """A photograph as Y, to be measured."""
    from lorun.data import read_grey

    truth = check_image(read_grey(path))
    return Scene(path.name, truth.shape, truth=truth[None])
