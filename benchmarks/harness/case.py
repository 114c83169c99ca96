"""What a comparison is: candidates that compute the same thing from the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Call = Callable[[int], object]
"""call(i) computes from set i of the inputs: on a GPU the sets rotate, elsewhere there is only one."""

OURS = "LoRun"
REFERENCE = f"{OURS}, reference backend"


@dataclass(frozen=True)
class Candidate:
    """One way to compute it.

    Args:
        call: what is timed; it returns a tensor, several tensors, or nothing that could be compared.
        ours: whether it is LoRun's; peers are compared with the first of ours.
        own_code: whether LoRun's code runs in it although it is a peer: it is no yardstick for LoRun's speed.
        against: another one of ours that this peer is compared with instead.
        expected: what its result must equal; by default the result of the candidate it is compared with.
        unlike: why its result differs, such as "no adapter"; without a reason, the result is checked.
        images: images per call, if not the same as the case's.
        forward: the part of a training step whose graph is kept for backward; it returns the loss or result.
        parameters: bytes of its weights.
        patience: seconds that its first call may take, compilation included; past them it is missing.
    """

    call: Call
    ours: bool = False
    own_code: bool = False
    against: str | None = None
    expected: Call | None = None
    unlike: str | None = None
    images: int | None = None
    forward: Call | None = None
    parameters: int | None = None
    patience: float | None = None


@dataclass(frozen=True)
class Work:
    """What the definition cannot do without: bytes read and written once, and operations.

    An operation is a multiplication or an addition: a multiply-accumulate counts as two.
    """

    bytes: int
    flops: int = 0


@dataclass
class Case:
    """Candidates on the same inputs, and why others are missing.

    Args:
        title: what distinguishes the case from the others of its group, such as "1x28x256x256".
        images: images, or cubes, per call.
        inputs: how many sets of inputs rotate.
        work: ours, for the roofline.
        axis: for a plot over size, batch or stages: the axis's name and this case's place on it.
        tolerance: the largest difference allowed in a checked result, as a fraction of its largest value.
        grad: whether candidates differentiate; otherwise they run under torch.no_grad.
        peak: whether the peak memory of each candidate is measured too; on CPU each in its own process.
        kernels: whether the kernels that each candidate launches on a GPU are recorded too.
    """

    title: str
    candidates: dict[str, Candidate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    images: int = 1
    inputs: int = 1
    work: Work | None = None
    axis: tuple[str, float] | None = None
    tolerance: float = 1e-4
    grad: bool = False
    peak: bool = False
    kernels: bool = False

    def add(self, name: str, make: Callable[[], Candidate]) -> None:
        """Add what `make` returns or, if a package or a backend is not available, the reason."""
        try:
            self.candidates[name] = make()
        except (ImportError, RuntimeError) as error:
            self.missing[name] = reason(error)

    @property
    def ours(self) -> list[str]:
        return [name for name, candidate in self.candidates.items() if candidate.ours]

    def compared_with(self, name: str) -> str:
        """The one of ours that a candidate is compared with."""
        return self.candidates[name].against or self.ours[0]


def reason(error: BaseException) -> str:
    """The first line of an error, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
