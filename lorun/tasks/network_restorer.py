"""What the restorers of numpy arrays have in common."""

from typing import ClassVar

from lorun.methods import NetworkMethod
from lorun.physics import Physics
from lorun.unfolding import UnfoldingNetwork


class NetworkRestorer:
    """Restores by one network, whose physics is `kind`; a subclass says what it restores.

    Args:
        net: as `lorun.create_model` returns it.
        tile: side of the tiles that the denoiser works in, for images that do not fit into memory; None
            denoises whole ones.

    Raises:
        ValueError: a network for another task, or tiles that are too small for their overlap.
    """

    kind: ClassVar[type[Physics]]
    task: ClassVar[str]
    others: ClassVar[str]
    """Which restorers to take for another network."""

    def __init__(self, net: UnfoldingNetwork, tile: int | None = None):
        if not isinstance(net.physics, self.kind):
            raise ValueError(
                f"net: expected a network for {self.task}, got one for {type(net.physics).__name__}; "
                f"{self.others}"
            )
        self._method = NetworkMethod(net, tile)

    @property
    def net(self) -> UnfoldingNetwork:
        """The network, in evaluation mode."""
        return self._method.net

    @property
    def tile(self) -> int | None:
        """Side of the tiles in pixels; None denoises whole images."""
        return self._method.tile
