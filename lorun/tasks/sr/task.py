"""Super-resolution, as the shared rooms ask for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from lorun import metrics
from lorun.denoisers import ResUNet, UNet
from lorun.physics import SuperResolution
from lorun.tasks.sr.settings import SRNetwork, SRTraining
from lorun.tasks.task import Images, Quality, Scene, Task

if TYPE_CHECKING:
    from lorun.tasks.sr.options import SREval, SRRestore
    from lorun.tasks.sr.samples import PhotoSamples
    from lorun.tasks.sr.scenes import PhotoScene

# mu at the start: 0.5 would trust measurements too little, of which many have no noise.
START_MU = 0.05
# Phi Phi^T is at most 1 for a kernel that weighs nothing negatively.
START_RHO = 1.0


class SingleImageSuperResolution(Task):
    """Photographs, from fewer pixels of a blurred one."""

    name = "sr"
    title = "super-resolution of photographs"
    network = SRNetwork
    training = SRTraining
    protocols = ("sr-rgb", "sr-y")
    suffixes = (".png",)
    restore_examples = (
        "restore photo.png --task sr --scale 4 --kernel k.mat --noise 0.01 -o out.png",
        "restore good.png --task sr --scale 2 --kernel gaussian:1.2 --simulate --figures -o out.png",
    )
    eval_examples = (
        "eval photos --task sr --scales 2 3 4 --kernels 12 --models bicubic sr-resunet-lorun9 -o table.md",
    )
    untrained = {
        # Aligned with the pixels that were kept.
        "bicubic": lambda y, physics: physics.start(y),
    }

    def physics(self, settings: SRNetwork) -> SuperResolution:
        return SuperResolution(channels=settings.channels)

    def denoiser(self, settings: SRNetwork) -> nn.Module:
        if settings.denoiser == "unet":
            return UNet(settings.channels, settings.width)
        return ResUNet(settings.channels, settings.width, len(SuperResolution.conditions))

    def start_step(self, settings: SRNetwork) -> float:
        return START_MU if settings.algorithm == "hqs" else START_RHO

    def describe(self, settings: SRNetwork) -> str:
        return f"in {'colour' if settings.channels == 3 else 'grey'}"

    def restore_options(self) -> "SRRestore":
        from lorun.tasks.sr.options import SRRestore

        return SRRestore()

    def default_model(self, options: object, shipped: Mapping[str, SRNetwork]) -> str:
        return "sr-resunet-lorun9"

    def check_models(self, settings: Mapping[str, SRNetwork]) -> None:
        if len({of.channels for of in settings.values()}) > 1:
            listed = ", ".join(f"{name} {self.describe(of)}" for name, of in settings.items())
            raise ValueError(f"models: some restore colour and others grey, {listed}; run them apart")

    def inputs(self, source: Path | None, options: "SRRestore") -> list[Path]:
        from lorun.tasks.sr.scenes import restore_inputs

        return restore_inputs(source, options)

    def open(self, source: Path | None, options: "SRRestore", physics: SuperResolution) -> "PhotoScene":
        from lorun.tasks.sr.scenes import open_photo

        assert source is not None  # inputs() has asked for it
        return open_photo(source, options, physics.channels)

    def measurement(self, scene: "PhotoScene", physics: SuperResolution) -> Tensor:
        from lorun.tasks.sr.restorer import photo_tensor
        from lorun.tasks.sr.scenes import simulated

        if scene.y is not None:
            y = photo_tensor(scene.y, physics.channels)
            physics.check_measurement(y)
            return y
        assert scene.truth is not None
        return simulated(scene.truth, scene.measured_by or physics)

    def save(self, out: Path, image: np.ndarray, scene: "PhotoScene", y: Tensor, options: object) -> None:
        from lorun.data import save_photo

        save_photo(out, in_its_colours(image, scene))

    def pictures(self, out: Path) -> tuple[Path, ...]:
        return (out.with_name(f"{out.stem}-comparison.png"),)

    def draw(
        self, out: Path, scene: "PhotoScene", y: Tensor, restored: Images, start: np.ndarray | None
    ) -> None:
        from lorun.tasks.sr.figures import save_enlargements

        assert isinstance(scene.physics, SuperResolution)

        def title(name: str, image: np.ndarray) -> str:
            if scene.truth is None:
                return name
            return f"{name}, {self.psnr(image, scene, self.protocols[0]):.2f} dB"

        small = y[0, :, : scene.size[0] // scene.physics.scale, : scene.size[1] // scene.physics.scale]
        bicubic = scene.physics.start(y)[0, :, : scene.size[0], : scene.size[1]].clamp(0, 1).numpy()
        images = {title("bicubic", bicubic): bicubic}
        images |= {title(name, image): image for name, image in restored.items() if name != "bicubic"}
        kernel = scene.physics.kernel
        assert kernel is not None
        save_enlargements(
            self.pictures(out)[0],
            small.clamp(0, 1).numpy(),
            images,
            kernel.numpy(),
            scene.physics.scale,
            scene.truth,
        )

    def eval_options(self) -> "SREval":
        from lorun.tasks.sr.options import SREval

        return SREval()

    def eval_inputs(self, source: Path, options: "SREval") -> list[Path]:
        from lorun.tasks.sr.scenes import table_inputs

        return table_inputs(source, options)

    def scenes(self, source: Path, options: "SREval", physics: SuperResolution) -> list[Scene]:
        from lorun.tasks.sr.scenes import table_scenes

        return table_scenes(source, options, physics.channels)

    def psnr(self, image: np.ndarray, scene: "PhotoScene", protocol: str) -> float:
        return metrics.psnr(*compared(image, scene), protocol, scale_of(scene))

    def quality(self, image: np.ndarray, scene: "PhotoScene", protocol: str) -> Quality:
        ssim = metrics.ssim(*compared(image, scene), protocol, scale_of(scene))
        return Quality(self.psnr(image, scene, protocol), ssim)

    def samples(
        self, network: SRNetwork, data: tuple[str, ...], settings: SRTraining, seed: int
    ) -> "PhotoSamples":
        from lorun.tasks.sr.samples import PhotoSamples

        return PhotoSamples(network, data, settings, seed)


def in_its_colours(image: np.ndarray, scene: "PhotoScene") -> np.ndarray:
    """An image as files hold it, (3 or 1, H, W): that of a grey photograph has one channel."""
    return image.mean(0, keepdims=True) if scene.grey else image


def compared(image: np.ndarray, scene: "PhotoScene") -> tuple[np.ndarray, np.ndarray]:
    """An image and the truth, as files hold them."""
    assert scene.truth is not None
    return in_its_colours(image, scene), in_its_colours(scene.truth, scene)


def scale_of(scene: Scene) -> int:
    assert isinstance(scene.physics, SuperResolution)
    return scene.physics.scale
