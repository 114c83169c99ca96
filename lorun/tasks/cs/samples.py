"""Training samples of compressive sensing: crops of photographs, measured by the network's own Phi."""

from collections.abc import Sequence

import torch

from lorun.data import PhotoCrops, principal_phi
from lorun.data.locate import find_photo_folders
from lorun.physics import BlockCS
from lorun.tasks.cs.settings import CSNetwork, CSTraining
from lorun.tasks.task import Sample, Size

VALIDATION_SIDE = 96


class PhotoSamples:
    """Photographs, measured by the network's own Phi."""

    def __init__(self, network: CSNetwork, data: tuple[str, ...], settings: CSTraining, seed: int):
        self.photos = PhotoCrops(find_photo_folders(data), seed)
        self.block, self.phi_start = network.block, settings.phi_start

    def check(self, sizes: Sequence[Size], square: bool) -> None:
        self.photos.check_side(self.block)
        if not square:
            raise ValueError("crop_width: compressive sensing trains on square crops; leave it out")
        self.photos.check_side(max(side for side, _ in sizes))
        self.photos.held_out(VALIDATION_SIDE)

    def prepare(self, physics: BlockCS) -> None:
        if self.phi_start == "principal":
            phi = physics.phi
            phi.data.copy_(principal_phi(self.photos, phi.shape[0], physics.block))

    def sample(self, index: int, count: int, size: Size, device: torch.device) -> Sample:
        return Sample(self.photos.batch(index, count, size[0]).to(device))

    def held_out(self, device: torch.device) -> Sample:
        return Sample(self.photos.held_out(VALIDATION_SIDE).to(device))
