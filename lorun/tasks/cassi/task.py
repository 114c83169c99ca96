"""CASSI, as the shared rooms ask for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from lorun import metrics
from lorun.data import save_cube
from lorun.denoisers import SpectralTransformer, UNet
from lorun.errors import ArgumentError
from lorun.physics import CASSI
from lorun.tasks.cassi.gap_tv import gap_tv
from lorun.tasks.cassi.restorer import measure_by, snapshot_tensor
from lorun.tasks.cassi.settings import CASSINetwork, CASSITraining
from lorun.tasks.task import Images, Quality, Scene, Task
from lorun.unfolding import START

if TYPE_CHECKING:
    from lorun.tasks.cassi.options import CASSIEval, CASSIRestore
    from lorun.tasks.cassi.samples import SpectralSamples
    from lorun.tasks.cassi.scenes import SpectralScene


class SnapshotSpectralImaging(Task):
    """Spectral cubes, from one snapshot through a coded aperture and a prism."""

    name = "cassi"
    title = "snapshots of spectral cubes"
    network = CASSINetwork
    training = CASSITraining
    protocols = ("cassi-mst", "cassi-matlab", "cassi-float")
    suffixes = (".mat", ".npz")
    restore_examples = (
        "restore --task cassi --meas scene1.mat --mask mask.mat -o out.mat --figures",
        "restore cube.mat --task cassi --mask mask.mat -o out.mat --figures --compare gap-tv",
    )
    eval_examples = (
        "eval cubes --task cassi --mask mask.mat --models cassi-unet-lorun9 gap-tv -o table.md -o table.csv",
    )
    untrained = {
        "gap-tv": gap_tv,
        # What our networks start from: the rest is what a network adds.
        "smooth-start": lambda y, camera: camera.start(y),
    }

    def physics(self, settings: CASSINetwork) -> CASSI:
        return CASSI(bands=settings.bands, step=settings.step)

    def denoiser(self, settings: CASSINetwork) -> nn.Module:
        if settings.denoiser == "transformer":
            return SpectralTransformer(settings.bands, settings.width)
        return UNet(settings.bands, settings.width, takes_correction=True)

    def start_step(self, settings: CASSINetwork) -> float:
        """0.5 as in the paper; for PGD less, because Phi Phi^T is up to the number of bands."""
        return 2 / settings.bands if settings.algorithm == "pgd" else START

    def describe(self, settings: CASSINetwork) -> str:
        return f"with {settings.bands} bands, {settings.step} columns apart"

    def restore_options(self) -> "CASSIRestore":
        from lorun.tasks.cassi.options import CASSIRestore

        return CASSIRestore()

    def default_model(self, options: object, shipped: Mapping[str, CASSINetwork]) -> str:
        return "cassi-unet-lorun9"

    def check_models(self, settings: Mapping[str, CASSINetwork]) -> None:
        if len({(of.bands, of.step) for of in settings.values()}) > 1:
            listed = ", ".join(f"{name} ({of.bands} bands, step {of.step})" for name, of in settings.items())
            raise ValueError(f"models: are for different cameras, {listed}; run them apart")

    def inputs(self, source: Path | None, options: "CASSIRestore") -> list[Path]:
        from lorun.tasks.cassi.scenes import restore_inputs

        return restore_inputs(source, options)

    def open(self, source: Path | None, options: "CASSIRestore", physics: CASSI) -> "SpectralScene":
        from lorun.tasks.cassi.scenes import open_scene

        return open_scene(source, options, physics.bands, uniform_step(physics))

    def measurement(self, scene: Scene, physics: CASSI) -> Tensor:
        if scene.y is not None:
            return snapshot_tensor(scene.y, physics)
        assert scene.truth is not None
        return snapshot_tensor(measure_by(physics, scene.truth), physics)

    def save(self, out: Path, image: np.ndarray, scene: Scene, y: Tensor, options: "CASSIRestore") -> None:
        save_cube(out, image, scene.truth)

    def pictures(self, out: Path) -> tuple[Path, ...]:
        return out.with_name(f"{out.stem}-comparison.png"), out.with_name(f"{out.stem}-bands.png")

    def check_drawable(self, scene: "SpectralScene") -> None:
        if scene.wavelengths is None:
            raise ArgumentError(
                "wavelengths",
                "figures: the wavelengths of these bands are not known; give them as wavelengths, or leave "
                "the figures out",
            )

    def draw(
        self, out: Path, scene: "SpectralScene", y: Tensor, restored: Images, start: np.ndarray | None
    ) -> None:
        from lorun.tasks.cassi.figures import save_band_montage, save_spectral_comparison

        assert scene.wavelengths is not None  # check_drawable() has asked for them
        comparison, montage = self.pictures(out)
        save_spectral_comparison(comparison, y[0].numpy(), dict(restored), scene.wavelengths, scene.truth)
        save_band_montage(montage, next(iter(restored.values())), scene.wavelengths)

    def eval_options(self) -> "CASSIEval":
        from lorun.tasks.cassi.options import CASSIEval

        return CASSIEval()

    def eval_inputs(self, source: Path, options: "CASSIEval") -> list[Path]:
        from lorun.tasks.cassi.scenes import table_inputs

        return table_inputs(source, options)

    def scenes(self, source: Path, options: "CASSIEval", physics: CASSI) -> list[Scene]:
        from lorun.tasks.cassi.scenes import table_scenes

        return table_scenes(source, options, physics.bands, uniform_step(physics))

    def psnr(self, image: np.ndarray, scene: Scene, protocol: str) -> float:
        assert scene.truth is not None
        return metrics.psnr(image, scene.truth, protocol)

    def quality(self, image: np.ndarray, scene: Scene, protocol: str) -> Quality:
        assert scene.truth is not None
        ssim = metrics.ssim(image, scene.truth, protocol)
        return Quality(self.psnr(image, scene, protocol), ssim, mean_angle(image, scene.truth))

    def keeps_table_images(self, options: "CASSIEval") -> bool:
        return options.result is not None

    def save_table_images(
        self, images: Sequence[np.ndarray], scenes: Sequence[Scene], options: "CASSIEval"
    ) -> None:
        if options.result is not None:
            save_cube(
                options.result,
                np.stack(images),
                np.stack([scene.truth for scene in scenes if scene.truth is not None]),
            )

    def samples(
        self, network: CASSINetwork, data: tuple[str, ...], settings: CASSITraining, seed: int
    ) -> "SpectralSamples":
        from lorun.tasks.cassi.samples import SpectralSamples

        return SpectralSamples(network, data, settings, seed)


def uniform_step(camera: CASSI) -> int:
    """The columns between neighbouring bands; the settings of networks know no other dispersion."""
    assert isinstance(camera.step, int)
    return camera.step


def mean_angle(cube: np.ndarray, truth: np.ndarray) -> float | None:
    """SAM in degrees; None for a scene, or a cube, so dark that no pixel has an angle."""
    return metrics.sam(cube, truth) if (cube.any(0) & truth.any(0)).any() else None
