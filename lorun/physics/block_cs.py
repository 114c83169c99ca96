"""Block compressive sensing: every 32x32 block of an image is measured by the same matrix Phi."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.physics.physics import Physics, Size, crop_to, per_sample
from lorun_kernels import merge_lora


def measurements_per_block(ratio: float, block: int) -> int:
    """Rows of Phi at a sampling ratio: ceil(ratio * block^2), the convention of the field.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a fraction in (0, 1], such as 0.25 for 25 %, got {ratio}")
    return math.ceil(round(ratio * block * block, 6))


def random_phi(ratio: float, block: int, generator: torch.Generator | None = None) -> Tensor:
    """A Gaussian matrix with orthonormal rows, (M, block^2) float32: the usual start of a learned Phi."""
    rows = measurements_per_block(ratio, block)
    gaussian = torch.randn(block * block, rows, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.T.float().contiguous()


class BlockCS(Physics):
    """y = Phi x on non-overlapping `block` x `block` tiles of a one-channel image, arXiv 2602.18697.

    Images are (B, 1, H, W) in [0, 1], of any size: `A` pads them with zeros at the bottom and on the right to
    whole blocks. Measurements are (B, M, ceil(H / block), ceil(W / block)).

    Args:
        ratio: sampling ratio, a fraction in (0, 1]; Phi has ceil(ratio * block^2) rows. It may be left out if
            `phi` is given.
        block: side of a block in pixels.
        phi: (M, block^2) measurement matrix; a row weighs the pixels of a block in row-major order. The
            default is random orthonormal rows. It is kept in float32.
        learned: whether Phi is a trained parameter.
        adapter_rank: if above 0, Phi is frozen and trained through a low-rank update of that rank.
        noise: a module that physics(x) applies to A(x), such as `GaussianNoise`.

    Raises:
        ValueError: an argument out of its range, neither ratio nor phi, or a phi that fits neither the block
            nor the ratio.
    """

    channels = 1

    def __init__(
        self,
        ratio: float | None = None,
        block: int = 32,
        phi: Tensor | None = None,
        learned: bool = True,
        adapter_rank: int = 0,
        noise: nn.Module | None = None,
    ):
        super().__init__(noise)
        if block < 1:
            raise ValueError(f"block: expected a side of at least 1 pixel, got {block}")
        if phi is None:
            if ratio is None:
                raise ValueError("BlockCS: give a sampling ratio, such as ratio=0.25, or a matrix phi")
            phi = random_phi(ratio, block)
        _check_phi(phi, ratio, block)
        self.block = block
        self.phi = nn.Parameter(phi.detach().float().clone(), requires_grad=learned)
        if adapter_rank:
            self.add_adapter(adapter_rank)

    @property
    def ratio(self) -> float:
        """The sampling ratio that Phi really has: its rows divided by the pixels of a block."""
        return self.phi.shape[0] / self.phi.shape[1]

    @property
    def adapter_rank(self) -> int:
        """Rank of the low-rank update of Phi; 0 if it has none."""
        return self.phi_down.shape[0] if hasattr(self, "phi_down") else 0

    def add_adapter(self, rank: int) -> None:
        """Freeze Phi and train Phi + phi_up @ phi_down instead; the sum starts equal to Phi.

        Raises:
            ValueError: a rank below 1 or above the rows of Phi.
        """
        rows, pixels = self.phi.shape
        if not 1 <= rank <= rows:
            raise ValueError(f"adapter_rank: expected 1 to {rows}, the rows of Phi, got {rank}")
        self.phi.requires_grad_(False)
        self.phi_up = nn.Parameter(self.phi.new_zeros(rows, rank))
        self.phi_down = nn.Parameter(torch.randn(rank, pixels).to(self.phi) / pixels**0.5)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """A full Phi that is trained, as "phi_lr": its entries are small beside a network's."""
        return {"phi_lr": [self.phi]} if self.phi.requires_grad else {}

    def matrix(self) -> Tensor:
        """The measurement matrix in use, (M, block^2)."""
        if self.adapter_rank == 0:
            return self.phi
        return merge_lora(self.phi, self.phi_up, self.phi_down, form="factored")

    def A(self, x: Tensor) -> Tensor:
        """Phi x of every block: (B, 1, H, W) -> (B, M, ceil(H / block), ceil(W / block)).

        Raises:
            ValueError: x is not a one-channel image of at least one pixel.
        """
        _check_image(x)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.block, 0, -height % self.block))
        y = self._to_rows(x) @ self.matrix().T
        return y.mT.unflatten(2, (x.shape[2] // self.block, -1)).contiguous()

    def A_adjoint(self, y: Tensor, size: Size | None = None) -> Tensor:
        """Phi^T y: (B, M, h, w) -> (B, 1, h * block, w * block), cropped to `size` = (H, W) if that is given.

        Raises:
            ValueError: y is not a measurement by this Phi, or `size` is not within its blocks.
        """
        self.check_measurement(y)
        x = self._to_image(_rows_of(y) @ self.matrix(), y.shape[2])
        return x if size is None else crop_to(x, size)

    def pgd_step(self, x: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """x - rho * Phi^T (Phi x - y), Eq. 5, of whole blocks: see `Physics.pgd_step`."""
        phi = self.matrix()
        residual = self._to_rows(x) @ phi.T - _rows_of(y)
        return x - per_sample("rho", rho, x) * self._to_image(residual @ phi, y.shape[2])

    def hqs_step(self, w: Tensor, y: Tensor, mu: float | Tensor) -> Tensor:
        """(Phi^T Phi + mu I)^-1 (Phi^T y + mu w), Eq. 9, of whole blocks: see `Physics.hqs_step`.

        By Woodbury's identity it is w + Phi^T (Phi Phi^T + mu I)^-1 (y - Phi w): a system of M unknowns
        instead of block^2.
        """
        phi = self.matrix()
        residual = _rows_of(y) - self._to_rows(w) @ phi.T
        mu = per_sample("mu", mu, residual)
        gram = phi @ phi.T + mu * torch.eye(phi.shape[0], dtype=phi.dtype, device=phi.device)
        # All blocks that share a system are its right-hand sides: those of the batch, or of one sample.
        right = residual.flatten(0, 1) if gram.ndim == 2 else residual
        solved = torch.linalg.solve(gram, right.mT).mT.view_as(residual)
        return w + self._to_image(solved @ phi, y.shape[2])

    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError if y is not (B, M, h, w) of this Phi."""
        rows = self.phi.shape[0]
        if y.ndim != 4 or y.shape[1] != rows:
            raise ValueError(
                f"y: expected (B, {rows}, h, w), a channel for each row of Phi and a position for each "
                f"{self.block}x{self.block} block, got {tuple(y.shape)}; was it measured at another ratio?"
            )

    def _to_rows(self, x: Tensor) -> Tensor:
        """The pixels of each block in a row, (B, h * w, block^2), by one copy; pixel unshuffle is slower."""
        blocks = x.unflatten(3, (-1, self.block)).unflatten(2, (-1, self.block))
        return blocks.transpose(3, 4).reshape(len(x), -1, self.block**2)

    def _to_image(self, rows: Tensor, height: int) -> Tensor:
        """The image of rows of pixels, with `height` = h blocks in a column: (B, 1, h * block, w * block)."""
        blocks = rows.unflatten(2, (self.block, self.block)).unflatten(1, (height, -1))
        return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2).unsqueeze(1)


def _rows_of(y: Tensor) -> Tensor:
    """The measurements of each block, (B, h * w, M)."""
    return y.flatten(2).mT


def _check_phi(phi: Tensor, ratio: float | None, block: int) -> None:
    if phi.ndim != 2 or phi.shape[1] != block * block or not 1 <= phi.shape[0] <= block * block:
        raise ValueError(
            f"phi: expected (M, {block * block}) with 1 <= M <= {block * block} for {block}x{block} blocks, "
            f"got {tuple(phi.shape)}; pass the block size that the matrix was made for"
        )
    # The 33x33 matrices of ISTA-Net have floor(ratio * 1089) rows, so a given Phi may be one row short.
    if ratio is not None and abs(phi.shape[0] - measurements_per_block(ratio, block)) > 1:
        raise ValueError(
            f"phi: expected {measurements_per_block(ratio, block)} rows at ratio {ratio}, got {phi.shape[0]}"
        )


def _check_image(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"x: expected a one-channel image of shape (B, 1, H, W), got {tuple(x.shape)}")
    if x.shape[-1] < 1 or x.shape[-2] < 1:
        raise ValueError(f"x: expected at least one pixel, got {tuple(x.shape)}")
